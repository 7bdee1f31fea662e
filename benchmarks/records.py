"""Benchmark records: JSON lines with the versions and the processor they were made on, appended one by one."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from qubo_compress._internal.processors import usable_processors

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Versions, processor and the number of cores that this process may use."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "python": platform.python_version(),
        "qubo_compress": version("qubo_compress"),
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cpu": model,
        "cores": usable_processors(),
    }


def _commit() -> str:
    """The checkout's commit, empty outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one record as one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All complete records of a file, none where there is no file."""
    if path.exists():
        for line in path.read_text().splitlines():
            yield json.loads(line)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"
