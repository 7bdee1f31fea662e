"""Progress messages while a measurement runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console

from qubo_compress._internal.live import live_bar


def say(line: str) -> None:
    """Print one line above the progress bars."""
    Console().print(line, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(show: bool, name: str, total: float) -> Iterator[Callable[[float], None]]:
    """A progress bar for finished work; shows nothing if progress is off."""
    if not show or total == 0:
        yield lambda _: None
        return
    with live_bar(name, total) as advance:
        yield advance
