"""Cost of a measurement against depth, and against the number of groups.

    python -m benchmarks.studies.depth --depths 20 32 44 56 110

ResNets for 32 x 32 pictures with random weights, which suffice for time; the default menu. CPU seconds per example of
``products`` (one probe) and, up to ``--deepest`` layers, of ``gauss-newton`` on few examples; the exponent is the slope
of log seconds over log layers. ``--groups`` compares a table of filters with one of layers, storing and pricing
included.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch

import qubo_compress as qc
from benchmarks.networks.architectures import ResNet20
from benchmarks.records import RESULTS, environment, markdown, write
from benchmarks.study import Option, command_line
from qubo_compress.sensitivity.metrics.products import Products

METRICS = ("products", "gauss-newton")


def measured(depth: int, metric: str, examples: int, groups: str = "layer") -> tuple[float, int]:
    """CPU seconds of a measurement, and the number of groups."""
    torch.manual_seed(0)
    model = ResNet20(blocks=(depth - 2) // 6)
    inputs, targets = torch.randn(examples, 3, 32, 32), torch.arange(examples) % 10
    with torch.no_grad():
        for _ in range(20):  # statistics of the normalisations: without them outputs grow beyond all bounds
            model(torch.randn(16, 3, 32, 32))
    model.eval()
    chosen = Products(probes=1) if metric == "products" else metric
    start = time.process_time()
    table = qc.measure(model, [(inputs, targets)], metric=chosen, loss="kl", groups=groups, progress=False)
    return time.process_time() - start, len(table.choices)


def seconds_per_example(depths: list[int], metric: str, examples: int, tries: int) -> dict[int, float]:
    """CPU seconds per example without the fixed part, such as storing, by depth.

    The fixed part is that of a measurement of a quarter as many examples. Of the tries, which go over all depths in
    turn, the quickest counts: a difference of two doubles what a busy machine adds.
    """
    few = max(1, examples // 4)
    least = {(depth, count): float("inf") for depth in depths for count in (few, examples)}
    for _ in range(tries):
        for depth, count in least:
            least[depth, count] = min(least[depth, count], measured(depth, metric, count)[0])
    return {depth: (least[depth, examples] - least[depth, few]) / (examples - few) for depth in depths}


def exponent(depths: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log depth."""
    return float(np.polyfit(np.log(depths), np.log(seconds), 1)[0])


def main() -> None:
    """Command line."""
    options = command_line(
        __doc__, depths=[20, 32, 44, 56, 110], examples=160, threads=1,
        metrics=Option(METRICS, "the other's figures are kept", METRICS),
        deepest=Option(56, "deepest network that every choice is run for"), gauss_newton_examples=16, tries=2,
        groups=Option(56, "depth at which filters are compared with layers; 0: none"), group_examples=256,
    )  # fmt: skip
    measured(8, "products", 8)  # compiles
    found: dict[str, dict[int, float]] = {}
    for metric in options.metrics:
        depths = [d for d in options.depths if metric == "products" or d <= options.deepest]
        examples = options.examples if metric == "products" else options.gauss_newton_examples
        found[metric] = seconds_per_example(depths, metric, examples, options.tries)
        print(metric, {depth: round(1000 * value, 1) for depth, value in found[metric].items()}, flush=True)
    for metric in {"products", "gauss-newton"} - set(found):  # of an earlier run, beside the new one
        if (RESULTS / "depth.json").exists():
            known = json.loads((RESULTS / "depth.json").read_text())["found"][metric]
            found[metric] = {int(depth): value for depth, value in known.items()}
    rows = []
    for depth in options.depths:
        row = [f"{1000 * found[m][depth]:.1f}" if depth in found.get(m, {}) else "" for m in METRICS]
        ratio = found["gauss-newton"][depth] / found["products"][depth] if all(row) else None
        rows.append([str(depth), *row, "" if ratio is None else f"{ratio:.0f}"])
    slopes = {name: exponent(list(by), list(by.values())) for name, by in found.items() if len(by) > 1}
    rows.append(["exponent", *(f"{slopes[m]:.2f}" if m in slopes else "" for m in METRICS), ""])
    text = markdown(["layers", "products, CPU ms per example", "gauss-newton", "times"], rows)
    content: dict[str, object] = {"found": found, "exponents": slopes, **environment()}
    if options.groups:
        whole = {
            groups: measured(options.groups, "products", options.group_examples, groups)
            for groups in ("layer", "filter")
        }
        content["groups"] = whole
        text += (
            f"\n{whole['filter'][1]:,} groups of filters took {whole['filter'][0]:.1f} CPU s on "
            f"{options.group_examples} examples, {whole['layer'][1]:,} groups of layers {whole['layer'][0]:.1f}: "
            f"{whole['filter'][0] / whole['layer'][0]:.2f} times as much.\n"
        )
    write("depth.json", content)
    write("depth.md", text)


if __name__ == "__main__":
    main()
