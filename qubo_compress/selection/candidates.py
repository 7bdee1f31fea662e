"""Which plan to take: named candidates, each measured on held-out examples, and the best one measured wins.

A solver's optimum is only as good as its loss model. Beside the best plans of its pool stand three that need less of
the model: the optimum without interactions, ``uniform`` and ``greedy``. A table that few examples have misled then
costs little more than the measurement.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qubo_compress.errors import NoFeasibleFound, ProblemTooLarge
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.selection.comparison import Comparison, HeldOut
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.verification import solve

logger = logging.getLogger(__name__)

VERIFIED_PLANS = 8
"""Plans of the solver's pool that are measured on held-out examples."""

OPPONENT_SECONDS = 2.0
"""Time limit for the solve of each opponent, which as a rule takes a few milliseconds."""

FINAL_FACTOR = 4.0
"""Candidates whose measure is this many times the winner's are not repaired: it would not make up for that."""

TIE = 1e-9
"""Differences up to this are none: the candidate that comes first stays ahead."""


@dataclass(frozen=True)
class Candidate:
    """A plan that was compared, with its predicted and its measured loss.

    Attributes:
        name: ``"solver"`` for the solver's best plan, ``"solver 2"`` and so on for others of its pool; ``"additive"``
            for the optimum of the same table without interactions; ``"uniform"``; ``"greedy"``.
        plan: the plan.
        predicted: loss change that the table predicts.
        expected: the same, corrected by what was measured for another candidate that was predicted alike; see
            :func:`expectations`.
        comparison: the network with the plan applied against the original on the held-out examples.
        also: names of other candidates that turned out to be the same plan.
        repaired: the same after recovery, for the finalists that were repaired; else None.
    """

    name: str
    plan: Plan
    predicted: float
    comparison: Comparison
    also: tuple[str, ...] = ()
    repaired: Comparison | None = None
    expected: float = math.nan

    @property
    def final_measure(self) -> float:
        """The measure of the network that this plan leads to: applied or repaired, whichever is better."""
        applied = self.comparison.measure
        return applied if self.repaired is None else min(applied, self.repaired.measure)

    @property
    def kind(self) -> str:
        """``"solver"`` for all plans of the solver's pool, else the name."""
        return self.name.split(" ")[0]

    @property
    def sought(self) -> bool:
        """Whether the table's predictions chose it: everything except ``uniform``, which they have little say in."""
        return "uniform" not in self.names

    @property
    def measured_loss(self) -> float:
        """Mean loss on the held-out examples; infinite when it is not finite."""
        loss = self.comparison.loss
        return loss if math.isfinite(loss) else math.inf

    @property
    def divergence(self) -> float:
        """Mean divergence from the original's outputs on the held-out examples, in the geometry of the loss."""
        return self.comparison.divergence.mean

    @property
    def standard_error(self) -> float:
        """Of the paired change of the loss."""
        return self.comparison.change.standard_error

    @property
    def names(self) -> tuple[str, ...]:
        """All its names."""
        return (self.name, *self.also)


def select(
    table: SensitivityTable,
    problem: ChoiceProblem,
    solution: Solution,
    held_out: HeldOut,
    verify: int = VERIFIED_PLANS,
    seed: int = 0,
) -> tuple[tuple[Candidate, ...], Candidate]:
    """Measure every candidate and return all of them, and the one to take.

    Args:
        table: that was solved.
        problem: of that table, under the budget.
        solution: the solver's answer to it.
        held_out: what candidates are measured on.
        verify: how many plans of the solver's pool are measured.
        seed: of the opponents' solvers.

    Returns:
        The candidates, the solver's first, then ``additive``, ``uniform`` and ``greedy``; and the winner: the lowest
        :attr:`~qubo_compress.selection.comparison.Comparison.measure`, the KL divergence from the original's outputs
        for losses on class outputs, the loss itself for others. Within 1e-9 the earlier one wins.
    """
    plans: dict[str, Plan] = {}
    names: dict[str, list[str]] = {}
    for name, found in (*_pool(solution, verify), *opponents(problem, seed)):
        plan = table.plan(found)
        key = str(sorted(plan.choices.items()))
        plans.setdefault(key, plan)
        names.setdefault(key, []).append(name)
    candidates = []
    for key, plan in plans.items():
        # One network at a time: there may be a dozen candidates.
        comparison = held_out.compare(plan.apply(held_out.model))
        name, *also = names[key]
        candidates.append(Candidate(name, plan, plan.predicted_loss, comparison, tuple(also)))
        logger.info("%s: predicted %+.4g, measured %.4g", name, plan.predicted_loss, comparison.measure)
    shrinkage = table.provenance.shrinkage
    measured = [candidate.comparison.held_against(shrinkage).mean for candidate in candidates]
    predicted = [candidate.predicted for candidate in candidates]
    expected = expectations(predicted, measured, [candidate.sought for candidate in candidates])
    candidates = [replace(candidate, expected=value) for candidate, value in zip(candidates, expected, strict=True)]
    winner = candidates[0]
    for candidate in candidates[1:]:
        if candidate.comparison.measure < winner.comparison.measure - TIE:
            winner = candidate
    return tuple(candidates), winner


