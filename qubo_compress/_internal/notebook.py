"""What notebooks show of an object: a few facts and a short table, readable on light ground and on dark, no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice

from qubo_compress._internal.text import printable

MOST_ROWS = 24
"""Rows of a table; below them is how many there are beyond."""


def fragment(
    title: str,
    facts: Iterable[str] = (),
    head: Sequence[str] = (),
    rows: Iterable[Sequence[str]] = (),
    *,
    names: int = 1,
    more: str = "",
) -> str:
    """A piece of HTML in the colours of the page around it.

    Args:
        title: one line.
        facts: sentences below it.
        head: names of the columns; none: no table.
        rows: of text, all escaped here.
        names: the first so many columns are text, all others numbers.
        more: how to see all rows, if there are more than fit.

    Example:
        >>> print(fragment("a <plan>", ["small"]))
        <div><div style="font-weight:600">a &lt;plan&gt;</div><div>small</div></div>
    """
    parts = [f'<div style="font-weight:600">{_text(title)}</div>']
    parts += [f"<div>{_text(fact)}</div>" for fact in facts if fact]
    if head:
        parts.append(_table(head, iter(rows), names, more))
    return f"<div>{''.join(parts)}</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int, more: str) -> str:
    shown = list(islice(rows, MOST_ROWS))
    beyond = sum(1 for _ in rows)
    lines = "".join(_line(row, "td", names) for row in shown)
    below = f'<div style="opacity:.75">and {beyond:,} more{_text(more)}</div>' if beyond else ""
    # Notebooks align cells in different ways, so every cell says it.
    return (
        f'<table style="margin:.4em 0;border-collapse:collapse"><thead>{_line(head, "th", names)}</thead>'
        f"<tbody>{lines}</tbody></table>{below}"
    )


def _line(cells: Sequence[str], tag: str, names: int) -> str:
    found = []
    for column, cell in enumerate(cells):
        side = "left" if column < names else "right"
        found.append(f'<{tag} style="text-align:{side};padding:.15em .7em .15em 0">{_text(cell)}</{tag}>')
    return f"<tr>{''.join(found)}</tr>"


def _text(text: str) -> str:
    return escape(printable(text))
