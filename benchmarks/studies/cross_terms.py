"""What the cross terms cost, and whether the published failure of pair models is met here.

    python -m benchmarks.studies.cross_terms [--network cifar10-resnet20] [--examples 250] [--repeats 3]

1. Wall time of ``gauss-newton`` with cross terms over the same sweep with linear terms only, in turn, medians;
   and the evaluations that measuring every pair would take.
2. The sanity check that CLADO's solver failed: with no binding budget a positive semidefinite table must give
   ``keep`` everywhere. It is run on the measured table with its linear terms raised to a valid second-order model
   (half the squared norms, which makes ``keep`` the unique minimum), for every solver that optimises; and on the
   measured table as it is, the predicted and measured loss of the unconstrained minimiser stand beside those of
   ``keep``.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

import qubo_compress as qc
from benchmarks.networks import load
from benchmarks.records import environment, write
from benchmarks.study import command_line
from qubo_compress.calibration.evaluation import score_examples
from qubo_compress.calibration.examples import read_examples

SOLVERS = ("exact", "annealer", "auto")


def weight_menu() -> qc.Menu:
    """Fifteen choices beside keep for weights, none for vectors: the published setting's size."""
    return qc.Menu(vector_bits=())


def time_sweeps(network: Any, examples: int, repeats: int) -> dict[str, float]:
    """Median seconds of both sweeps, run in turn, and their ratio pair by pair."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    evaluations = 0
    for _ in range(repeats):
        for interactions in (True, False):
            started = time.perf_counter()
            table = qc.measure(
                network.model, network.calibration, menu=weight_menu(), max_examples=examples,
                interactions=interactions, progress=False,
            )  # fmt: skip
            seconds[interactions].append(time.perf_counter() - started)
            evaluations = table.provenance.evaluations
    sizes = np.diff(table.offsets)
    pairs = int(sizes.sum() + (sizes.sum() ** 2 - (sizes**2).sum()) / 2)
    return {
        "with_cross_terms": statistics.median(seconds[True]),
        "linear_only": statistics.median(seconds[False]),
        "ratio": statistics.median(a / b for a, b in zip(seconds[True], seconds[False], strict=True)),
        "evaluations": evaluations,
        "pairwise_evaluations": pairs,
        "times_fewer": pairs / evaluations,
    }


def sanity(network: Any, table: qc.SensitivityTable) -> dict[str, Any]:
    """What each solver returns without a binding budget."""
    assert table.factor is not None
    loose = qc.Budget(bytes=10 * table.layout.original_bytes)
    half_norms = 0.5 * np.einsum("vr,vr->v", table.factor, table.factor, dtype=np.float64)
    definite = table.with_linear(half_norms).problem(loose)
    keeps = {}
    for solver in SOLVERS:
        solution = qc.solve(definite, solver, time_limit=5.0)
        zero = all(not table_row_moves(table, g, c) for g, c in solution.choices.items())
        keeps[solver] = {"keep_everywhere": zero, "energy": solution.energy, "bound": solution.bound}
    held_out = read_examples(network.test, 2000)
    before = score_examples(network.model, held_out).loss
    solution = qc.solve(table.problem(loose), "auto", time_limit=5.0)
    plan = table.plan(solution)
    measured = score_examples(plan.apply(network.model), held_out).loss - before
    compressed = sum(choice != "keep" for choice in plan.choices.values())
    return {
        "positive_semidefinite": keeps,
        "measured_table": {
            "predicted": plan.predicted_loss, "measured_on_test": measured, "keep": 0.0, "groups_not_kept": compressed,
            "ratio": plan.ratio,
        },
    }  # fmt: skip


def table_row_moves(table: qc.SensitivityTable, group: str, choice: str) -> bool:
    """Whether a choice has any effect: a choice as good as ``keep`` in every digit counts as keeping."""
    index = table.group_names.index(group)
    row = int(table.offsets[index]) + table.choices[index].index(choice)
    assert table.factor is not None
    return bool(table.factor[row].any())


def main() -> None:
    """Command line."""
    options = command_line(__doc__, network="cifar10-resnet20", examples=250, repeats=3)
    network = load(options.network, calibration_examples=max(options.examples, 250))
    timing = time_sweeps(network, options.examples, options.repeats)
    table = qc.measure(
        network.model, network.calibration, menu=weight_menu(), max_examples=options.examples, progress=False
    )
    content = {"network": options.network, "examples": options.examples, "timing": timing}
    content |= {"sanity": sanity(network, table), "threads": torch.get_num_threads()}
    write(f"cross_terms_{options.network}.json", content | environment())


if __name__ == "__main__":
    main()
