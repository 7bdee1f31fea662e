"""Contestants in separate processes, one working at a time, on one core, killed when late."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.processes import THREAD_VARIABLES

LATE_SHARE, LATE_SECONDS = 0.2, 2.0
"""A contestant is killed when it is later than this share of its limit, and these seconds."""

_ROOT = Path(__file__).parents[2]

_START_SECONDS = 900.0
"""To import and compile."""


@dataclass
class Contest:
    """A context in which contestants solve instances; see :meth:`solve`.

    Attributes:
        core: the processor that all are pinned to.
        started: contestant -> seconds that importing and compiling took.
    """

    core: int
    started: dict[str, float] = field(default_factory=dict)
    _processes: dict[str, _Contestant] = field(default_factory=dict)

    def solve(self, name: str, instance: str, seconds: float, seed: int) -> dict[str, Any]:
        """The record of one solve; ``error`` says "killed" where the contestant was."""
        process = self._processes.get(name)
        if process is None:
            process = self._processes[name] = _Contestant(name, self.core)
            said = process.read(_START_SECONDS)
            if said is None:
                self._end(name)
                return {"error": f"did not start within {_START_SECONDS:g} s"}
            self.started.setdefault(name, said["started"])
        process.write({"instance": instance, "seconds": seconds, "seed": seed})
        if process.read(_START_SECONDS) is None:
            self._end(name)
            return {"error": "the process ended before the search began"}
        start, allowed = time.perf_counter(), seconds * (1 + LATE_SHARE) + LATE_SECONDS
        record = process.read(allowed)
        if record is None:
            self._end(name)
            taken = time.perf_counter() - start
            return {"error": f"killed after {taken:.1f} s", "taken": taken}
        return record

    def _end(self, name: str) -> None:
        self._processes.pop(name).kill()

    def __enter__(self) -> Contest:
        """The contest itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        for name in list(self._processes):
            self._end(name)


class _Contestant:
    """A worker's process and its two pipes."""

    def __init__(self, name: str, core: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.solvers.worker", name, str(core)], cwd=_ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, "1"),
        )  # fmt: skip
        self._text = b""

    def write(self, job: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write((json.dumps(job) + "\n").encode())
            self._process.stdin.flush()

    def read(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None if it does not come in time, or if the process has ended."""
        assert self._process.stdout is not None
        deadline = time.perf_counter() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._text:
                left = deadline - time.perf_counter()
                if left <= 0.0 or not selector.select(left):
                    return None
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    return None
                self._text += part
        line, _, self._text = self._text.partition(b"\n")
        return dict(json.loads(line))

    def kill(self) -> None:
        """End the process and the children that it started."""
        for pid in [self._process.pid, *_descendants(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def _descendants(pid: int) -> list[int]:
    """Processes below one, which may have sessions of their own; none where the system has no /proc."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found
