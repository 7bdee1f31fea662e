"""Runs what is missing: ``python -m benchmarks.solvers --tier quick``; see ``benchmarks.solvers.comparison``."""

from benchmarks.solvers.comparison import main

if __name__ == "__main__":
    main()
