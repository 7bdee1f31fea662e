"""The pictures of a report, each as the bytes of an SVG or PNG image.

Only matplotlib's object interface is used: no figure registry, no window, and no setting stays changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress._internal.text import printable
from qubo_compress.page.drawing import (
    AMBER,
    BLUE,
    FAINT,
    INK,
    PALE_BLUE,
    PAPER,
    RED,
    SOFT,
    TEAL,
    WIDTH,
    ImageFormat,
    diverging,
    figure_of,
    plain_axes,
    to_bytes,
)
from qubo_compress.page.numbers import number, signed, size
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.report.amounts import plus_minus
from qubo_compress.report.facts import Bundles, GroupRow, bundle, bundled_factor, bundled_rows, group_rows
from qubo_compress.report.front import Front
from qubo_compress.report.verdict import held_against, quoted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qubo_compress.pipeline.compress import CompressionResult
    from qubo_compress.selection.candidates import Candidate
    from qubo_compress.selection.front import FrontPoint


POINTS = "points"
"""Identifier of the points of a picture that tell something below the pointer."""

MOST_ROWS = 48
VECTORS_JOINED_FROM = 26
MOST_CHOICES = 400
"""A map of all choices shows at most this many: of more, evenly chosen ones."""


def picture_bundles(rows: Sequence[GroupRow]) -> Bundles:
    """The groups of a result, joined so that they fit a picture."""
    return bundle(rows, most=MOST_ROWS, vectors_from=VECTORS_JOINED_FROM)


def layers(result: CompressionResult, image_format: ImageFormat = "svg") -> bytes:
    """Bits, share of zeros, and bytes before and after, one row per group."""
    every = group_rows(result)
    rows = bundled_rows(every, picture_bundles(every))
    places = np.arange(len(rows), dtype=np.int64)
    figure = figure_of(WIDTH, 1.0 + 0.27 * len(rows))
    bits, zeros, sizes = figure.subplots(1, 3, sharey=True, width_ratios=(1.0, 0.8, 1.25))
    for axes in (bits, zeros, sizes):
        plain_axes(axes)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
    _bits(bits, rows, places)
    _zeros(zeros, rows, places)
    _sizes(sizes, rows, places)
    bits.set_yticks(places, [short(row.name) for row in rows])
    return to_bytes(figure, image_format)


def _bits(axes: Axes, rows: Sequence[GroupRow], places: IntArray) -> None:
    # One group kept at 32 bits must not flatten the difference between 2 and 4.
    most = max(8.0, min(16.0, max(row.bits for row in rows)))
    colours = [BLUE if row.kind == "weight" else PALE_BLUE for row in rows]
    axes.barh(places, [min(row.stored_bits, most) for row in rows], height=0.62, color=colours)
    inside = [(place, row.bits) for place, row in zip(places, rows, strict=True) if row.bits <= most]
    axes.plot([b for _, b in inside], [p for p, _ in inside], "|", color=INK, markersize=9, markeredgewidth=1.6)
    for place, row in zip(places, rows, strict=True):
        beyond = max(min(row.stored_bits, most), row.bits if row.bits <= most else 0.0)
        axes.text(beyond + 0.025 * most, place, f"{row.stored_bits:.1f}", va="center", fontsize=8, color=SOFT)
    axes.set_xlim(0, 1.17 * most)
    axes.locator_params(axis="x", nbins=5, integer=True)
    _titled(axes, "Bits per value", "bar: stored, all included     line: code")


def _zeros(axes: Axes, rows: Sequence[GroupRow], places: IntArray) -> None:
    axes.barh(places, [100 * (row.zeros or 0.0) for row in rows], height=0.62, color=TEAL)
    for place, row in zip(places, rows, strict=True):
        text = "–" if row.zeros is None else f"{100 * row.zeros:.0f}"
        axes.text(100 * (row.zeros or 0.0) + 2, place, text, va="center", fontsize=8, color=SOFT)
    axes.set_xlim(0, 115)
    axes.set_xticks([0, 25, 50, 75, 100])
    _titled(axes, "Zeros, % of weights", "pruned or rounded to zero")


def _sizes(axes: Axes, rows: Sequence[GroupRow], places: IntArray) -> None:
    most = max(row.original_bytes for row in rows)
    axes.barh(places, [row.original_bytes for row in rows], height=0.62, color=FAINT)
    axes.barh(places, [row.bytes for row in rows], height=0.62, color=AMBER)
    for place, row in zip(places, rows, strict=True):
        text = f"{size(row.original_bytes)} → {size(row.bytes)}"
        right = max(row.original_bytes, row.bytes)
        axes.text(right + 0.015 * most, place, text, va="center", fontsize=8, color=SOFT)
    axes.set_xlim(0, 1.42 * most)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: size(value))
    _titled(axes, "Bytes", "grey: before     amber: after")


def prediction(result: CompressionResult, image_format: ImageFormat = "svg") -> bytes:
    """Predicted loss change against what was measured: the plans of every round, and all other candidates."""
    figure = figure_of(0.5 * WIDTH, 4.3)
    axes = figure.subplots()
    plain_axes(axes)
    axes.grid(color=FAINT, linewidth=0.8)
    found = [(candidate.predicted, held_against(result, candidate)) for candidate in _measured(result)]
    pool = [(before, after.mean, 2 * after.standard_error) for before, after in found]
    points = [(turn.predicted, held_against(result, turn.chosen).mean) for turn in result.rounds]
    if pool:
        xs, ys, errors = zip(*pool, strict=True)
        bars = [value if math.isfinite(value) else 0.0 for value in errors]
        label = "plans measured, ± 2 standard errors"
        drawn = axes.errorbar(xs, ys, bars, fmt="o", color=PALE_BLUE, markersize=6, elinewidth=1, label=label)
        drawn.lines[0].set_gid(POINTS)
    taken = max(number for number, found in enumerate(result.rounds) if found.accepted)
    for index, (x, y) in enumerate(points):
        colour = BLUE if result.rounds[index].accepted else PAPER
        axes.plot([x], [y], "o", color=colour, markeredgecolor=BLUE, markersize=15, markeredgewidth=1.4, zorder=3)
        ink = PAPER if result.rounds[index].accepted else BLUE
        axes.text(x, y, str(index), ha="center", va="center", fontsize=9, color=ink, zorder=4, fontweight="bold")
    values = [value for point in (*points, *pool) for value in point[:2] if math.isfinite(value)]
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.12 * max(high - low, 1e-6)
    axes.axline((0.0, 0.0), slope=1.0, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="predicted = measured")
    axes.plot([], [], "o", color=BLUE, markersize=9, label=f"plan of a round (number {taken} was taken)")
    shrinkage = result.table.provenance.shrinkage
    if result.recovered_comparison is not None:
        again = result.recovered_comparison.held_against(shrinkage).mean
        axes.axhline(again, color=TEAL, linewidth=1.4, label="measured, plan taken and recovered")
        low = min(low, again)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel("predicted rise of the loss (calibration examples)", fontsize=9, color=INK)
    axes.set_ylabel(f"measured {_measure(result)} (held-out examples)", fontsize=9, color=INK)
    _legend(figure)
    return to_bytes(figure, image_format)


def _measured(result: CompressionResult) -> list[Candidate]:
    candidates = [candidate for turn in result.rounds for candidate in turn.candidates]
    return [candidate for candidate in candidates if math.isfinite(held_against(result, candidate).mean)]


def told_by_plans(result: CompressionResult) -> list[str]:
    """What the points of :func:`prediction` tell: the plan's names, what was predicted and what was measured."""
    return [
        f"{quoted(candidate)}: predicted {signed(candidate.predicted)}, measured "
        f"{plus_minus(held_against(result, candidate))}"
        for candidate in _measured(result)
    ]


