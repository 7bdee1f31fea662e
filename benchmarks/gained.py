"""The picture of README and of the site: accuracy over file size, for three ways of choosing.

    python -m benchmarks.gained

Reads the records of ``benchmarks.studies.ratios`` and writes ``docs/pictures/gained.png``.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.records import RESULTS, Record, newest, read

PATH = RESULTS.parents[1] / "docs" / "pictures" / "gained.png"
CURVES = {
    "close": ("all interactions (ours)", "#00695c", "o"),
    "linear": ("each layer alone (additive)", "#c77700", "s"),
    "uniform": ("one choice for all layers (uniform)", "#777777", "^"),
}
"""Method of the records -> label, colour, marker."""


def points(method: str) -> list[Record]:
    """The newest record of a method at every ratio, largest file first."""
    found = newest([r for r in read(RESULTS / "ratios.jsonl") if r["method"] == method], "ratio")
    return sorted(found, key=lambda record: record["ratio"])


def draw(path: Path = PATH) -> Path:
    """Write the picture."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    original = points("close")[0]["original_accuracy"]
    axes.axhline(original, color="black", linewidth=1, linestyle=":")
    axes.annotate(
        f"original network: {original:.1f} %, 1,084 kB", (140, original), textcoords="offset points", xytext=(0, 5)
    )
    for method, (label, colour, marker) in CURVES.items():
        found = points(method)
        sizes = [record["bytes"] / 1_000 for record in found]
        axes.plot(
            sizes, [record["accuracy"] for record in found], color=colour, marker=marker, linewidth=2, label=label
        )
        last = found[-1]
        axes.annotate(
            f"{last['accuracy']:.1f} %", (last["bytes"] / 1_000, last["accuracy"]), color=colour, va="center",
            textcoords="offset points", xytext=(8, {"uniform": 3, "linear": -3}.get(method, 0)), fontweight="bold",
        )  # fmt: skip
    for record in points("close"):
        axes.annotate(
            f"{record['ratio']:.0f} times smaller",
            (record["bytes"] / 1_000, 72.3),
            ha="center",
            fontsize=8,
            color="#555",
        )
    axes.set(xlim=(142, 82), ylim=(72, 90), xlabel="size of the file, kB (smaller to the right)")
    axes.set_ylabel("right answers on 10,000 test images, %")
    axes.set_title("ResNet-20 on CIFAR-10, compressed, before any repair or training", fontsize=11)
    axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.32), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


if __name__ == "__main__":
    print(draw())
