"""The general search for minor embeddings, in a separate process.

minorminer holds Python's lock while it searches, ignores Ctrl-C and overruns its own time-out (13 s instead of 6 s on
300 variables). A process can be ended on time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from qubo_compress._internal.optional import require
from qubo_compress.errors import QuboCompressError

_POLL_SECONDS = 0.05
_SCRIPT = str(Path(__file__).resolve().with_name("minor_embedding_process.py"))
_STARTING_SECONDS = 1.0
"""Approximate seconds for the process to start and import, subtracted from the time of its search."""


def find_minor(
    couplings: Iterable[tuple[int, int]],
    variables: int,
    edges: Iterable[tuple[int, int]],
    seed: int,
    seconds: float,
    stop: Callable[[], bool],
) -> list[list[int]] | None:
    """Chains of qubits for variables 0, 1, ..., with a coupler for each coupling; None if none was found in time.

    Args:
        couplings: pairs of variables.
        variables: how many there are.
        edges: couplers of the chip.
        seed: of the search; the same seed finds the same embedding if given the time.
        seconds: wall clock, after which the process is ended.
        stop: polled several times a second; True gives up.

    Raises:
        MissingDependency: when minorminer is not installed.
        QuboCompressError: when the process fails.

    Example:
        >>> square = [(0, 1), (1, 2), (2, 3), (3, 0)]
        >>> chains = find_minor([(0, 1), (1, 2), (0, 2)], 3, square, 0, 20.0, lambda: False)
        >>> sorted(len(chain) for chain in chains)
        [1, 1, 2]
    """
    require("minorminer")
    task = {
        "source": [[int(u), int(v)] for u, v in couplings] + [[v, v] for v in range(variables)],
        "target": [[int(u), int(v)] for u, v in edges],
        "seed": seed,
        "timeout": max(0.1, seconds - _STARTING_SECONDS),
    }
    end = time.perf_counter() + seconds
    command = [sys.executable, "-P", _SCRIPT]
    # A file, not a pipe: after a timeout, `communicate` would not send the rest of a task that a pipe cannot hold.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as source,
        _started(command, task, source) as process,
    ):
        try:
            while True:
                if stop() or time.perf_counter() >= end:
                    return None
                try:
                    answer, _ = process.communicate(timeout=_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
    if process.returncode != 0:
        raise QuboCompressError(
            f"the search for a minor embedding ended with code {process.returncode}; see its output above"
        )
    found = json.loads(answer)
    return [found[str(v)] for v in range(variables)] if found else None


def _started(command: list[str], task: dict[str, Any], source: IO[str]) -> subprocess.Popen[str]:
    """The process, which reads its task from the file."""
    json.dump(task, source)
    source.seek(0)
    return subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, text=True)  # noqa: S603
