"""Benchmark records: JSON lines with the versions and the processor they were made on, and tables of them."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy
import torch

from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.processors import usable_processors

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]


def environment() -> Record:
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


def append(path: Path, record: Record) -> None:
    """Add one record as one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> Iterator[Record]:
    """All complete records of a file, none where there is no file."""
    if path.exists():
        for line in path.read_text().splitlines():
            yield json.loads(line)


def write(name: str, content: str | Mapping[str, Any]) -> None:
    """Write a file of the results and print it: markdown as it is, anything else as JSON."""
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    write_atomically(RESULTS / name, lambda handle: handle.write(text.encode()))
    print(text)


def matching(records: Iterable[Record], **fields: Any) -> list[Record]:
    """The records that have these values."""
    return [record for record in records if all(record.get(name) == value for name, value in fields.items())]


def newest(records: Iterable[Record], *names: str) -> list[Record]:
    """The last record of every combination of some fields, in the order in which the combinations first appear."""
    return list({tuple(record.get(name) for name in names): record for record in records}.values())


def means(records: Iterable[Record], *names: str) -> list[Record]:
    """For every combination of some fields, sorted, the means of all numbers, and how many records they are of."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    return [dict(zip(names, key, strict=True)) | mean_of(found) for key, found in sorted(groups.items())]


def mean_of(records: list[Record]) -> Record:
    """Means of every number over the records that have it, and the number of records as ``count``."""
    numbers: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, Real):
                numbers.setdefault(name, []).append(float(value))
    return {name: statistics.mean(values) for name, values in numbers.items()} | {"count": len(records)}


Cell = str | Callable[[Record], str]


def table(records: Iterable[Record], columns: Mapping[str, Cell]) -> str:
    """Records as a table in markdown.

    Args:
        records: one row each.
        columns: heading -> a format string such as ``"{loss:.3f}"``, or a function of the record. A field that the
            record lacks leaves a format string's place empty.
    """
    return markdown(list(columns), [[_shown(cell, record) for cell in columns.values()] for record in records])


def _shown(cell: Cell, record: Record) -> str:
    if callable(cell):
        return cell(record)
    try:
        return cell.format_map(record)
    except KeyError:
        return ""


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"
