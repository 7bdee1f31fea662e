"""Scripts that run in the environments of other packages; nothing here is imported by ours."""
