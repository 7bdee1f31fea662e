"""Clocks that jump and threads that compete: simulates the effects of a loaded machine on a solver."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np

Clock = Callable[[], float]


def steady_clock(step: float) -> Clock:
    """A clock that advances by ``step`` seconds on every reading, from any thread.

    Example:
        >>> clock = steady_clock(0.5)
        >>> clock(), clock()
        (0.5, 1.0)
    """
    readings = itertools.count(1)  # one operation of the interpreter, so that threads need no lock
    return lambda: step * next(readings)


def hurried_clock(step: float) -> Clock:
    """The true clock, which also advances by ``step`` seconds on every reading.

    A search that reads it between its steps comes to its time limit after so many steps at most, and never later than
    by the true clock. So a limit that is there to be reached costs no waiting.

    Example:
        >>> clock = hurried_clock(60.0)
        >>> first = clock()
        >>> clock() - first >= 60.0
        True
    """
    steady, true = steady_clock(step), time.perf_counter
    return lambda: true() + steady()


def jumping_clock(seed: int) -> Clock:
    """A clock that advances by a microsecond or by a minute per reading, as if the process had been suspended.

    Example:
        >>> clock = jumping_clock(0)
        >>> readings = [clock() for _ in range(1000)]
        >>> readings == sorted(readings)
        True
    """
    jumps = np.cumsum(10.0 ** np.random.default_rng(seed).uniform(-6.0, 1.8, size=997))
    readings = itertools.count()

    def read() -> float:
        rounds, place = divmod(next(readings), jumps.size)
        return float(rounds * jumps[-1] + jumps[place])

    return read


@contextmanager
def under(clock: Clock) -> Iterator[None]:
    """Replaces ``time.perf_counter`` by the clock within the block, in every thread of the process."""
    with mock.patch.object(time, "perf_counter", clock):
        yield


@contextmanager
def busy_thread() -> Iterator[None]:
    """Runs another thread within the block that constantly competes for the interpreter."""
    ended = threading.Event()

    def spin() -> None:
        while not ended.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
