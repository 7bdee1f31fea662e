"""Runs the suite beside busy loops: whether it passes must not depend on what else the machine does.

``make stress``, or ``python -m tests.stress [--loops N] [arguments of pytest]``. The exit code is the suite's.

The loops run in the session of the suite. Linux shares the processors between sessions first ("autogroup"), so that
loops in a session of their own, such as those of another terminal, would take no more than one share of many.
They end with the suite, with Ctrl-C, and by themselves when this process is gone. The suite itself runs in four
processes, so that each of its tests has an eighth of the machine on average.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

_LOOP = """
import os, sys
parent = int(sys.argv[1])
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@dataclass
class Load:
    """Busy loops and, once they have ended, what they used.

    Attributes:
        processes: one a loop.
        seconds: of the processor that all of them used together.
    """

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    seconds: float = 0.0


@contextlib.contextmanager
def busy(loops: int) -> Iterator[Load]:
    """``with busy(4):`` so many processes that do nothing but use a processor each, in the caller's session."""
    load = Load()
    try:
        for _ in range(loops):
            load.processes.append(subprocess.Popen([sys.executable, "-S", "-c", _LOOP, str(os.getpid())]))
        yield load
    finally:
        for process in load.processes:
            process.kill()
        for process in load.processes:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            load.seconds += used.ru_utime + used.ru_stime


def run_beside(loops: int, command: list[str]) -> int:
    """Run a command beside busy loops, say how busy they were, and return its exit code."""
    start = time.perf_counter()
    with busy(loops) as load:
        code = _finish(subprocess.Popen(command))
        ran = sum(process.poll() is None for process in load.processes)
    elapsed = time.perf_counter() - start
    print(
        f"stress: {ran} of {loops} loops ran to the end and used {load.seconds:.0f} s of the processor in "
        f"{elapsed:.0f} s, {load.seconds / elapsed:.1f} of {len(os.sched_getaffinity(0))} processors; "
        f"the suite ended with {code}",
        flush=True,
    )
    return code if ran == loops else code or 1


def _finish(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, which hears of Ctrl-C itself; end it when this one is told to end."""
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--loops", type=int, default=4, help="busy loops beside the suite (4)")
    options, arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that "finally" is reached
    return run_beside(options.loops, [sys.executable, "-m", "pytest", "-n", "4", *arguments])


if __name__ == "__main__":
    sys.exit(main())