def _measure(result: CompressionResult) -> str:
    shrinkage = result.table.provenance.shrinkage
    return "divergence" if shrinkage >= 0.5 or result.applied_comparison.by_divergence else "loss change"


def interactions(result: CompressionResult, image_format: ImageFormat = "svg") -> bytes | None:
    """What each pair of groups of the plan adds to the loss; None without cross terms."""
    bundles = picture_bundles(group_rows(result))
    found = bundled_factor(result, bundles)
    if found is None or len(bundles.labels) < 2:
        return None
    off = found[0].copy()
    np.fill_diagonal(off, np.nan)
    names = [short(label, 30) for label in bundles.labels]
    edge, font = max(3.5, min(8.4, 0.22 * len(names))), 8.5 if len(names) <= 26 else 7.0
    # The layout engine ignores how far upright labels reach below a square image: leave more room than they need, and
    # crop the rest.
    below = 0.011 * font * max(len(name) for name in names)
    figure = figure_of(0.65 * WIDTH, edge + 1.0 + below)
    axes = figure.subplots()
    _map(figure, axes, off, names, float(np.nanmax(np.abs(off))) or 1e-12, font)
    axes.set_title("Loss that a pair of layers adds to the sum of both", fontsize=10, color=INK, loc="left")
    axes.set_yticks(range(len(names)), names, fontsize=font)
    return to_bytes(figure, image_format, tight=True)


