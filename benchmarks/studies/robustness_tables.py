"""Table and picture of what ``benchmarks.studies.robustness`` recorded.

    python -m benchmarks.studies.robustness_tables

A cell fails where the test loss of ``default`` is above that of its best opponent by more than two standard errors of
the paired difference. The best opponent is chosen on the same test examples, which favours the opponents, and of cells
in which both are equally good one in forty fails by chance.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.records import RESULTS, markdown, read, table
from qubo_compress.selection.candidates import expectations

mpl.use("Agg")
from matplotlib import pyplot as plt

OPPONENTS = ("additive", "uniform", "greedy")
METHODS = ("default", *OPPONENTS)
PATH = RESULTS / "robustness.jsonl"

CELL = {"network": "{network}", "examples": "{examples}", "ratio": "{ratio:g}x"}
"""Columns that say which cell a row is of."""

Key = tuple[Any, ...]
Records = dict[Key, dict[str, Any]]
FACTOR = 2.0
"""A prediction is right where it is within this factor of the measured divergence."""


def newest(path: Path) -> Records:
    """The newest record of each (kind, network, examples, ratio, seed, method)."""
    return {(r["kind"], r["network"], r["examples"], float(r["ratio"]), r["seed"], r["method"]): r for r in read(path)}


class Comparison:
    """One cell that all methods have finished.

    Args:
        records: the newest record of every key.
        cell: (network, examples, ratio, seed).
    """

    def __init__(self, records: Mapping[Key, dict[str, Any]], cell: Key) -> None:
        self.cell = cell
        self.network, self.examples, self.ratio, self.seed = cell
        self.methods = {method: records["cell", *cell, method] for method in METHODS}
        self.best = min(OPPONENTS, key=lambda name: self.methods[name]["recovered_loss"])
        self.against = {name: records["comparison", *cell, name] for name in OPPONENTS}
        self.difference: float = self.against[self.best]["difference"]
        self.standard_error: float = self.against[self.best]["standard_error"]

    @property
    def fails(self) -> bool:
        """Whether the default is worse than the best opponent by more than two standard errors."""
        return not self.difference <= 2 * self.standard_error

    @property
    def better(self) -> bool:
        """Whether the default is better than the best opponent, by whatever."""
        return self.difference < 0

    @property
    def measured(self) -> float:
        """Divergence of the default's plan, applied, on test examples."""
        return float(self.methods["default"]["compressed_divergence"])

    @property
    def held_out(self) -> float:
        """Divergence of the default's plan, applied, on the held-out examples."""
        return float(self._taken["divergence"])

    @property
    def predicted(self) -> float:
        """What the table predicted for the default's plan."""
        return float(self._taken["predicted"])

    @property
    def expected(self) -> float:
        """The same, corrected by the held-out examples' result for the plan with the closest prediction."""
        candidates = self.methods["default"]["candidates"]
        columns = ([c[name] for c in candidates] for name in ("predicted", "divergence"))
        found = expectations(*columns, ["uniform" not in c["names"] for c in candidates])
        return found[candidates.index(self._taken)]

    @property
    def _taken(self) -> dict[str, Any]:
        default = self.methods["default"]
        return next(c for c in default["candidates"] if default["winner"] in c["names"])

    @property
    def impossible(self) -> bool:
        """Whether the prediction is a loss below zero."""
        return self.methods["default"]["predicted"] < -self.methods["default"]["original_loss"]


def comparisons_of(records: Mapping[Key, dict[str, Any]]) -> list[Comparison]:
    """Every cell that is complete, sorted."""
    cells = sorted({key[1:5] for key in records})
    complete = [
        cell
        for cell in cells
        if all("recovered_loss" in records.get(("cell", *cell, method), {}) for method in METHODS)
        and all(("comparison", *cell, opponent) in records for opponent in OPPONENTS)
    ]
    return [Comparison(records, cell) for cell in complete]


