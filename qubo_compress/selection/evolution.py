"""Searches for better plans on the network's own loss, with a table as the proposal and as the first filter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qubo_compress._internal.checks import whole
from qubo_compress.budget import Budget
from qubo_compress.errors import InvalidOption
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.selection.held_out_loss import HeldOutLoss
from qubo_compress.sensitivity.progress import progress_bar
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.surrogate import Surrogate
from qubo_compress.solvers.verification import solve

NO_LIMIT = 1e9
"""Seconds of a search that only its evaluations end."""


@dataclass(frozen=True)
class Evolution:
    """A search on the network's loss.

    Attributes:
        plan: the plan that is expected to be the best.
        loss: its mean measure on the examples that it was measured on.
        examples: the number of these.
        evaluations: examples forwarded through the network.
        trace: (evaluations, mean measure, its number of examples) of every plan that was the best for a while; the
            number of examples grows, so that the measure may rise.
        solution: the answer of ``surrogate``.
    """

    plan: Plan
    loss: float
    examples: int
    evaluations: int
    trace: tuple[tuple[int, float, int], ...]
    solution: Solution


def evolve(
    table: SensitivityTable,
    budget: Budget,
    held_out: HeldOut,
    evaluations: int,
    *,
    starts: Sequence[Plan] = (),
    seed: int = 0,
    time_limit: float = NO_LIMIT,
    progress: bool = False,
) -> Evolution:
    """Search for the plan of least measured loss within a budget; see :mod:`qubo_compress.solvers.surrogate.surrogate`.

    An evaluation is one example forwarded through the whole network. The outputs of the original network are part of
    ``held_out`` and not counted. The same seed gives the same plan, unless the time limit ends the search; Ctrl-C ends
    it with the best plan so far.

    Args:
        table: its energy proposes plans, and is corrected by what is measured.
        budget: limits of the plan, which is never over them.
        held_out: the original network and the examples to search on. Judge the plan on others: it was chosen by these.
        evaluations: most examples forwarded.
        starts: plans to begin with, beside those of the table.
        seed: of all random draws.
        time_limit: wall-clock seconds.
        progress: show a progress bar.

    Raises:
        InvalidOption: when the evaluations do not suffice for one pass over the examples.
        InfeasibleBudget, NoFeasibleFound: when no plan is within the budget.

    Example:
        >>> import torch, qubo_compress as qc
        >>> from torch import nn
        >>> from qubo_compress.calibration.evaluation import settle
        >>> from qubo_compress.calibration.examples import read_examples
        >>> net, data = nn.Linear(64, 32), [(torch.randn(64, 64), torch.arange(64) % 32)]
        >>> table = qc.measure(net, data, menu=qc.Menu(bits=(2, 4, 8)), progress=False)
        >>> held_out = HeldOut.of(net, *settle(net, read_examples(data)))
        >>> found = evolve(table, qc.Budget(ratio=1.5), held_out, 500)
        >>> found.evaluations <= 500, found.plan.bytes <= found.plan.original_bytes / 1.5
        (True, True)
    """
    evaluations = refuse_too_few(evaluations, held_out.examples.count)
    problem = table.problem(budget)
    with progress_bar(progress, "searching on the network", evaluations) as advance:
        loss = HeldOutLoss(held_out, table, advance)
        given = tuple(tuple(_open(table, plan).tolist()) for plan in starts)
        solver = Surrogate(loss, most_evaluations=evaluations, starts=given)
        solution = solve(problem, solver, time_limit=time_limit, seed=seed)
    trace = tuple((entry["evaluations"], entry["loss"], entry["examples"]) for entry in solution.details["history"])
    # Nothing was measured if Ctrl-C came at once.
    _, least, examples = trace[-1] if trace else (0, math.inf, 0)
    return Evolution(table.plan(solution), least, examples, solution.details["network_evaluations"], trace, solution)


def refuse_too_few(evaluations: int, examples: int) -> int:
    """The number of evaluations, if it suffices for one pass over the examples.

    Raises:
        InvalidOption: with both numbers, otherwise.
    """
    given = whole("evaluations", evaluations)
    if given < examples:
        raise InvalidOption(
            f"evaluations={given:,} do not suffice for one pass over the {examples:,} examples of the search; give at "
            f"least {examples:,}, or fewer examples"
        )
    return given


def _open(table: SensitivityTable, plan: Plan) -> IntArray:
    """(G,) a plan's choices, numbered among those that pins leave open."""
    local = table.assignment(plan.choices)
    before = np.concatenate([[0], np.cumsum(table.allowed)])
    starts = table.offsets[:-1]
    return np.asarray(before[starts + local] - before[starts], dtype=np.int64)
