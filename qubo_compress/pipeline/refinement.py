"""Refinement: measures again at the plan just found, where the quadratic model is exact."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qubo_compress.budget import Budget
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.selection.candidates import TIE, VERIFIED_PLANS, Candidate, select
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.sensitivity.measure import measure_specimen
from qubo_compress.sensitivity.specimen import Around, Specimen
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import Solution

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One solve and the measured loss of its plan.

    Attributes:
        table: the table that was solved.
        solution: the solver's best answer.
        plan: the candidate that did best on the held-out examples.
        predicted: its predicted loss change.
        held_out: its measured loss on held-out examples.
        accepted: whether it became the incumbent.
        candidates: every plan that was compared; see :func:`qubo_compress.selection.candidates.select`.
        winner: name of the candidate whose plan this is.
    """

    table: SensitivityTable
    solution: Solution
    plan: Plan
    predicted: float
    held_out: float
    accepted: bool
    candidates: tuple[Candidate, ...]
    winner: str

    @classmethod
    def of(
        cls,
        table: SensitivityTable,
        solution: Solution,
        candidates: tuple[Candidate, ...],
        winner: Candidate,
        accepted: bool = True,
    ) -> Round:
        """A round from its candidates and the winner."""
        return cls(
            table, solution, winner.plan, winner.predicted, winner.measured_loss, accepted, candidates, winner.name
        )

    @property
    def chosen(self) -> Candidate:
        """The candidate whose plan this is."""
        return next(candidate for candidate in self.candidates if candidate.name == self.winner)

    @property
    def measure(self) -> float:
        """The measure that chose the winner; see :attr:`qubo_compress.selection.comparison.Comparison.measure`."""
        return self.chosen.comparison.measure

    @property
    def checked(self) -> tuple[tuple[float, float], ...]:
        """(predicted loss change, measured held-out loss) of every candidate."""
        return tuple((candidate.predicted, candidate.measured_loss) for candidate in self.candidates)


@dataclass(frozen=True)
class Refinement:
    """How often and how widely to measure again.

    Attributes:
        rounds: most rounds; one without improvement is the last.
        verify: how many plans of each pool are measured; ``additive``, ``uniform`` and ``greedy`` always are.
        neighbourhood: measure only choices whose bytes are within this factor of the incumbent's; None
            measures all.
    """

    rounds: int
    verify: int = VERIFIED_PLANS
    neighbourhood: float | None = None


def refine(
    specimen: Specimen,
    table: SensitivityTable,
    first: Round,
    held_out: HeldOut,
    budget: Budget,
    solve: Callable[[ChoiceProblem], Solution],
    refinement: Refinement,
) -> list[Round]:
    """Re-measure every single swap from the incumbent plan, solve again, keep the better plan.

    Args:
        specimen: the uncompressed network, and how it was first measured. Each round has its own folder in the cache:
            a later call with the same arguments resumes an unfinished measurement; solves and checks on held-out
            examples are repeated.
        table: the first table; its pins stay in force.
        first: the first solve.
        held_out: compares plans, within a round and between rounds, by the same measure.
        budget: limits of the plan.
        solve: problem -> solution.
        refinement: how often and how widely.

    Returns:
        All rounds, the first included; the incumbent is the last accepted one.
    """
    history = [first]
    incumbent = first
    for number in range(1, refinement.rounds + 1):
        base, settings = incumbent.plan.apply(specimen.model), specimen.settings
        # Two incumbents may have the same size, so the folder is named by their contents.
        folder = f"round_{number}_{NetworkTensors(base).signature()[:12]}"
        cache = None if settings.cache is None else Path(settings.cache) / folder
        again = replace(settings, seed=settings.seed + number, cache=cache, seconds=None)
        restrict = _restriction(table, incumbent.plan, refinement.neighbourhood)
        around = Around(base, restrict, table.payloads, _optimism(table))
        measured = measure_specimen(replace(specimen, settings=again), around)
        problem = measured.problem(budget)
        solution = solve(problem)
        candidates, winner = select(measured, problem, solution, held_out, refinement.verify, again.seed)
        better = winner.comparison.measure < incumbent.measure - TIE
        found = Round.of(measured, solution, candidates, winner, better)
        history.append(found)
        logger.info("round %d: measured %.4g, before %.4g", number, winner.comparison.measure, incumbent.measure)
        if not better:
            break
        incumbent = found
    return history


def _optimism(table: SensitivityTable) -> dict[tuple[str, str], float]:
    """(group name, choice name) -> the optimism of a choice whose bytes the next round takes over."""
    if table.optimism is None:
        return {}
    every = [(group, name) for group, names in zip(table.group_names, table.choices, strict=True) for name in names]
    return dict(zip(every, table.optimism.tolist(), strict=True))


def _restriction(
    table: SensitivityTable, plan: Plan, neighbourhood: float | None
) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    """Keep the choices that pins allow and, if ``neighbourhood`` is set, only those near the incumbent's size."""
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
