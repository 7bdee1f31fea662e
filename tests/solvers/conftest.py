"""A clock that goes on when it is read, so that no test of a time limit counts seconds; Ctrl-C; what is left behind."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from qubo_compress import solve
from qubo_compress.testing.loopback_leap import LoopbackLeap


@pytest.fixture(autouse=True)
def _caches_are_temporary(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))


class Clock:
    """Goes on by one step whenever it is read, so that a load on the machine changes nothing."""

    def __init__(self, step: float) -> None:
        self.step, self.reads, self.ahead = step, 0, 0.0

    def __call__(self) -> float:
        self.reads += 1
        return self.step * self.reads + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], AbstractContextManager[Clock]]:
    """``with clock(step) as wound``: in there ``time.perf_counter`` is such a clock."""

    @contextmanager
    def wind(step: float) -> Iterator[Clock]:
        with monkeypatch.context() as patched:
            wound = Clock(step)
            patched.setattr(time, "perf_counter", wound)
            yield wound

    return wind


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[LoopbackLeap]:
    """A service with the module's ``CHIPS``; its ``WARMED_UP`` solvers have compiled what they compile once."""
    module = request.module
    with LoopbackLeap(chips=module.CHIPS, eager=True) as running, running.environment():
        for name in module.WARMED_UP:
            solve(module.PROBLEM, name, time_limit=600.0, reserve=0.2, **running.client_options)
        yield running


@pytest.fixture
def no_faults(server: LoopbackLeap) -> Iterator[None]:
    """The service does as it should, unless the test itself says otherwise."""
    server.faults.clear()
    yield
    server.faults.clear()


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[float], None]]:
    """``ctrl_c(seconds)`` presses it so many seconds later, unless the test is over by then.

    A search under it gets a time limit that no test may take: that it ends at all shows that it was interrupted.
    """
    timers: list[threading.Timer] = []

    def press(seconds: float) -> None:
        timers.append(threading.Timer(seconds, signal.raise_signal, [signal.SIGINT]))
        timers[-1].start()

    yield press
    for timer in timers:
        timer.cancel()
        timer.join()


def _threads() -> set[threading.Thread]:
    """All but those of the loopback server, which it starts when it needs them."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("loopback-leap")}


def _sockets() -> set[str]:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:  # the folder's own handle
            continue
    return {link for link in links if link.startswith("socket:")}


@contextmanager
def _nothing_left_behind() -> Iterator[None]:
    threads, sockets = _threads(), _sockets()
    yield
    for look in range(3000):
        if look % 50 == 10:
            gc.collect()  # what a refused connection holds lives as long as its exception, which is part of a cycle
        left = (_threads() - threads, _sockets() - sockets)
        if not any(left):
            return
        time.sleep(0.02)
    raise AssertionError(f"left behind: {left}")


@pytest.fixture
def nothing_left_behind() -> Callable[[], AbstractContextManager[None]]:
    """``with nothing_left_behind():`` no thread and no socket, some moment after what is in there has ended.

    The server solves in threads of its own for as long as it likes, so that one look is not enough.
    """
    return _nothing_left_behind