def write_tables(path: Path = PATH) -> str:
    """Write the table and the picture beside the records; returns the table."""
    records = newest(path)
    found = comparisons_of(records)
    parts = ["# Robustness\n", summary(found), opponent_table(found), cell_table(found), failure_list(found)]
    parts.append(error_list(records))
    text = "\n".join(part for part in parts if part)
    path.with_suffix(".md").write_text(text)
    if found:
        picture(found, path.with_suffix(".png"))
    return text


def within(predicted: float, measured: float) -> bool:
    """Whether a prediction is right."""
    return measured / FACTOR <= predicted <= measured * FACTOR


def summary(found: list[Comparison]) -> str:
    """What the issue asks, counted."""
    if not found:
        return "Nothing is complete yet.\n"
    many = [c for c in found if c.examples >= 64]

    def share(part: Iterable[object], whole: list[Comparison]) -> str:
        count = sum(map(bool, part))
        return f"{count} of {len(whole)}" + (f" ({count / len(whole):.0%})" if whole else "")

    return (
        f"{len(found)} cells (network x examples x ratio x seed). Worse than the best opponent by more than two "
        f"standard errors: {share((c.fails for c in found), found)}. "
        f"Better than the best opponent from 64 examples up: {share((c.better for c in many), many)}; with fewer: "
        f"{share((c.better for c in found if c.examples < 64), [c for c in found if c.examples < 64])}. "
        f"Predicted within a factor {FACTOR:g} of the plan's divergence on held-out examples: "
        f"{share((within(c.predicted, c.held_out) for c in found), found)} by the table alone, "
        f"{share((within(c.expected, c.held_out) for c in found), found)} corrected by the plan predicted "
        f"most alike; on test examples: {share((within(c.predicted, c.measured) for c in found), found)} and "
        f"{share((within(c.expected, c.measured) for c in found), found)}. "
        f"Predictions below minus the original's loss: {share((c.impossible for c in found), found)}.\n"
    )


def opponent_table(found: list[Comparison]) -> str:
    """The default against each opponent alone, which is what a user of one of them would see.

    The best of three, chosen on the test examples, is hard to meet where all plans are alike: it is the luckiest one.
    """
    rows = []
    for few, name in ((few, name) for few in (True, False) for name in OPPONENTS):
        pairs = [c.against[name] for c in found if (c.examples < 64) is few]
        if pairs:
            gaps = [(pair["difference"], 2 * pair["standard_error"]) for pair in pairs]
            counts = (sum(d < -error for d, error in gaps), sum(d > error for d, error in gaps))
            row = ["under 64" if few else "64 and more", name, str(len(pairs)), *map(str, counts)]
            rows.append([*row, f"{statistics.mean(d for d, _ in gaps):+.4f}"])
    header = ["examples", "opponent", "cells", "default better by two standard errors", "worse", "mean difference"]
    return markdown(header, rows)


def cell_table(found: list[Comparison]) -> str:
    """Means over seeds, a row for each network, number of examples and ratio.

    Seconds and memory are those of the default where nothing came from a cache.
    """
    rows = []
    for network, examples, ratio in sorted({c.cell[:3] for c in found}):
        group = [c for c in found if c.cell[:3] == (network, examples, ratio)]
        first = [c.methods["default"] for c in group]
        row = [network, str(examples), f"{ratio:g}x", str(len(group)), _mean(first, "original_loss")]
        row += [_mean([c.methods[method] for c in group], "recovered_loss") for method in METHODS]
        row += [_mean(first, "original_accuracy", 2)]
        row += [_mean([c.methods[method] for c in group], "recovered_accuracy", 2) for method in METHODS]
        row.append(f"{statistics.mean(c.difference for c in group):+.4f}")
        row.append(f"{math.sqrt(sum(c.standard_error**2 for c in group)) / len(group):.4f}")
        row.append(f"{sum(c.fails for c in group)} of {len(group)}")
        row += [f"{statistics.mean(values):.4f}" for values in zip(*(_predictions(c) for c in group), strict=True)]
        fresh = [record for record in first if not record["from_cache"]]
        row += [_mean(fresh, "seconds", 0), _mean(fresh, "cpu_seconds", 0), _mean(fresh, "peak_memory", 0)]
        rows.append(row)
    header = ["network", "examples", "ratio", "seeds", "loss before", *(f"loss {method}" for method in METHODS)]
    header += ["top-1 before", *(f"top-1 {method}" for method in METHODS), "default - best", "standard error", "fails"]
    header += ["predicted", "corrected", "KL held out", "KL test", "s", "CPU s", "peak MiB"]
    return markdown(header, rows)


