"""Test loss and accuracy over compression ratios: what cross terms, refinement and recovery are worth.

    python -m benchmarks.studies.ratios --network cifar10-resnet20 --seeds 0 1 2 --ratios 6 8 10 12

For each calibration seed one table is measured with ``--metric`` and otherwise default arguments. At each ratio:
``uniform``, ``greedy``, the exact optimum of the linear terms alone, the full model, the same with
the choices of its first plans run (``close``, for ``products``, as ``compress`` does), and after one and two
refinement rounds. Plans are applied without fine-tuning, and once more with ``recover(epochs=0)``. Refinement
sweeps use fewer examples (``--refine-examples``) and only choices within a factor of the incumbent's bytes
(``--neighbourhood``). Test images are looked at for the figures alone. Records are appended to
``benchmarks/results/ratios.jsonl``; what is there already is not run again. Those of version 0.3, whose linear terms
were loss changes, lie in ``ratios_0.3.jsonl``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import RESULTS, append, environment, markdown, read
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

PATH = RESULTS / "ratios.jsonl"


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


def plans_of(network: Network, table: qc.SensitivityTable, budget: qc.Budget, options: argparse.Namespace) -> Any:
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


def run(options: argparse.Namespace) -> None:
    """Measure what is missing."""
    done = {(r["network"], r["metric"], r["seed"], r["ratio"], r["method"]) for r in read(PATH)}
    for seed in options.seeds:
        network = channels_last(load(options.network, calibration_examples=options.examples, seed=seed))
        # The folders of `benchmarks.studies.prediction`, which measures the same tables.
        folder = f"{options.network}_{options.examples}_{seed}"
        cache = options.cache / (folder if options.metric == "gauss-newton" else f"{folder}_{options.metric}")
        metric = Products(probes=1) if options.metric == "products" else options.metric
        table = qc.measure(network.model, network.calibration, metric=metric, cache=cache, progress=False)
        before, loss_before = accuracy_and_loss(network.model, network.test)
        for ratio in options.ratios:
            wanted = [method for method in METHODS[: 5 + options.rounds] if method in options.methods]
            if all((options.network, options.metric, seed, ratio, method) in done for method in wanted):
                continue
            known: dict[str, dict[str, float]] = {}
            for method, plan in plans_of(network, table, qc.Budget(ratio=ratio), options):
                key = str(sorted(plan.choices.items()))
                if method not in wanted or (options.network, options.metric, seed, ratio, method) in done:
                    continue
                if key not in known or (method in RECOVERED and "recovered_loss" not in known[key]):
                    known[key] = evaluate(network, plan, recover=method in RECOVERED)
                record = {
                    "network": options.network, "metric": options.metric, "seed": seed, "ratio": ratio,
                    "method": method, "bytes": plan.bytes,
                    "predicted": plan.predicted_loss, "original_accuracy": 100 * before, "original_loss": loss_before,
                    **known[key], "examples": options.examples,
                    "refine_examples": options.refine_examples, "neighbourhood": options.neighbourhood, **environment(),
                }  # fmt: skip
                append(PATH, record)
                print(
                    seed, ratio, method, {k: round(v, 4) for k, v in record.items() if isinstance(v, float)}, flush=True
                )


def table_text(network: str) -> str:
    """All records of a network as markdown, means over seeds."""
    records = [r for r in read(PATH) if r["network"] == network]
    rows = []
    for ratio, metric in sorted({(r["ratio"], r["metric"]) for r in records}):
        for method in METHODS:
            found = [r for r in records if (r["ratio"], r["metric"], r["method"]) == (ratio, metric, method)]
            if not found:
                continue
            cells = [f"{ratio:g}x", metric, method, str(len(found))]
            for name, digits in (("loss", 3), ("accuracy", 2), ("recovered_loss", 3), ("recovered_accuracy", 2)):
                values = [r[name] for r in found if name in r]
                cells.append(f"{statistics.mean(values):.{digits}f}" if values else "")
            repaired = [r["original_accuracy"] - r["recovered_accuracy"] for r in found if "recovered_accuracy" in r]
            cells.append(f"{statistics.mean(repaired):+.2f}" if repaired else "")
            rows.append(cells)
    header = [
        "ratio",
        "metric",
        "method",
        "seeds",
        "test loss",
        "top-1 %",
        "recovered loss",
        "recovered top-1 %",
        "drop",
    ]
    return markdown(header, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10-resnet20")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[6.0, 8.0, 10.0, 12.0])
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--metric", default="auto")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="what is scored")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--refine-examples", type=int, default=800)
    parser.add_argument("--neighbourhood", type=float, default=2.0)
    parser.add_argument("--time-limit", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", type=Path, default=Path("out/tables"))
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        run(options)
    text = table_text(options.network)
    (RESULTS / f"ratios_{options.network}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
