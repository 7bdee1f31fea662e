"""The tables and the picture of `benchmarks.studies.evaluations`, from its records."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.records import markdown, matching

Records = list[dict[str, Any]]
SEARCH = "search"
COLOURS = {
    "search": "black", "full": "tab:purple", "full+2": "tab:pink", "additive": "tab:grey", "greedy": "tab:brown",
    "uniform": "tab:olive", "spdy": "tab:green", "evopress": "tab:blue", "evopress, published": "tab:cyan",
    "reinforcement": "tab:red",
}  # fmt: skip


def tables_text(records: Records) -> str:
    """One table for every ratio: medians and ranges over the seeds, a column for every total."""
    parts = [verdict(records)]
    for ratio in sorted({r["ratio"] for r in records}):
        of_ratio = matching(records, ratio=ratio)
        totals = sorted({r["total"] for r in of_ratio})
        rows = [
            [method, *(cell(matching(of_ratio, method=method, total=total)) for total in totals)]
            for method in COLOURS
            if matching(of_ratio, method=method)
        ]
        parts.append(f"## {ratio:g}x\n\n" + markdown(["method", *(f"{total:,}" for total in totals)], rows))
    return "\n".join(parts)


def cell(found: Records) -> str:
    """The median, the range, and the number of seeds where it is not three."""
    if not found:
        return ""
    losses = [r["loss"] for r in found]
    seeds = "" if len(found) == 3 else f", {len(found)} seed" + "s" * (len(found) > 1)
    return f"{statistics.median(losses):.3f} ({min(losses):.3f} to {max(losses):.3f}{seeds})"


def verdict(records: Records) -> str:
    """Where the search is at or below every other method, and where it is not."""
    lines = ["Test loss, median over the seeds and range. A column is the total number of network evaluations.", ""]
    for ratio, total in sorted({(r["ratio"], r["total"]) for r in records}):
        there = matching(records, ratio=ratio, total=total)
        seeds = {r["seed"] for r in there if r["method"] == SEARCH}
        medians = {}
        for method in {r["method"] for r in there}:
            losses = [r["loss"] for r in there if r["method"] == method and r["seed"] in seeds]
            if losses and len(losses) == len(seeds):
                medians[method] = statistics.median(losses)
        others = {method: loss for method, loss in medians.items() if method != SEARCH}
        if SEARCH not in medians or not others:
            continue
        best = min(others, key=lambda method: others[method])
        above = medians[SEARCH] - others[best]
        word = "at or below" if above <= 0 else f"{above:.3f} ABOVE"
        lines.append(
            f"- {ratio:g}x, {total:,}: search {medians[SEARCH]:.3f} is {word} the best of {len(others)} others, "
            f"{best} {others[best]:.3f} ({len(seeds)} seeds)."
        )
    return "\n".join(lines) + "\n"


def draw(records: Records, folder: Path) -> list[Path]:
    """One picture: a panel for every ratio, median test loss against evaluations."""
    ratios = sorted({r["ratio"] for r in records})
    if not ratios:
        return []
    figure, axes = pyplot.subplots(1, len(ratios), figsize=(4.6 * len(ratios), 4.6), squeeze=False)
    for axis, ratio in zip(axes[0], ratios, strict=True):
        for method, colour in COLOURS.items():
            found = matching(records, ratio=ratio, method=method)
            totals = sorted({r["total"] for r in found})
            losses = [[r["loss"] for r in matching(found, total=total)] for total in totals]
            if not totals:
                continue
            width = 2.4 if method == SEARCH else 1.2
            axis.plot(
                totals, [*map(statistics.median, losses)], marker="o", color=colour, label=method, linewidth=width
            )
            axis.fill_between(totals, [*map(min, losses)], [*map(max, losses)], color=colour, alpha=0.08)
        axis.set(xscale="log", yscale="log", xlabel="network evaluations, all included", title=f"{ratio:g}x")
        axis.grid(True, which="both", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("cross-entropy on test images, no fine-tuning")
    axes[0][-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    path = folder / "evaluations.png"
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return [path]