def _predictions(found: Comparison) -> tuple[float, ...]:
    return found.predicted, found.expected, found.held_out, found.measured


def failure_list(found: list[Comparison]) -> str:
    """Every cell that fails, by name."""
    top1 = lambda method: lambda c: f"{c['cell'].methods[method or c['best']]['recovered_accuracy']:.2f}"  # noqa: E731
    columns = {
        **CELL, "seed": "{seed}", "best opponent": "{best}", "default - best": "{difference:+.4f}",
        "standard error": "{standard_error:.4f}", "top-1 default": top1("default"), "top-1 best": top1(None),
    }  # fmt: skip
    failed = [vars(c) | {"cell": c} for c in found if c.fails]
    return "## Cells that fail\n\n" + (table(failed, columns) if failed else "None.\n")


def error_list(records: Mapping[Key, dict[str, Any]]) -> str:
    """Every method that raised, with the last line of its error; empty where none did."""
    failed = [record for record in records.values() if "error" in record]
    columns = {**CELL, "seed": "{seed}", "method": "{method}", "error": lambda r: r["error"].replace("|", "/")}
    return "## Not run\n\n" + table(failed, columns) if failed else ""


def picture(found: list[Comparison], path: Path) -> None:
    """Left: the default's test loss against its best opponent's; right: predicted against measured divergence."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained")
    names = sorted({c.network for c in found})
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))
    counts = sorted({c.examples for c in found})
    sizes = {count: 16 + 16 * number for number, count in enumerate(counts)}
    for c in found:
        default, best = c.methods["default"], c.methods[c.best]
        style = {"color": colours[c.network], "s": sizes[c.examples], "alpha": 0.65, "linewidths": 0}
        added = [record["recovered_loss"] - record["original_loss"] for record in (best, default)]
        left.scatter(*added, **style)
        if c.fails:
            left.scatter(*added, facecolors="none", edgecolors="black", s=sizes[c.examples] + 40, linewidths=1.2)
        right.scatter(max(c.measured, 1e-5), max(c.expected, 1e-5), **style)
    _same_axes(left, "symlog", linthresh=0.01)
    _same_axes(right, "log")
    low, high = right.get_xlim()
    right.fill_between([low, high], [low / FACTOR, high / FACTOR], [low * FACTOR, high * FACTOR], color="0.9", zorder=0)
    left.set_xlabel("best of additive, uniform, greedy: test loss above the original's")
    left.set_ylabel("default: test loss above the original's")
    left.set_title("below the line: the default is better (circles: worse by two standard errors)", fontsize=10)
    right.set_xlabel("KL divergence on test examples")
    right.set_ylabel("predicted loss change, corrected by the plan with the closest prediction")
    right.set_title("grey: predicted within a factor 2", fontsize=10)
    for name in names:
        left.scatter([], [], color=colours[name], s=40, label=name)
    for count in counts:
        left.scatter([], [], color="0.5", s=sizes[count], label=f"{count} examples")
    left.legend(fontsize=8, loc="upper left", framealpha=0.9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _same_axes(axes: Any, scale: str, **options: float) -> None:
    """The same scale and range on both axes, with the diagonal."""
    axes.set_xscale(scale, **options)
    axes.set_yscale(scale, **options)
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=0)


def _mean(records: list[dict[str, Any]], name: str, digits: int = 4) -> str:
    """Mean of a figure over records, empty where there is none."""
    return f"{statistics.mean(record[name] for record in records):.{digits}f}" if records else ""


if __name__ == "__main__":
    print(write_tables())
