"""Default arguments on every network against additive, uniform and greedy: is the default ever worse?

    python -m benchmarks.studies.robustness --networks digits text-gpt --examples 64 256 --ratios 4 8 --seeds 0 1 2

A cell is a network, a number of calibration examples, a ratio and a seed, which draws the examples. In each cell:

- ``default``: ``qc.compress(model, calibration, Budget(ratio))`` with nothing else said. What it holds out, it takes
  out of the calibration examples.
- ``additive``: the exact optimum of the linear KL terms alone, measured on all calibration examples by
  ``gauss-newton``, or by ``products`` where that is named in ``NETWORKS`` because the other takes hours.
- ``uniform``: the solver of that name. It needs no measurement.
- ``greedy``: the solver of that name on the table of ``default``.

All are recovered alike with ``epochs=0``, the opponents on all calibration examples, and scored before and after on
test examples that chose nothing. The difference of test losses is paired per example (per window of text).

Every method of every cell runs in a separate process, so that seconds and peak memory are its own. Measurements are
shared over the ratios through a cache, and only the first ratio's seconds are those of a user: the others are marked.
Records are appended to ``benchmarks/results/robustness.jsonl``, and what is there is not run again. ``--again default``
runs a method again anyway, after a change of the library; the newest record counts. Losses per example lie in
``--work``; cells whose files are gone are run again only if a comparison is missing. The tables are written at the end,
or alone by ``python -m benchmarks.studies.robustness_tables``.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import qubo_compress as qc
from benchmarks.networks import Batches, first, load
from benchmarks.networks.scores import score
from benchmarks.processes import in_new_process, peak_memory, reset_peak_memory, warm_up
from benchmarks.records import append, environment
from benchmarks.studies.robustness_tables import METHODS, OPPONENTS, PATH, newest, write_tables
from benchmarks.study import Option, Options, command_line, shown
from qubo_compress.plan import Plan
from qubo_compress.selection.candidates import Candidate


@dataclass(frozen=True)
class Grid:
    """What is run for a network unless the command line says otherwise.

    Attributes:
        ratios: original bytes over stored bytes.
        examples: calibration examples.
        test_examples: how many of the test examples are scored, the first ones.
        additive: metric of the linear terms of ``additive``.
    """

    ratios: tuple[float, ...]
    examples: tuple[int, ...] = (16, 64, 256, 1024)
    test_examples: int = 2_000
    additive: str = "gauss-newton"


NETWORKS: dict[str, Grid] = {
    "digits": Grid((4, 8, 12, 16)),
    "fashion-mnist": Grid((4, 8, 12, 16)),
    "fashion-mnist-resnet56": Grid((4, 6, 8, 12), (16, 40, 64, 256, 1024)),
    "cifar10-resnet20": Grid((4, 8, 10, 12), (16, 40, 64, 256, 1024)),
    "imagenet-efficientnet-lite0": Grid((4, 6, 8), (16, 64, 200), test_examples=300, additive="products"),
    "text-gpt": Grid((4, 6, 8), test_examples=400, additive="products"),
    "fashion-mnist-vit": Grid((4, 8, 12)),
}


@dataclass(frozen=True)
class Cell:
    """One comparison: where all methods get the same calibration examples and the same budget."""

    network: str
    examples: int
    ratio: float
    seed: int
    test_examples: int

    @property
    def name(self) -> str:
        """For files and messages."""
        return f"{self.network}_{self.examples}_{self.ratio:g}x_{self.seed}_{self.test_examples}"


def cells_of(options: Options) -> Iterator[Cell]:
    """Every cell asked for; the ratios of one measurement follow each other."""
    for network in options.networks:
        grid = NETWORKS[network]
        for examples in options.examples or grid.examples:
            for seed in options.seeds:
                for ratio in options.ratios or grid.ratios:
                    yield Cell(network, examples, ratio, seed, options.test_examples or grid.test_examples)


def run(options: Options) -> None:
    """Run what is missing, each method in a separate process."""
    measured: Path | None = None
    commit = environment()["commit"]
    for cell in cells_of(options):
        tables = options.work / "tables" / f"{cell.network}_{cell.examples}_{cell.seed}_{commit}"
        if measured not in {None, tables}:
            shutil.rmtree(measured, ignore_errors=True)  # no later cell shares it, and it is large
        measured = tables
        known = newest(options.records)
        compared = all(("comparison", *key_of(cell), opponent) in known for opponent in OPPONENTS)
        changed = False
        for method in METHODS:
            there = "error" not in known.get(("cell", *key_of(cell), method), {"error": "not run"})
            if there and method not in options.again and (compared or losses_path(options.work, cell, method).exists()):
                continue
            append(options.records, in_own_process(cell, method, tables, options))
            changed = True
        if changed or not compared:
            for record in comparisons(cell, options.work):
                append(options.records, record)
    if measured is not None:
        shutil.rmtree(measured, ignore_errors=True)


def key_of(cell: Cell) -> tuple[str, int, float, int]:
    """What identifies a cell among the records."""
    return cell.network, cell.examples, float(cell.ratio), cell.seed


def losses_path(work: Path, cell: Cell, method: str) -> Path:
    """Where the test losses per example of a method lie, after recovery, float64 (N,)."""
    return work / "losses" / f"{cell.name}_{method}.npy"


def in_own_process(cell: Cell, method: str, tables: Path, options: Options) -> dict[str, Any]:
    """The record of one method of one cell; where it failed, with the last line of its error."""
    losses = losses_path(options.work, cell, method)
    try:
        answer = in_new_process(measure_cell, cell, method, tables, losses, threads=options.threads)
    except Exception as error:
        answer = {"error": traceback.format_exception_only(error)[-1].strip()}
    print(cell.name, method, shown(answer), flush=True)
    return {"kind": "cell", "method": method, **asdict(cell), **answer, "threads": options.threads, **environment()}


def comparisons(cell: Cell, work: Path) -> Iterator[dict[str, Any]]:
    """Default against each opponent: mean difference of test losses and its standard error, paired per example."""
    paths = {method: losses_path(work, cell, method) for method in METHODS}
    if not paths["default"].exists():
        return
    ours = np.load(paths["default"])
    for opponent in OPPONENTS:
        if paths[opponent].exists():
            difference = ours - np.load(paths[opponent])
            error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
            yield {
                "kind": "comparison", "method": opponent, **asdict(cell), "difference": float(difference.mean()),
                "standard_error": error, **environment(),
            }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a method returns: the plan applied, the same recovered, the plan, its table, and what else it says."""

    compressed: nn.Module
    recovered: nn.Module
    plan: Plan
    table: qc.SensitivityTable
    facts: dict[str, Any]


