"""Progress bars on a terminal and in a notebook, by rich; lines of text elsewhere.

In a notebook the bar is one output that is updated, which every notebook program can do: no widgets are needed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qubo_compress._internal.optional import require

BETWEEN = 0.2
"""Least seconds between two updates of an output."""


SILENT = 5.0
"""Seconds between two lines of text, where there is neither a terminal nor a notebook."""


class Output(Protocol):
    """An output of a notebook."""

    def update(self, shown: Any) -> None:
        """Show something else there."""


def new_output(shown: Any) -> Output:
    """Show something in a new output of the cell that runs."""
    output: Output = require("IPython.display").display(shown, display_id=True)
    return output


@contextlib.contextmanager
def live_bar(
    name: str,
    total: float,
    console: Console | None = None,
    output: Callable[[Any], Output] = new_output,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[float], None]]:
    """A bar for finished work, which disappears at the end; where output is piped, lines of text.

    Args:
        name: of the work.
        total: amount of it.
        console: where to show it; default: the terminal or notebook.
        output: shows something in a new output of a notebook.
        clock: seconds.

    Yields:
        A function to be called with the amount of work just done.
    """
    console = console or get_console()
    if not console.is_terminal and not console.is_jupyter:
        yield _lines(name, total, console, clock)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task(name, total=total)
    if not console.is_jupyter:
        with bar:
            yield lambda done: bar.advance(task, done)
        return
    place, last = output(bar), clock()

    def advance(done: float) -> None:
        nonlocal last
        bar.advance(task, done)
        now = clock()
        if now - last >= BETWEEN:
            place.update(bar)
            last = now

    try:
        yield advance
    finally:
        place.update(Nothing())


def _lines(name: str, total: float, console: Console, clock: Callable[[], float]) -> Callable[[float], None]:
    """Say every few seconds how much is done, and how long the rest will take."""
    started = last = clock()
    finished = 0.0

    def advance(done: float) -> None:
        nonlocal last, finished
        finished, now = finished + done, clock()
        if now - last >= SILENT and 0 < finished < total:
            left = (now - started) * (total - finished) / finished
            console.print(
                f"{name}: {100 * finished / total:.0f} %, about {left:.0f} s left", highlight=False, soft_wrap=True
            )
            last = now

    return advance


class Nothing:
    """Shows as nothing, which removes a bar."""

    def __repr__(self) -> str:
        """Nothing."""
        return ""

    def _repr_html_(self) -> str:
        return "<!-- done -->"


def tracked(count: int, name: str, show: bool) -> Iterator[int]:
    """0, 1, ... below ``count``, with a bar if ``show``.

    Example:
        >>> list(tracked(3, "counting", show=False))
        [0, 1, 2]
    """
    with live_bar(name, count) if show and count else contextlib.nullcontext(lambda _: None) as advance:
        for number in range(count):
            yield number
            advance(1)
