"""Pictures of the solvers' benchmark: anytime curves and performance profiles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.records import Record
from benchmarks.solvers.contestants import CONTESTANTS
from benchmarks.solvers.gaps import OPTIMUM, gap_of, grouped, longest, time_to_target

_DASHES = {"ours": "-", "exact": "-", "binary sampler": "--", "learning": "-.", "simple": ":"}
_FLOOR = 1e-3


def _style(solver: str, solvers: list[str]) -> dict[str, Any]:
    colours = mpl.colormaps["tab20"]
    kind = CONTESTANTS[solver].kind
    return {
        "color": colours(solvers.index(solver) % 20),
        "linestyle": _DASHES[kind],
        "linewidth": 2.6 if kind == "ours" else 1.4,
        "label": solver,
    }


def anytime_curves(records: list[Record], best: dict[str, dict[str, Any]], path: Path) -> None:
    """Mean gap against wall clock, one panel per instance, from the runs with the longest limit."""
    limit = max(record["seconds"] for record in records)
    instances = list(dict.fromkeys(record["instance"] for record in records))
    solvers = [name for name in CONTESTANTS if any(r["solver"] == name for r in records)]
    cells = grouped(longest(records), "instance", "solver")
    columns = min(3, len(instances))
    lines = math.ceil(len(instances) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * lines + 1.2), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    times = np.geomspace(1e-3, limit, 160)
    for axes, instance in zip(grid.flat, instances, strict=False):
        for solver in solvers:
            found = cells.get((instance, solver), [])
            if found:
                curves = np.array([_gaps_at(record, best, times) for record in found])
                axes.plot(times, np.maximum(curves.mean(axis=0), _FLOOR), **_style(solver, solvers))
        axes.set(xscale="log", yscale="log", ylim=(_FLOOR, 150), xlim=(1e-3, limit))
        proven = "proven optimum" if best[instance]["proven"] else "best known"
        axes.set_title(f"{instance} (gap to {proven})", fontsize=9)
        axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("seconds, building and decoding included")
    for axes in grid[:, 0]:
        axes.set_ylabel("gap, % of random")
    for axes in list(grid.flat)[len(instances) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)


def _gaps_at(record: Record, best: dict[str, dict[str, Any]], times: np.ndarray) -> np.ndarray:
    """Gap of the best answer so far at each time; 100 before the first one."""
    gaps = np.full(times.size, 100.0)
    for seconds, energy in record.get("trace", []):
        gaps[times >= seconds] = min(100.0, gap_of(record, best, energy))
    if "energy" in record:
        gaps[times >= record["taken"]] = min(100.0, gap_of(record, best))
    return np.minimum.accumulate(gaps)


def performance_profile(records: list[Record], best: dict[str, dict[str, Any]], path: Path) -> None:
    """Share of instances solved to the best known within a multiple of the fastest solver's time (Dolan and More)."""
    cells = grouped(longest(records), "solver", "instance")
    solvers = [name for name in CONTESTANTS if any(key[0] == name for key in cells)]
    instances = sorted({key[1] for key in cells})
    times = {key: time_to_target(found, best, OPTIMUM) for key, found in cells.items()}
    fastest = {i: min(times.get((s, i), math.inf) for s in solvers) for i in instances}
    ratios = np.geomspace(1.0, 1e5, 400)
    figure = Figure(figsize=(8.5, 5.0), layout="constrained")
    axes = figure.subplots()
    for solver in solvers:
        own = np.array([times.get((solver, i), math.inf) / fastest[i] for i in instances if np.isfinite(fastest[i])])
        axes.step(ratios, [(own <= ratio).mean() for ratio in ratios], where="post", **_style(solver, solvers))
    axes.set(
        xscale="log", ylim=(0, 1.03), xlim=(1, 1e5), xlabel="time to the best known, as a multiple of the fastest",
        ylabel=f"share of {len(instances)} instances", title="Performance profile (not run counts as not reached)",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=110)
