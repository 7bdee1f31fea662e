"""Seconds of ``import qubo_compress``, and of the first public names that load torch and numba: the best of three."""

from __future__ import annotations

import subprocess
import sys

LINES = {
    "import qubo_compress": "import qubo_compress",
    "... and its solvers": "import qubo_compress as qc; qc.solve",
    "... and compress": "import qubo_compress as qc; qc.compress",
    "import torch, to compare": "import torch",
}
TIMED = "import resource\n{line}\nused = resource.getrusage(resource.RUSAGE_SELF)\nprint(used.ru_utime + used.ru_stime)"


def seconds(line: str) -> float:
    """CPU seconds of a process that runs the line, with the start of Python."""
    told = subprocess.run([sys.executable, "-c", TIMED.format(line=line)], capture_output=True, text=True, check=True)
    return float(told.stdout)


def main() -> None:
    """Print them."""
    for name, line in LINES.items():
        print(f"{name}: {min(seconds(line) for _ in range(3)):.2f} CPU seconds")


if __name__ == "__main__":
    main()
