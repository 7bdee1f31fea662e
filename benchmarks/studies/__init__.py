"""One file per question: ``python -m benchmarks.studies.NAME``."""