def _map(figure: Figure, axes: Axes, values: FloatArray, names: Sequence[str], largest: float, font: float) -> None:
    """An image of signed values up to ``largest``, stretched so that small ones show."""
    norm = require("matplotlib.colors").AsinhNorm(largest / 20, vmin=-largest, vmax=largest)
    plain_axes(axes)
    axes.set_facecolor("none")
    image = axes.imshow(values, cmap=diverging(), norm=norm, interpolation="nearest")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", location="top", shrink=0.9, aspect=32, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, colors=SOFT, length=2)
    ticks = [-largest, -largest / 10, 0.0, largest / 10, largest]
    bar.set_ticks(ticks, labels=[number(tick) for tick in ticks])
    bar.ax.minorticks_off()


def all_choices(result: CompressionResult, image_format: ImageFormat = "svg") -> bytes | None:
    """Cosines between the effects of all choices of all groups; None without a factor."""
    table = result.table
    if table.factor is None:
        return None
    features = table.factor.astype(np.float64)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    # A choice that changes nothing has no direction, and would draw an empty stripe.
    moved = (length[:, 0] > 1e-9) & (length[:, 0] > 1e-6 * length.max())
    shown = np.flatnonzero(moved)[:: choice_step(int(moved.sum()))]
    features = features[shown] / length[shown]
    group_of = np.repeat(np.arange(len(table.choices)), np.diff(table.offsets))[shown]
    if len(features) < 2:
        return None
    figure = figure_of(0.72 * WIDTH, 0.53 * WIDTH)
    axes = figure.subplots()
    plain_axes(axes)
    axes.set_facecolor("none")
    image = axes.imshow(features @ features.T, cmap=diverging(), vmin=-1, vmax=1, interpolation="nearest")
    starts = np.flatnonzero(np.diff(group_of)) + 0.5
    axes.set_xlim(-0.5, len(features) - 0.5)
    axes.set_ylim(len(features) - 0.5, -0.5)
    if len(starts) <= 60:
        axes.hlines(starts, -0.5, len(features) - 0.5, color=PAPER, linewidth=0.6)
        axes.vlines(starts, -0.5, len(features) - 0.5, color=PAPER, linewidth=0.6)
    names, middles = _spread_labels(table.group_names, group_of, least=len(features) / 30)
    axes.set_yticks(middles, names, fontsize=8)
    axes.set_xticks([])
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=28, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, colors=SOFT, length=2)
    return to_bytes(figure, image_format, tight=True)


def choice_step(count: int) -> int:
    """Every which choice a map of all choices shows."""
    return max(1, math.ceil(count / MOST_CHOICES))


def _spread_labels(names: Sequence[str], group_of: IntArray, least: float) -> tuple[list[str], list[float]]:
    """Labels at the middle of their groups, without those that would touch the previous one."""
    labels: list[str] = []
    middles: list[float] = []
    for group in np.unique(group_of).tolist():
        where = np.flatnonzero(group_of == group)
        middle = float(where.mean())
        if not middles or middle - middles[-1] >= least:
            labels.append(short(names[group], 30))
            middles.append(middle)
    return labels, middles


