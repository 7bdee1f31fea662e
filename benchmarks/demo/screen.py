"""What the demo ends with: one table, one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table

from benchmarks.demo.comparison import Compared, Contender

COLOURS = {"uniform": "#b0532c", "additive": "#8a7f2c", "ours": "#1f6f8b"}


def last_screen(found: Compared, ratio: float, rule: str) -> Group:
    """The comparison as a table, and how to read it."""
    examples = found.contenders[0].examples
    table = Table(title=f"compressed {ratio:g} times, judged on {examples:,} test examples")
    for name in ("", "bytes", "accuracy", "change", "flips"):
        table.add_column(name, justify="left" if not name else "right")
    for one in found.contenders:
        table.add_row(*row_of(one))
    won = f"the plan taken is that of {' and '.join(found.winner)}, the best on {_checked(found)} validation examples"
    return Group(
        table,
        "change: points of accuracy against the original; flips: answers that differ from its own; 95 % intervals",
        f"ratio {ratio:g}: {rule}",
        won,
    )


def row_of(one: Contender) -> tuple[str, ...]:
    """One contender as cells of the table."""
    if one.name == "original":
        return one.name, f"{one.bytes:,}", f"{one.accuracy:.1f} %", "", ""
    change, flipped = one.change, one.flipped
    return (
        one.name, f"{one.bytes:,}", f"{one.accuracy:.1f} %",
        f"{change[0]:+.1f} ({change[1]:+.1f} to {change[2]:+.1f})",
        f"{flipped[0]:.1f} % ({flipped[1]:.1f} to {flipped[2]:.1f})",
    )  # fmt: skip


def _checked(found: Compared) -> str:
    return f"{found.result.comparison.examples:,}"


def draw(networks: Sequence[Sequence[Contender]], path: Path) -> None:
    """A picture of the points lost and the answers flipped: a dot for each network, a line at the mean.

    Args:
        networks: the contenders of each network; of a single one, with its intervals.
        path: of the file.
    """
    figure = Figure(figsize=(8.0, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title, value_of in zip(
        figure.subplots(1, 2, sharey=True),
        ("points of test accuracy lost", "answers that differ from the original's, percent"),
        (lambda one: tuple(-value for value in one.change), lambda one: one.flipped),
        strict=True,
    ):
        for row, (name, colour) in enumerate(COLOURS.items()):
            values = [value_of(one) for contenders in networks for one in contenders if one.name == name]
            middles = [value[0] for value in values]
            axes.plot(middles, [row] * len(values), "o", color=colour, alpha=0.75)
            axes.plot([sum(middles) / len(middles)] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
            if len(values) == 1:
                axes.plot(sorted(values[0][1:]), [row] * 2, color=colour, linewidth=1)
        axes.set_yticks(range(len(COLOURS)), list(COLOURS))
        axes.set_ylim(len(COLOURS) - 0.5, -0.5)
        axes.set_xlabel(title)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
    figure.savefig(path, dpi=150)
