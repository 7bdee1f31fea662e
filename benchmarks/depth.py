"""Cost of a measurement against depth, and against the number of groups.

    python -m benchmarks.depth --depths 20 32 44 56 110

ResNets for 32 x 32 pictures with random weights, which suffice for time; the default menu. CPU seconds per example of
``products`` (one probe) and, up to ``--gauss-newton`` layers, of ``gauss-newton`` on few examples, choices stored
beforehand in both cases; the exponent is the slope of log seconds over log layers. ``--groups`` compares a table of
filters with one of layers, storing and pricing included.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import qubo_compress as qc
from benchmarks.architectures import ResNet20
from benchmarks.records import RESULTS, environment, markdown
from qubo_compress.sensitivity.metrics.products import Products

TRIES = 2
"""Measurements of each size; the quicker one counts, since a difference of two doubles what a busy machine adds."""


def seconds_per_example(depth: int, metric: str, examples: int, groups: str = "layer") -> tuple[float, float, int]:
    """CPU seconds per example without the fixed part, CPU seconds in all, and the number of groups.

    The fixed part, such as storing, is that of a measurement of a quarter as many examples, extrapolated to none.
    """
    torch.manual_seed(0)
    model = ResNet20(blocks=(depth - 2) // 6)
    inputs, targets = torch.randn(examples, 3, 32, 32), torch.arange(examples) % 10
    with torch.no_grad():
        for _ in range(20):  # statistics of the normalisations: without them outputs grow beyond all bounds
            model(inputs[:16])
    model.eval()
    taken = []
    for count in (max(1, examples // 4), examples):
        chosen = Products(probes=1) if metric == "products" else metric
        tries = []
        for _ in range(TRIES):
            start = time.process_time()
            table = qc.measure(
                model, [(inputs[:count], targets[:count])], metric=chosen, loss="kl", groups=groups, progress=False
            )
            tries.append(time.process_time() - start)
        taken.append(min(tries))
    return (taken[1] - taken[0]) / (examples - max(1, examples // 4)), taken[1], len(table.choices)


def exponent(depths: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log depth."""
    return float(np.polyfit(np.log(depths), np.log(seconds), 1)[0])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 32, 44, 56, 110])
    parser.add_argument("--examples", type=int, default=160)
    parser.add_argument("--gauss-newton", type=int, default=56, help="deepest network that every choice is run for")
    parser.add_argument("--gauss-newton-examples", type=int, default=16)
    parser.add_argument(
        "--groups", type=int, default=56, help="depth at which filters are compared with layers; 0: none"
    )
    parser.add_argument("--group-examples", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds_per_example(8, "products", 8)  # compiles
    rows, found = [], {"products": {}, "gauss-newton": {}}
    for depth in options.depths:
        found["products"][depth] = seconds_per_example(depth, "products", options.examples)[0]
        if depth <= options.gauss_newton:
            found["gauss-newton"][depth] = seconds_per_example(depth, "gauss-newton", options.gauss_newton_examples)[0]
        row = [f"{1000 * found[m][depth]:.1f}" if depth in found[m] else "" for m in ("products", "gauss-newton")]
        ratio = found["gauss-newton"].get(depth, float("nan")) / found["products"][depth]
        rows.append([str(depth), *row, f"{ratio:.0f}" if ratio == ratio else ""])
        print(rows[-1], flush=True)
    slopes = {name: exponent(list(by), list(by.values())) for name, by in found.items() if len(by) > 1}
    rows.append(["exponent", *(f"{slopes[m]:.2f}" if m in slopes else "" for m in ("products", "gauss-newton")), ""])
    text = markdown(["layers", "products, CPU ms per example", "gauss-newton", "times"], rows)
    content: dict[str, object] = {"found": found, "exponents": slopes, **environment()}
    if options.groups:
        whole = {
            groups: seconds_per_example(options.groups, "products", options.group_examples, groups)[1:]
            for groups in ("layer", "filter")
        }
        content["groups"] = whole
        text += (
            f"\n{whole['filter'][1]:,} groups of filters took {whole['filter'][0]:.1f} CPU s on "
            f"{options.group_examples} examples, {whole['layer'][1]:,} groups of layers {whole['layer'][0]:.1f}: "
            f"{whole['filter'][0] / whole['layer'][0]:.2f} times as much.\n"
        )
    Path(RESULTS / "depth.md").write_text(text)
    Path(RESULTS / "depth.json").write_text(json.dumps(content, indent=1))
    print(text)


if __name__ == "__main__":
    main()
