"""Does the model predict the loss? Rank correlation of predicted and measured loss over plans.

    python -m benchmarks.studies.prediction --metrics gauss-newton products jacobian fisher magnitude

Fifty plans in each of four bands (bytes within 2 % of 6x, 8x, 10x, 12x), drawn uniformly and repaired by
random moves, and the best fifty of the annealer's pool at 10x. Their loss is measured on held-out test
images without recovery. For every metric: Spearman's correlation per band, over all bands pooled, and over the
annealer's pool, with cross terms and without, beside bytes alone. Options of the measurement are the library's
defaults; ``products`` has one probe.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import qubo_compress as qc
from benchmarks.networks import load
from benchmarks.records import environment, markdown, write
from benchmarks.study import Option, command_line
from qubo_compress.calibration.evaluation import score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.sensitivity.metrics.products import Products

BANDS = (6.0, 8.0, 10.0, 12.0)
TOLERANCE = 0.02


def random_plan(table: qc.SensitivityTable, ratio: float, generator: np.random.Generator) -> dict[str, str]:
    """A uniformly drawn assignment, moved at random until its bytes are in the band."""
    sizes = np.diff(table.offsets)
    costs = table.costs["bytes"]
    target = table.layout.original_bytes / ratio - table.fixed_costs["bytes"]
    picks = np.array([generator.integers(size) for size in sizes])
    for _ in range(200_000):
        total = costs[table.offsets[:-1] + picks].sum()
        excess = total - target
        # The band is below the budget: within 2 % of it and never above.
        if -TOLERANCE * target <= excess <= 0:
            break
        group = int(generator.integers(sizes.size))
        pick = int(generator.integers(sizes[group]))
        change = costs[table.offsets[group] + pick] - costs[table.offsets[group] + picks[group]]
        if abs(excess + change) < abs(excess) or (excess > 0) == (change < 0):
            picks[group] = pick
    else:
        raise RuntimeError(f"no plan found within {TOLERANCE:.0%} of {ratio}x")
    return {g: names[p] for g, names, p in zip(table.group_names, table.choices, picks, strict=True)}


def draw_plans(table: qc.SensitivityTable, count: int, seed: int) -> list[tuple[str, dict[str, str]]]:
    """(band, plan) for all bands and the annealer's pool."""
    generator = np.random.default_rng(seed)
    drawn = [(f"{ratio:g}x", random_plan(table, ratio, generator)) for ratio in BANDS for _ in range(count)]
    pool = qc.solve(table.problem(qc.Budget(ratio=10)), "annealer", time_limit=5.0).pool[:count]
    return drawn + [("pool", dict(solution.choices)) for solution in pool]


def correlations(
    plans: list[tuple[str, dict[str, str]]], predicted: list[float], measured: list[float]
) -> dict[str, float]:
    """Spearman's correlation per band and pooled over the random bands."""
    bands = [band for band, _ in plans]
    found = {}
    for band in (*sorted(set(bands), key=bands.index), "all bands"):
        index = [i for i, b in enumerate(bands) if b == band or (band == "all bands" and b != "pool")]
        found[band] = float(spearmanr([predicted[i] for i in index], [measured[i] for i in index]).statistic)
    return found


def main() -> None:
    """Command line."""
    options = command_line(
        __doc__, network="cifar10-resnet20", metrics=["gauss-newton", "products", "jacobian", "fisher", "magnitude"],
        examples=2000, backward_examples=Option(500, "examples for jacobian and fisher"), pairwise_examples=64,
        held_out=1000, plans=50, seed=0, cache=Path("out/tables"), threads=torch.get_num_threads(),
    )  # fmt: skip
    network = load(options.network, calibration_examples=options.examples, seed=options.seed)
    held_out = read_examples(network.test, options.held_out)
    backward = options.backward_examples
    few = {"jacobian": backward, "fisher": backward, "pairwise": options.pairwise_examples}
    plans: list[tuple[str, dict[str, str]]] = []
    measured: list[float] = []
    found: dict[str, dict[str, Any]] = {}
    for metric in options.metrics:
        examples = few.get(metric, options.examples)
        folder = f"{options.network}_{examples}_{options.seed}" + ("" if metric == "gauss-newton" else f"_{metric}")
        started, cpu = time.perf_counter(), time.process_time()
        chosen = Products(probes=1) if metric == "products" else metric
        table = qc.measure(
            network.model, network.calibration, metric=chosen, max_examples=examples, cache=options.cache / folder,
            progress=False,
        )  # fmt: skip
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        if not plans:
            plans = draw_plans(table, options.plans, options.seed)
            measured = [score_examples(table.plan(plan).apply(network.model), held_out).loss for _, plan in plans]
            sizes = [float(-table.plan(plan).bytes) for _, plan in plans]
            found["bytes alone"] = correlations(plans, sizes, measured)
        predicted = [table.predict(plan) for _, plan in plans]
        found[metric] = correlations(plans, predicted, measured) | {
            "examples": examples, "evaluations": table.provenance.evaluations, "seconds": seconds, "cpu_seconds": cpu,
        }  # fmt: skip
        if table.factor is not None or table.pairs is not None:
            additive = [table.predict(plan, interactions=False) for _, plan in plans]
            found[f"{metric}, additive"] = correlations(plans, additive, measured)
        if metric == "gauss-newton" and table.divergence is not None:
            for share in (0.5, 1.0):
                shrunk = table.with_linear((1 - share) * table.linear + share * table.divergence)
                predicted = [shrunk.predict(plan) for _, plan in plans]
                found[f"{metric}, shrinkage {share:g}"] = correlations(plans, predicted, measured)
        print(metric, found[metric], found.get(f"{metric}, additive"), flush=True)
    columns = list(next(iter(found.values())))
    rows = [[name, *(f"{values[c]:.3f}" for c in columns)] for name, values in found.items()]
    content = {"network": options.network, "found": found, "plans": len(plans), "held_out": options.held_out}
    write(f"prediction_{options.network}.json", content | environment())
    write(f"prediction_{options.network}.md", markdown(["predictor", *columns], rows))


if __name__ == "__main__":
    main()
