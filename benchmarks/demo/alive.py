"""Signs of life: a line for every step, and one every few seconds where there are no progress bars."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console


class Alive:
    """Says which step runs and, every few seconds, that it still does.

    On a terminal the library's bars move; the lines between are for output that is piped, where bars do not show.

    Args:
        console: to print on.
        seconds: between two lines; infinite for none.
        clock: returns seconds.

    Example:
        >>> with Alive(Console()) as alive:
        ...     alive.step("counting")
        counting ...
    """

    def __init__(self, console: Console, seconds: float = 4.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._console, self._seconds, self._clock = console, seconds, clock
        self._ended = threading.Event()
        self._name, self._since = "starting", clock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def step(self, name: str) -> None:
        """Begin a step."""
        self._name, self._since = name, self._clock()
        self._console.print(f"{name} ...", highlight=False)

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds):
            self.tell()

    def tell(self) -> None:
        """Say how long the step has run, where no bars do."""
        if not self._console.is_terminal:
            self._console.print(f"  {self._clock() - self._since:.0f} s: {self._name}", highlight=False)

    def __enter__(self) -> Alive:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