def trace(result: CompressionResult, image_format: ImageFormat = "svg") -> bytes | None:
    """The solver's best energy and its bound over time; None when it recorded nothing."""
    points = result.solution.trace
    if not points:
        return None
    figure = figure_of(0.5 * WIDTH, 3.6)
    axes = figure.subplots()
    plain_axes(axes)
    axes.grid(color=FAINT, linewidth=0.8)
    solve = result.solution.timing.get("solve", 0.0) + result.solution.timing.get("build", 0.0)
    end = max(points[-1][0], solve)
    energies = [(seconds, energy) for seconds, energy, _ in points if math.isfinite(energy)]
    bounds: list[tuple[float, float]] = []
    for seconds, _, bound in points:
        # A later stage of the search starts without a bound; the earlier one still holds.
        if bound is not None and math.isfinite(bound) and (not bounds or bound > bounds[-1][1]):
            bounds.append((seconds, bound))
    if result.solution.bound is not None and (not bounds or result.solution.bound > bounds[-1][1]):
        bounds.append((end, result.solution.bound))
    _steps(axes, energies, end, BLUE, "best plan so far")
    if bounds:
        _steps(axes, bounds, end, AMBER, "lower bound")
    axes.set_xlim(left=0.0)
    axes.set_xlabel("seconds of solving", fontsize=9, color=INK)
    axes.set_ylabel("predicted rise of the loss", fontsize=9, color=INK)
    if len({value for _, value in (*energies, *bounds)}) == 1:
        # Otherwise the axis would magnify rounding noise around one value.
        value = energies[0][1] if energies else bounds[0][1]
        axes.set_ylim(value - max(0.1 * abs(value), 1e-6), value + max(0.1 * abs(value), 1e-6))
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    _legend(figure)
    return to_bytes(figure, image_format)


def _steps(axes: Axes, points: Sequence[tuple[float, float]], end: float, colour: str, label: str) -> None:
    seconds = [point[0] for point in points]
    values = [point[1] for point in points]
    axes.step([*seconds, end], [*values, values[-1]], where="post", color=colour, linewidth=1.8, label=label)
    axes.plot(seconds, values, "o", color=colour, markersize=4)


def pareto_front(
    result: CompressionResult, front: Front | Sequence[FrontPoint], image_format: ImageFormat = "svg"
) -> bytes | None:
    """Predicted loss over compression ratio, with bounds; the plan taken, predicted and measured."""
    points = front.points if isinstance(front, Front) else tuple(front)
    if not points:
        return None
    figure = figure_of(0.5 * WIDTH, 3.6)
    axes = figure.subplots()
    plain_axes(axes)
    axes.grid(color=FAINT, linewidth=0.8)
    ratios = [point.plan.ratio for point in points]
    energies = [point.energy for point in points]
    label = "best plan found, predicted"
    axes.plot(ratios, energies, "o-", color=BLUE, linewidth=1.8, markersize=6, label=label, gid=POINTS)
    bounded = [(point.plan.ratio, point.bound) for point in points if point.bound is not None]
    if bounded:
        label = "lower bound"
        axes.plot(*zip(*bounded, strict=True), "_", color=AMBER, markersize=15, markeredgewidth=2, label=label)
    mine, shrinkage = result.plan.ratio, result.table.provenance.shrinkage
    label = "plan of this report, measured"
    axes.plot(
        [mine], [result.applied_comparison.held_against(shrinkage).mean], "D", color=RED, markersize=7, label=label
    )
    if result.recovered_comparison is not None:
        change = result.recovered_comparison.held_against(shrinkage).mean
        axes.plot([mine], [change], "D", color=TEAL, markersize=7, label="the same, recovered")
    axes.set_xlabel("times smaller than the original", fontsize=9, color=INK)
    axes.set_ylabel("rise of the loss", fontsize=9, color=INK)
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    _legend(figure)
    return to_bytes(figure, image_format)


def told_by_sizes(front: Front) -> list[str]:
    """What the points of :func:`pareto_front` tell: size, and what was predicted."""
    return [
        f"{point.plan.ratio:.2f} times smaller, {point.plan.bytes:,} bytes: predicted {signed(point.energy)}"
        for point in front.points
    ]


def short(name: str, most: int = 34) -> str:
    """A name short enough for a picture, and which matplotlib does not parse as a formula.

    Example:
        >>> short("features.block_17.depthwise.convolution.weight", 24)
        'features.bl…ution.weight'
    """
    name = printable(name)
    if len(name) > most:
        half = (most - 1) // 2
        name = f"{name[:half]}…{name[len(name) - (most - 1 - half) :]}"
    return name.replace("$", r"\$")


def _titled(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=10.5, color=INK, loc="left", fontweight="bold", pad=20)
    axes.text(0, 1.0, below, transform=axes.transAxes, fontsize=8, color=SOFT, va="bottom", ha="left")


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", fontsize=8.5, frameon=False, labelcolor=INK, ncols=1)
