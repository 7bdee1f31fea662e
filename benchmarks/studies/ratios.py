"""Test loss and accuracy over compression ratios: what cross terms, refinement and recovery are worth.

    python -m benchmarks.studies.ratios --network cifar10-resnet20 --seeds 0 1 2 --ratios 6 8 10 12

For each calibration seed one table is measured with ``--metric`` and otherwise default arguments. At each ratio:
``uniform``, ``greedy``, the exact optimum of the linear terms alone, the full model, the same with
the choices of its first plans run (``close``, for ``products``, as ``compress`` does), and after one and two
refinement rounds. Plans are applied without fine-tuning, and once more with ``recover(epochs=0)``. Refinement
sweeps use fewer examples (``--refine-examples``) and only choices within a factor of the incumbent's bytes
(``--neighbourhood``). Test images serve only for the figures. Records are appended to
``benchmarks/results/ratios.jsonl``; what is there already is not run again. Those of version 0.3, whose linear terms
were loss changes, lie in ``ratios_0.3.jsonl``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import Record, means, table
from benchmarks.study import Option, Options, Study
from qubo_compress.calibration.examples import read_examples
from qubo_compress.pipeline.close import closely_measured
from qubo_compress.pipeline.refinement import Refinement, Round, refine
from qubo_compress.plan import Plan
from qubo_compress.selection.candidates import Candidate
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.metrics.products import Products
from qubo_compress.sensitivity.specimen import Specimen

METHODS = ("uniform", "greedy", "linear", "full", "close", "full+1", "full+2")
RECOVERED = ("uniform", "full", "close", "full+2")
"""Methods whose plans are also scored after ``recover(epochs=0)``."""

STUDY = Study(
    __doc__, "ratios", report="ratios_{network}", network="cifar10-resnet20", seeds=[0, 1, 2],
    ratios=[6.0, 8.0, 10.0, 12.0], examples=2000, metric="auto", methods=Option(METHODS, "what is scored", METHODS),
    rounds=2, refine_examples=800, neighbourhood=2.0, time_limit=5.0, threads=torch.get_num_threads(),
    cache=Path("out/tables"),
)  # fmt: skip


@lru_cache(maxsize=1)
def measured(options: Options, seed: int) -> tuple[Network, qc.SensitivityTable, Record]:
    """The network of a calibration seed, its table and its own test figures."""
    network = channels_last(load(options.network, calibration_examples=options.examples, seed=seed))
    # The folders of `benchmarks.studies.prediction`, which measures the same tables.
    folder = f"{options.network}_{options.examples}_{seed}"
    cache = options.cache / (folder if options.metric == "gauss-newton" else f"{folder}_{options.metric}")
    metric = Products(probes=1) if options.metric == "products" else options.metric
    found = qc.measure(network.model, network.calibration, metric=metric, cache=cache, progress=False)
    accuracy, loss = accuracy_and_loss(network.model, network.test)
    return network, found, {"original_accuracy": 100 * accuracy, "original_loss": loss}


def evaluate(network: Network, plan: Plan, recover: bool) -> dict[str, float]:
    """Test figures of a plan, applied and recovered."""
    small = plan.apply(network.model)
    accuracy, loss = accuracy_and_loss(small, network.test)
    figures = {"accuracy": 100 * accuracy, "loss": loss}
    if recover:
        repaired = qc.recover(small, network.calibration, network.model, progress=False)
        accuracy, loss = accuracy_and_loss(repaired, network.test)
        figures |= {"recovered_accuracy": 100 * accuracy, "recovered_loss": loss}
    return figures


def plans_of(network: Network, table: qc.SensitivityTable, budget: qc.Budget, options: Options) -> Any:
    """Yield (method, plan) from the cheapest to the most expensive."""
    problem, linear = table.problem(budget), table.problem(budget, interactions=False)
    limit = options.time_limit
    yield "uniform", table.plan(qc.solve(problem, "uniform", time_limit=limit))
    yield "greedy", table.plan(qc.solve(problem, "greedy", time_limit=limit))
    yield "linear", table.plan(qc.solve(linear, "exact", time_limit=limit))
    solution = qc.solve(problem, "annealer", time_limit=limit)
    plan = table.plan(solution)
    yield "full", plan
    if options.metric == "products" and "close" in options.methods:
        settings = Measurement(loss="cross-entropy", max_examples=options.examples)
        specimen = Specimen.of(network.model, network.calibration, settings)
        close = closely_measured(specimen, table, budget, lambda p: qc.solve(p, "annealer", time_limit=limit))
        yield "close", close.plan(qc.solve(close.problem(budget), "annealer", time_limit=limit))
    if options.rounds == 0:
        return
    held_out = HeldOut.of(network.model, read_examples(network.validation, options.refine_examples), "cross-entropy")
    only = Candidate("solver", plan, plan.predicted_loss, held_out.compare(plan.apply(network.model)))
    settings = Measurement(
        metric="gauss-newton", loss="cross-entropy", max_examples=options.refine_examples, progress=False
    )
    history = refine(
        Specimen.of(network.model, network.calibration, settings), table, Round.of(table, solution, (only,), only),
        held_out, budget, lambda p: qc.solve(p, "annealer", time_limit=limit),
        Refinement(options.rounds, 4, options.neighbourhood),
    )  # fmt: skip
    incumbent = plan
    for number in range(1, options.rounds + 1):
        # A round that was not accepted leaves the incumbent; it is reported, not left out.
        if number < len(history) and history[number].accepted:
            incumbent = history[number].plan
        yield f"full+{number}", incumbent


@lru_cache(maxsize=1)
def plans_at(options: Options, seed: int, ratio: float) -> dict[str, Plan]:
    """Method -> plan."""
    network, found, _ = measured(options, seed)
    return dict(plans_of(network, found, qc.Budget(ratio=ratio), options))


def cells(options: Options) -> Iterator[Record]:
    """Every method that is asked for, at every ratio."""
    wanted = [method for method in METHODS[: 5 + options.rounds] if method in options.methods]
    for seed in options.seeds:
        for ratio in options.ratios:
            for method in wanted:
                yield {"network": options.network, "metric": options.metric, "seed": seed, "ratio": ratio,
                       "method": method}  # fmt: skip


@STUDY.step(cells)
def score(options: Options, seed: int, ratio: float, method: str, **_: str) -> Record | None:
    """Test figures of a method's plan, of those that there are."""
    network, _, before = measured(options, seed)
    plan = plans_at(options, seed, ratio).get(method)
    if plan is None:
        return None
    return {
        "bytes": plan.bytes, "predicted": plan.predicted_loss, **before,
        **evaluate(network, plan, recover=method in RECOVERED), "examples": options.examples,
        "refine_examples": options.refine_examples, "neighbourhood": options.neighbourhood,
    }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """All records of a network, means over seeds."""
    records = STUDY.records(network=options.network)
    repaired = [
        r | {"drop": r["original_accuracy"] - r["recovered_accuracy"]} for r in records if "recovered_loss" in r
    ]
    rest = [r for r in records if "recovered_loss" not in r]
    found = means(repaired + rest, "ratio", "metric", "method")
    columns = {
        "ratio": "{ratio:g}x", "metric": "{metric}", "method": "{method}", "seeds": "{count}",
        "test loss": "{loss:.3f}", "top-1 %": "{accuracy:.2f}", "recovered loss": "{recovered_loss:.3f}",
        "recovered top-1 %": "{recovered_accuracy:.2f}", "drop": "{drop:+.2f}",
    }  # fmt: skip
    order = lambda r: (r["ratio"], r["metric"], METHODS.index(r["method"]))  # noqa: E731
    return table(sorted(found, key=order), columns)


if __name__ == "__main__":
    STUDY.main()