def measure_cell(cell: Cell, method: str, tables: Path, losses: Path) -> dict[str, Any]:
    """Compress by one method and score; runs in a separate process."""
    network = load(cell.network, calibration_examples=cell.examples, seed=cell.seed)
    model, calibration, test = network.model, network.calibration, first(network.test, cell.test_examples)
    del network  # the training images are no part of what is measured
    original = score(model, test)
    warm_up()
    reset_peak_memory()
    memory, started, cpu = peak_memory(), time.perf_counter(), time.process_time()
    outcome = compress_by(method, cell, model, calibration, tables)
    seconds, cpu, peak = time.perf_counter() - started, time.process_time() - cpu, peak_memory()
    peak = max(peak, memory)  # Linux counts pages per thread and adds them up late
    compressed = score(outcome.compressed, test, original.logits)
    recovered = score(outcome.recovered, test, original.logits)
    losses.parent.mkdir(parents=True, exist_ok=True)
    np.save(losses, recovered.losses.numpy())
    provenance = outcome.table.provenance
    return {
        **{f"original_{name}": value for name, value in original.means().items() if name != "divergence"},
        **{f"compressed_{name}": value for name, value in compressed.means().items()},
        **{f"recovered_{name}": value for name, value in recovered.means().items()},
        "scored": len(original.losses), "predicted": outcome.plan.predicted_loss, "bytes": outcome.plan.bytes,
        "metric": provenance.metric, "examples_measured": provenance.examples,
        "from_cache": provenance.resumed > 0, "measuring_seconds": provenance.seconds, "seconds": seconds,
        "cpu_seconds": cpu, "peak_memory": peak, "memory_before": memory, **outcome.facts,
    }  # fmt: skip


def compress_by(method: str, cell: Cell, model: nn.Module, calibration: Batches, tables: Path) -> Outcome:
    """Compress the network of a cell by one of `METHODS`, all that a user would wait for."""
    budget = qc.Budget(ratio=cell.ratio)
    if method == "default":
        result = qc.compress(model, calibration, budget, seed=cell.seed, progress=False, cache=tables / "default")
        facts = {
            "status": result.solution.status,
            "held_out_change": (result.recovered or result.compressed).loss - result.before.loss,
            "held_out_examples": result.before.examples,
            "candidates": [candidate_facts(candidate) for candidate in result.taken.candidates],
            "winner": result.taken.winner,
            "trust": result.table.provenance.trust,
        }
        return Outcome(result.compressed_model, result.model, result.plan, result.table, facts)
    if method == "greedy":
        # The table of `default`, from the cache: the same call without recovery holds out the same examples.
        table = qc.compress(
            model, calibration, budget, seed=cell.seed, progress=False, cache=tables / "default", solver="greedy",
            recover=False,
        ).table  # fmt: skip
    else:
        table = qc.measure(
            model, calibration, metric=NETWORKS[cell.network].additive, shrinkage=1.0, interactions=False,
            seed=cell.seed, progress=False, cache=tables / "additive",
        )  # fmt: skip
    solver = "exact" if method == "additive" else method
    solution = qc.solve(table.problem(budget), solver, seed=cell.seed)
    plan = table.plan(solution)
    applied = plan.apply(model)
    recovered = qc.recover(applied, calibration, model, seed=cell.seed, progress=False)
    return Outcome(applied, recovered, plan, table, {"status": solution.status})


def candidate_facts(candidate: Candidate) -> dict[str, Any]:
    """The prediction for a plan, and its result on the held-out examples."""
    repaired = candidate.repaired
    return {
        "names": candidate.names, "predicted": candidate.predicted, "divergence": candidate.comparison.divergence.mean,
        "standard_error": candidate.comparison.divergence.standard_error,
        "repaired": None if repaired is None else repaired.divergence.mean,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    options = command_line(
        __doc__, networks=Option(list(NETWORKS), choices=NETWORKS), seeds=[0, 1, 2], threads=1, records=PATH,
        examples=Option((), "calibration examples; by default the network's own", type=int),
        ratios=Option((), "by default the network's own", type=float),
        test_examples=Option(None, "by default the network's own", type=int),
        again=Option((), "run these even where they are there", METHODS, str),
        work=Option(Path("out/robustness"), "folder of caches and losses"),
    )  # fmt: skip
    options.work = options.work.absolute()
    run(options)
    print(write_tables(options.records))


if __name__ == "__main__":
    main()
