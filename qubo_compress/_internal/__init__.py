"""What every room of the package uses and users never see: files, registries, checks, compiling."""