def expectations(predicted: Sequence[float], measured: Sequence[float], sought: Sequence[bool]) -> list[float]:
    """Predictions corrected by what was measured for other plans of the same table.

    An optimiser finds what the examples happened to miss, so the plans that it sought out are worse than was predicted,
    and alike plans by a like factor. The prediction of such a plan is multiplied by measured over predicted of
    *another* of them, the one with the closest prediction; a plan's own measurement says nothing about how well it
    was predicted. Plans that the table had no say in keep their predictions, and so do those without such another.

    Args:
        predicted: loss changes, one per plan.
        measured: what was measured for them, in the same unit.
        sought: whether a plan was chosen by these predictions.

    Example:
        >>> expectations([1.0, 2.0, 8.0, 5.0], [9.0, 4.0, 8.0, 5.0], [True, True, True, False])
        [2.0, 18.0, 16.0, 5.0]
    """
    known = [
        number
        for number, (prediction, measure) in enumerate(zip(predicted, measured, strict=True))
        if sought[number] and prediction > 0 and 0 < measure < math.inf
    ]
    corrected = list(predicted)
    for number, prediction in enumerate(predicted):
        others = [other for other in known if other != number]
        if sought[number] and prediction > 0 and others:
            alike = min(others, key=lambda other: abs(math.log(predicted[other] / predicted[number])))
            corrected[number] = float(prediction * measured[alike] / predicted[alike])
    return corrected


def finalists(candidates: tuple[Candidate, ...], winner: Candidate) -> tuple[Candidate, ...]:
    """The winner, and the best plan of every other kind that is not far behind it.

    Repair changes the order of plans: with 16 images of a digits network at 16x the plan of the lower divergence had
    the higher loss once both were repaired. So the plans to be returned repaired are judged repaired.
    """
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        known = best.get(candidate.kind)
        if candidate.kind != winner.kind and (known is None or candidate.comparison.measure < known.comparison.measure):
            best[candidate.kind] = candidate
    near = [c for c in best.values() if c.comparison.measure <= FINAL_FACTOR * max(winner.comparison.measure, TIE)]
    return (winner, *sorted(near, key=lambda c: c.comparison.measure))


def opponents(problem: ChoiceProblem, seed: int = 0) -> list[tuple[str, Solution]]:
    """The plans that need less of the loss model, as far as they can be found."""
    found = []
    for name, given, solver in (
        ("additive", problem.without_interactions(), "exact"),
        ("uniform", problem, "uniform"),
        ("greedy", problem, "greedy"),
    ):
        try:
            found.append((name, solve(given, solver, time_limit=OPPONENT_SECONDS, seed=seed)))
        except (NoFeasibleFound, ProblemTooLarge) as reason:
            logger.info("%s is not compared: %s", name, reason)
    return found


def _pool(solution: Solution, verify: int) -> list[tuple[str, Solution]]:
    best = (solution.pool or (solution,))[: max(1, verify)]
    return [("solver" if number == 0 else f"solver {number + 1}", found) for number, found in enumerate(best)]
