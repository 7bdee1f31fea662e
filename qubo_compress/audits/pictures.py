"""The pictures of an audit: flips by margin, classes with intervals, and the forgotten examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qubo_compress.page.drawing import (
    AMBER,
    BLUE,
    FAINT,
    INK,
    RED,
    SOFT,
    WIDTH,
    ImageFormat,
    figure_of,
    plain_axes,
    to_bytes,
)

if TYPE_CHECKING:
    from qubo_compress.audits import AuditReport

MOST_CLASSES = 40
COLUMNS = 12


def flips_by_margin(report: AuditReport, image_format: ImageFormat = "svg") -> bytes:
    """Share of differing answers in each bin of the original's margin; harmful ones are darker."""
    figure = figure_of(0.62 * WIDTH, 3.4)
    axes = figure.subplots()
    plain_axes(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    bins = report.margins
    places = np.arange(len(bins))
    shares = np.array([100 * item.share for item in bins])
    ends = np.array([item.interval for item in bins]) * 100
    labelled = report.harmful is not None
    label = "differs, not harmful" if labelled else "differs"
    axes.bar(places, shares, width=0.74, color="#f2d5a5" if labelled else AMBER, label=label)
    if labelled:
        harmful = [100 * (item.harmful or 0) / max(1, item.rows) for item in bins]
        axes.bar(places, harmful, width=0.74, color=AMBER, label="harmful: the original was right")
    spread = np.clip(np.stack([shares - ends[:, 0], ends[:, 1] - shares]), 0.0, None)
    axes.errorbar(places, shares, yerr=spread, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.5)
    axes.set_xticks(places, [f"{item.low:.1f}\nto {item.high:.1f}" for item in bins], fontsize=8)
    axes.set_xlabel("margin of the original (largest logit minus second)", fontsize=9, color=INK)
    axes.set_ylabel("answers that differ, %", fontsize=9, color=INK)
    if labelled:
        axes.legend(fontsize=8.5, frameon=False, labelcolor=INK)
    return to_bytes(figure, image_format)


def class_changes(report: AuditReport, image_format: ImageFormat = "svg") -> bytes:
    """Change of every class's recall with 95 % intervals, worst on top; filled if it is beyond chance."""
    worst = sorted(report.classes, key=lambda item: (item.change, item.label))[:MOST_CLASSES]
    figure = figure_of(0.62 * WIDTH, 1.1 + 0.26 * len(worst))
    axes = figure.subplots()
    plain_axes(axes)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.axvline(0.0, color=SOFT, linewidth=1.0)
    for place, item in enumerate(worst):
        colour = RED if item.change < 0 else BLUE
        low, high = (100 * end for end in item.change_interval)
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
        face = colour if item.changed else "white"
        axes.plot([100 * item.change], [place], "o", color=face, markeredgecolor=colour, markersize=6, zorder=3)
    names = [f"class {item.label}   {100 * item.before:.1f} → {100 * item.after:.1f} %" for item in worst]
    axes.set_yticks(range(len(worst)), names, fontsize=8.5)
    axes.set_ylim(len(worst) - 0.4, -0.6)
    axes.set_xlabel("change of recall, points", fontsize=9, color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    return to_bytes(figure, image_format)


def forgotten_examples(report: AuditReport, image_format: ImageFormat = "png") -> bytes | None:
    """A grid of the forgotten examples, each with its class and the wrong answer; None without images."""
    if report.images is None or not len(report.images):
        return None
    count = len(report.images)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = figure_of(WIDTH * columns / COLUMNS, 1.12 * rows + 0.1)
    grid = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for axes in grid:
        axes.set_axis_off()
    for axes, image, item in zip(grid, report.images, report.forgotten, strict=False):
        axes.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set_title(f"{item.label} → {item.answer}", fontsize=9, color=INK, pad=2.5, y=-0.3)
    return to_bytes(figure, image_format)
