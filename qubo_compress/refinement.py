"""Refinement: measuring again from the plan found, where the quadratic model is exact."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qubo_compress.budget import Budget
from qubo_compress.evaluation import outputs_of, score_examples
from qubo_compress.examples import Examples
from qubo_compress.file_format import weights_signature
from qubo_compress.menu.menu import Menu
from qubo_compress.plan import Plan
from qubo_compress.problem import ChoiceProblem
from qubo_compress.sensitivity.losses import LossLike
from qubo_compress.sensitivity.measure import measure_around
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.sensitivity.task import Metric
from qubo_compress.solvers.solution import Solution

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One solve and what its plan really costs.

    Attributes:
        table: the table that was solved.
        solution: the solver's best answer.
        plan: the plan of the pool with the lowest held-out loss.
        predicted: its predicted loss change.
        held_out: its measured loss on held-out examples.
        accepted: whether it became the incumbent.
        checked: (predicted loss change, measured held-out loss) of every plan of the pool that was looked at.
    """

    table: SensitivityTable
    solution: Solution
    plan: Plan
    predicted: float
    held_out: float
    accepted: bool
    checked: tuple[tuple[float, float], ...] = ()


def refine(
    model: nn.Module,
    table: SensitivityTable,
    first: Round,
    *,
    rounds: int,
    budget: Budget,
    examples: Examples,
    held_out: Examples,
    menu: Menu,
    metric: str | Metric,
    loss: LossLike,
    solve: Callable[[ChoiceProblem], Solution],
    seed: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
    verify: int = 8,
    neighbourhood: float | None = None,
    max_rank: int | None = 1024,
    shrinkage: float | str | None = None,
) -> list[Round]:
    """Re-measure every single swap from the incumbent plan, solve again, keep the better plan.

    Args:
        model: the uncompressed network.
        table: the first table; its pins stay in force.
        first: the first solve.
        rounds: how often to repeat; a round that improves nothing is the last.
        budget: what may be stored.
        examples: calibration examples, measured again in every round.
        held_out: examples that decide between plans.
        menu: what is offered.
        metric: see :func:`qubo_compress.measure`.
        loss: see :func:`qubo_compress.measure`.
        solve: problem -> solution.
        verify: how many plans of each pool are checked on the held-out examples.
        neighbourhood: measure only choices whose bytes are within this factor of the incumbent's; None
            measures all.
        seed: of everything drawn.
        cache: folder in which every round has its own.
        progress: show progress bars.
        max_rank: largest number of columns of the factor.
        shrinkage: see :func:`qubo_compress.measure`.

    Returns:
        All rounds, the first included; the incumbent is the last accepted one.
    """
    history = [first]
    incumbent = first
    for number in range(1, rounds + 1):
        base = incumbent.plan.apply(model)
        around = measure_around(
            base, model, examples, menu, metric, loss, table.layout,
            # Two incumbents may be of the same size, so the folder is named by what they hold.
            None if cache is None else Path(cache) / f"round_{number}_{weights_signature(base)[:12]}",
            seed + number, progress, max_rank=max_rank, shrinkage=shrinkage,
            restrict=_restriction(table, incumbent.plan, neighbourhood), payloads=table.payloads,
        )  # fmt: skip
        solution = solve(around.problem(budget))
        plan, measured, checked = best_of_pool(model, around, solution, held_out, loss, verify)
        better = measured < incumbent.held_out
        found = Round(around, solution, plan, plan.predicted_loss, measured, better, checked)
        history.append(found)
        logger.info("round %d: held-out loss %.4f, before %.4f", number, measured, incumbent.held_out)
        if not better:
            break
        incumbent = found
    return history


def best_of_pool(
    model: nn.Module, table: SensitivityTable, solution: Solution, held_out: Examples, loss: LossLike, verify: int
) -> tuple[Plan, float, tuple[tuple[float, float], ...]]:
    """The plan of the pool with the lowest measured held-out loss, that loss, and (predicted, measured) of all."""
    reference = outputs_of(model, held_out)
    best: tuple[float, Plan] | None = None
    checked = []
    for candidate in (solution.pool or (solution,))[: max(1, verify)]:
        plan = table.plan(candidate)
        measured = score_examples(plan.apply(model), held_out, loss, reference).loss
        if not math.isfinite(measured):
            measured = math.inf
        checked.append((plan.predicted_loss, measured))
        if best is None or measured < best[0]:
            best = (measured, plan)
    assert best is not None  # noqa: S101 - a pool holds at least the solution itself
    return best[1], best[0], tuple(checked)


def _restriction(
    table: SensitivityTable, plan: Plan, neighbourhood: float | None
) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    """Keep the choices that pins allow and, if asked, those of about the incumbent's size."""
    offsets, bytes_of = table.offsets, table.costs["bytes"]

    def restrict(group: int, offered: dict[str, Any]) -> dict[str, Any]:
        start = int(offsets[group])
        names = table.choices[group]
        incumbent = plan.choices[table.group_names[group]]
        here = int(bytes_of[start + names.index(incumbent)])

        def near(name: str) -> bool:
            if name == incumbent:
                return True
            position = start + names.index(name)
            if not table.allowed[position]:
                return False
            size = int(bytes_of[position])
            return neighbourhood is None or here / neighbourhood <= size <= here * neighbourhood

        return {name: operator for name, operator in offered.items() if name in names and near(name)}

    return restrict
