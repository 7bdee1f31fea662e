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

Every method of every cell runs in a process of its own, so that seconds and peak memory are its own. Measurements are
shared over the ratios through a cache, and only the first ratio's seconds are those of a user: the others are marked.
Records are appended to ``benchmarks/results/robustness.jsonl``, and what is there is not run again. ``--again default``
runs a method again all the same, after a change of the library; the newest record counts. Losses per example lie in
``--work``; cells whose files are gone are run again only if a comparison is missing. The tables are written at the end,
or alone by ``python -m benchmarks.studies.robustness_tables``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from benchmarks.networks import Batches, first, load
from benchmarks.records import append, environment
from benchmarks.studies.robustness_tables import METHODS, OPPONENTS, PATH, newest, write_tables
from qubo_compress.plan import Plan
from qubo_compress.selection.candidates import Candidate

PROJECT = Path(__file__).resolve().parents[2]
MEBIBYTE = 1 << 20


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


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Every cell asked for; the ratios of one measurement follow each other."""
    for network in options.networks:
        grid = NETWORKS[network]
        for examples in options.examples or grid.examples:
            for seed in options.seeds:
                for ratio in options.ratios or grid.ratios:
                    yield Cell(network, examples, ratio, seed, options.test_examples or grid.test_examples)


def run(options: argparse.Namespace) -> None:
    """Run what is missing, each method in a process of its own."""
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


def in_own_process(cell: Cell, method: str, tables: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The record of one method of one cell; where it failed, with the last line of its error."""
    work = {"method": method, "tables": str(tables), "losses": str(losses_path(options.work, cell, method))}
    command = [sys.executable, "-m", "benchmarks.studies.robustness", "--threads", str(options.threads)]
    command += ["--cell", json.dumps(asdict(cell) | work)]
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
    done = subprocess.run(command, cwd=PROJECT, env=os.environ | threads, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    answer = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
    if not answer:
        answer = {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    print(cell.name, method, {k: round(v, 4) for k, v in answer.items() if isinstance(v, float)} or answer, flush=True)
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
    """Compress by one method and score; runs in a process of its own."""
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
    """What was predicted for a plan in the running and what the held-out examples said."""
    repaired = candidate.repaired
    return {
        "names": candidate.names, "predicted": candidate.predicted, "divergence": candidate.comparison.divergence.mean,
        "standard_error": candidate.comparison.divergence.standard_error,
        "repaired": None if repaired is None else repaired.divergence.mean,
    }  # fmt: skip


@dataclass(frozen=True)
class TestScore:
    """How a network does on each test example; for text an example is a window, and its figures are means over tokens.

    Attributes:
        losses: (N,) float64 cross-entropy.
        correct: (N,) float64, share of right answers.
        divergences: (N,) float64 KL divergence from the original's answers, zeros for the original itself.
        logits: (rows, classes) of all examples one below the other.
    """

    losses: Tensor
    correct: Tensor
    divergences: Tensor
    logits: Tensor

    def means(self) -> dict[str, float]:
        """Means over the examples; the accuracy in per cent."""
        accuracy = 100 * self.correct.mean().item()
        return {"loss": self.losses.mean().item(), "accuracy": accuracy, "divergence": self.divergences.mean().item()}


@torch.no_grad()
def score(model: nn.Module, test: Batches, reference: Tensor | None = None) -> TestScore:
    """Score a network in eval mode on test examples; `reference` are the original's logits."""
    logits = torch.cat([model(inputs).flatten(0, -2) for inputs, _ in test])
    targets = torch.cat([answers for _, answers in test])

    def per_example(rows: Tensor) -> Tensor:
        return rows.double().view(len(targets), -1).mean(1)

    ours = logits.log_softmax(1)
    theirs = ours if reference is None else reference.log_softmax(1)
    return TestScore(
        losses=per_example(functional.nll_loss(ours, targets.flatten(), reduction="none")),
        correct=per_example(logits.argmax(1) == targets.flatten()),
        divergences=per_example((theirs.exp() * (theirs - ours)).sum(1)),
        logits=logits,
    )


def warm_up() -> None:
    """Load what is compiled, or compile it where nobody has yet, so that it counts in no method's seconds."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 32, generator=generator), torch.randint(8, (16,), generator=generator))]
    budget = qc.Budget(ratio=3)
    table = qc.compress(model, batches, budget, solver="exact", progress=False).table
    for solver in ("auto", "annealer", "greedy", "uniform"):
        qc.solve(table.problem(budget), solver, time_limit=1.0)


def reset_peak_memory() -> None:
    """Let the peak of this process's memory start at what it holds now; does nothing where Linux does not allow it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """The most memory this process held since the last reset, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MEBIBYTE if sys.platform == "darwin" else peak / 1024


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--examples", type=int, nargs="+", help="calibration examples; by default the network's own")
    parser.add_argument("--ratios", type=float, nargs="+", help="by default the network's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test-examples", type=int, help="by default the network's own")
    parser.add_argument("--again", nargs="+", choices=METHODS, default=[], help="run these even where they are there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("out/robustness"), help="folder of caches and losses")
    parser.add_argument("--records", type=Path, default=PATH)
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work.absolute()
    torch.set_num_threads(options.threads)
    if options.cell:
        given = options.cell
        method, tables, losses = (given.pop(name) for name in ("method", "tables", "losses"))
        print(json.dumps(measure_cell(Cell(**given), method, Path(tables), Path(losses))))
        return
    run(options)
    print(write_tables(options.records))


if __name__ == "__main__":
    main()
