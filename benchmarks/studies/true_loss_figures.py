"""The table and the pictures of `benchmarks.studies.true_loss`, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.records import matching, means, table

Records = list[dict[str, Any]]

ORDER = (
    "uniform", "greedy", "additive", "additive, shrinkage=1", "spdy", "reinforcement", "evopress",
    "evopress, cross-entropy", "full", "full, shrinkage=1", "full, checked", "full, shrinkage=1, checked",
    "evopress at E2", "full+2", "full+2, shrinkage=1", "evopress, published", "reinforcement, published",
)  # fmt: skip
COLOURS = {
    "evopress": "tab:blue", "spdy": "tab:green", "reinforcement": "tab:red", "additive": "tab:grey",
    "greedy": "tab:brown", "uniform": "tab:olive", "full": "black", "full+2": "tab:purple",
}  # fmt: skip


def table_text(records: Records) -> str:
    """All records as markdown, means and ranges over seeds."""
    losses = lambda r: [o["loss"] for o in matching(records, ratio=r["ratio"], method=r["method"])]  # noqa: E731
    columns = {
        "ratio": "{ratio:g}x", "method": "{method}", "seeds": "{count}", "test loss": "{loss:.3f}",
        "range": lambda r: f"{min(losses(r)):.3f} to {max(losses(r)):.3f}" if r["count"] > 1 else "",
        "top-1 %": "{accuracy:.2f}", "evaluations, thousands": lambda r: f"{r['evaluations'] / 1000:.0f}",
        "seconds": "{seconds:.0f}",
    }  # fmt: skip
    found = means(records, "ratio", "method")
    return table(sorted(found, key=lambda r: (r["ratio"], ORDER.index(r["method"]))), columns)


def draw(records: Records, folder: Path) -> list[Path]:
    """One picture for every network and ratio that has a curve: loss against network evaluations."""
    paths = []
    for network, ratio in sorted({(r["network"], r["ratio"]) for r in records if "curve" in r}):
        found = [r for r in records if (r["network"], r["ratio"]) == (network, ratio)]
        seed = min(r["seed"] for r in found if "curve" in r)
        paths.append(_picture([r for r in found if r["seed"] == seed], network, ratio, folder))
    return paths


def _picture(records: Records, network: str, ratio: float, folder: Path) -> Path:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.8), sharex=True)
    for record in sorted(records, key=lambda r: ORDER.index(r["method"])):
        if "curve" in record and record["method"] != "evopress":
            style = _style(record["method"])
            counts, calibration, test = zip(*record["curve"], strict=True)
            label = record["method"].replace("evopress at E2", "evopress")
            if "cross-entropy" not in label:
                axes[0].step(counts, calibration, where="post", label=label, **style)
            axes[1].step((*counts, record["evaluations"]), (*test, test[-1]), where="post", label=label, **style)
        elif "curve" not in record:
            style = _style(record["method"]) | {"linestyle": "none"}
            filled = style["color"] if "shrinkage" not in record["method"] else "white"
            axes[1].plot(
                record["evaluations"],
                record["loss"],
                marker="o",
                markerfacecolor=filled,
                label=record["method"],
                **style,
            )
    axes[0].set(ylabel="divergence on calibration images", title="what the searches minimise")
    axes[1].set(ylabel="cross-entropy on test images", title="what counts (curves: first 2,000 images)")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="network evaluations (examples forwarded)")
        axis.grid(True, which="both", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8)
    axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(f"{network} at {ratio:g}x, calibration seed {records[0]['seed']}, no fine-tuning")
    figure.tight_layout()
    path = folder / f"true_loss_{network}_{ratio:g}x.png"
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path


def _style(method: str) -> dict[str, Any]:
    name = method.partition(",")[0].partition(" at")[0]
    dashes = "--" if "published" in method else ":" if "cross-entropy" in method else "-"
    return {"color": COLOURS[name], "linestyle": dashes}
