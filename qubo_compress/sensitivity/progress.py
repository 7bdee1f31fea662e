"""Progress messages while a measurement runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def say(line: str) -> None:
    """Print one line above the progress bars."""
    Console().print(line, highlight=False)


@contextlib.contextmanager
def progress_bar(show: bool, name: str, total: float) -> Iterator[Callable[[float], None]]:
    """A progress bar for finished work; shows nothing if progress is off."""
    if not show or total == 0:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.advance(task, done)
