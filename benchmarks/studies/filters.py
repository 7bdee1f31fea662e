"""A choice for every filter against a choice for every layer: seconds, memory, gap, and accuracy at equal bytes.

    python -m benchmarks.studies.filters --network cifar10-resnet20
    python -m benchmarks.studies.filters --network fashion-mnist-resnet56 --ratios 8 12
    python -m benchmarks.studies.filters table

Both levels use the same examples, the default menu, the metric ``products``, and whole ``compress`` calls with the same
time limit for every solution. ``solvers`` solves the table's problem with one processor; its
seconds are the processor's. Every call runs in a separate process. Test examples are used only for the figures.
Records are appended to ``benchmarks/results/filters.jsonl``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import qubo_compress as qc
from benchmarks.networks import first, load
from benchmarks.networks.scores import score
from benchmarks.processes import in_new_process, peak_memory, reset_peak_memory, warm_up
from benchmarks.records import Record, newest, table
from benchmarks.study import Option, Options, Study, grid

LEVELS = ("layer", "filter")
SOLVERS = ("auto", "annealer", "greedy", "exact", "tabu")

STUDY = Study(
    __doc__, "filters", field="step", network="cifar10-resnet20", examples=[256], ratios=[8.0, 10.0, 12.0], seeds=[0],
    levels=Option(list(LEVELS), choices=LEVELS), solvers=Option(list(SOLVERS)), time_limit=20.0,
    test=Option(5_000, "test examples"), work=Option(Path("out/filters"), "folder of the measurements"), threads=1,
)  # fmt: skip


def measured(options: Options, network: str, examples: int, level: str, seed: int) -> tuple[Any, qc.SensitivityTable]:
    """The network and its table, from the cache where it was measured before."""
    loaded = load(network, calibration_examples=examples, seed=seed)
    folder = options.work.absolute() / f"{network}_{examples}_{level}_{seed}"
    found = qc.measure(
        loaded.model, loaded.calibration, metric="products", groups=level, seed=seed, cache=folder, progress=False
    )
    return loaded, found


def call(options: Options, network: str, examples: int, level: str, seed: int, ratio: float) -> Record:
    """One ``compress`` call; runs in a separate process."""
    loaded = load(network, calibration_examples=examples, seed=seed)
    test = first(loaded.test, options.test)
    original = score(loaded.model, test)
    warm_up()
    reset_peak_memory()
    folder = options.work.absolute() / f"compress_{network}_{examples}_{level}_{seed}"
    before, started = peak_memory(), time.process_time()
    result = qc.compress(
        loaded.model, loaded.calibration, qc.Budget(ratio=ratio), metric="products", groups=level, seed=seed,
        cache=folder, time_limit=options.time_limit, progress=False,
    )  # fmt: skip
    cpu, peak = time.process_time() - started, peak_memory()
    after = score(result.model, test, original.logits).means()
    return {
        "groups": len(result.table.choices), "choices": int(result.table.linear.size),
        "original_accuracy": original.means()["accuracy"], **after, "bytes": result.plan.bytes, "cpu_seconds": cpu,
        "memory": peak - before, "from_cache": result.table.provenance.resumed > 0,
        "predicted": result.plan.predicted_loss, "winner": result.taken.winner,
    }  # fmt: skip


def solved(options: Options, network: str, examples: int, seed: int, ratio: float, solver: str) -> Record:
    """One solver on the table's problem; runs in a separate process."""
    _, found = measured(options, network, examples, "filter", seed)
    problem = found.problem(qc.Budget(ratio=ratio))
    warm_up()
    reset_peak_memory()
    before, started = peak_memory(), time.process_time()
    try:
        solution = qc.solve(problem, solver, time_limit=options.time_limit, seed=seed)
    except qc.QuboCompressError as error:
        return {"failed": str(error)[:200], "cpu_seconds": time.process_time() - started}
    return {
        "groups": problem.num_groups, "choices": problem.num_choices, "energy": solution.energy,
        "bound": solution.bound, "gap": solution.gap, "status": solution.status, "limit": options.time_limit,
        "cpu_seconds": time.process_time() - started, "memory": peak_memory() - before,
    }  # fmt: skip


def cells(options: Options) -> list[Record]:
    """One call for every level, seed and ratio."""
    said = {"network": [options.network], "examples": options.examples, "level": options.levels}
    return list(grid(**said, seed=options.seeds, ratio=options.ratios))


@STUDY.step(cells)
def networks(options: Options, network: str, examples: int, level: str, seed: int, ratio: float) -> Record:
    """Accuracy of a whole ``compress`` call."""
    found: Record = in_new_process(call, options, network, examples, level, seed, ratio, threads=options.threads)
    return found


def problems(options: Options) -> list[Record]:
    """Every solver on the problems of the first seed and the fewest examples."""
    said = {"network": [options.network], "examples": options.examples[:1], "seed": options.seeds[:1]}
    return list(grid(**said, ratio=options.ratios, solver=options.solvers))


@STUDY.step(problems)
def solvers(options: Options, network: str, examples: int, seed: int, ratio: float, solver: str) -> Record:
    """Energy and bound of one solver on the problem of filters."""
    given = options, network, examples, seed, ratio, solver
    found: Record = in_new_process(solved, *given, threads=options.threads)
    return found


@STUDY.table
def tables(options: Options) -> str:
    """Accuracy by level, then energies by solver."""
    key = ("network", "examples", "ratio", "seed", "level")
    found = sorted(newest(STUDY.records("networks"), *key), key=lambda r: [r[name] for name in key])
    accuracy = {
        "network": "{network}", "examples": "{examples:,}", "ratio": "{ratio:g}x", "seed": "{seed}",
        "groups": "{groups:,} {level}s", "choices": "{choices:,}", "bytes": "{bytes:,}",
        "top-1 before": "{original_accuracy:.2f}", "top-1": "{accuracy:.2f}", "loss": "{loss:.4f}", "plan": "{winner}",
        "CPU s": lambda r: "" if r["from_cache"] else f"{r['cpu_seconds']:.0f}", "MiB": "{memory:.0f}",
    }  # fmt: skip
    key = ("network", "ratio", "solver")
    runs = sorted(
        newest(STUDY.records("solvers"), *key), key=lambda r: (r["network"], r["ratio"], r.get("energy", 9e9))
    )
    energies = {
        "network": "{network}", "ratio": "{ratio:g}x", "groups": "{groups:,}", "solver": "{solver}",
        "energy": "{energy:.5g}", "bound": lambda r: f"{r['bound']:.5g}" if r.get("bound") is not None else "",
        "gap": lambda r: f"{r['gap']:.1%}" if r.get("gap") is not None else "", "limit s": "{limit:g}",
        "CPU s": "{cpu_seconds:.1f}", "MiB": "{memory:.0f}", "": lambda r: r.get("failed", r.get("status", "")),
    }  # fmt: skip
    return f"{table(found, accuracy)}\n{table(runs, energies)}"


if __name__ == "__main__":
    STUDY.main()
