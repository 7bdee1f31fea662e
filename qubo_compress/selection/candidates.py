"""Selects a plan: measures named candidates on held-out examples and takes the best.

A solver's optimum is only as good as its loss model. The best plans of its pool therefore compete with some that rely
less on the model: the optimum without interactions, ``uniform`` and ``greedy``, and ``magnitude``, the plan with the
least squared error of the weights. A table misled by few examples then costs little more than its measurement. Where
groups are parts of layers, one more plan has one choice for all parts of each layer: with few examples, what tells
filters apart is often luck.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qubo_compress.errors import InfeasibleBudget, InvalidProblem, NoFeasibleFound, ProblemTooLarge, UnsupportedProblem
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray
from qubo_compress.problem.ties import tie
from qubo_compress.selection.comparison import Comparison, HeldOut
from qubo_compress.selection.weight_errors import of_least_weight_errors
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import RawSolution, Solution
from qubo_compress.solvers.verification import solve, verify

logger = logging.getLogger(__name__)

VERIFIED_PLANS = 8
"""Number of plans of the solver's pool that are measured on held-out examples."""

EVOLVED = "evolved"
"""Name of the plan that a search on the network found; see :mod:`qubo_compress.selection.evolution`."""

PART = re.compile(r"\[\d+\]$")
"""What the name of a part of a layer adds to the layer's."""

OPPONENT_SECONDS = 2.0
"""Time limit for solving each opponent, which usually takes a few milliseconds."""

LAYERWISE_SECONDS = 0.5
"""Time limit for the plan with one choice for each layer: the annealer uses all of it, and these problems are small."""

TIE = 1e-9
"""Differences up to this count as ties, which the earlier candidate wins."""


@dataclass(frozen=True)
class Candidate:
    """A plan that was compared, with its predicted and its measured loss.

    Attributes:
        name: ``"solver"`` for the solver's best plan, ``"solver 2"`` and so on for others of its pool; ``"additive"``
            for the optimum of the same table without interactions; ``"uniform"``; ``"greedy"``; ``"magnitude"`` for
            the least squared error of the weights; ``"layerwise"`` for the best one with the same choice for all parts
            of each layer; ``"evolved"``.
        plan: the plan.
        predicted: loss change that the table predicts.
        expected: ``predicted``, corrected by the measurement of another candidate with a similar prediction; see
            :func:`expectations`.
        comparison: the network with the plan applied against the original on the held-out examples.
        also: names of other candidates that are the same plan.
        repaired: ``comparison`` after the repair, or the fine-tuning, that the returned network had; None for plans
            that had none; see :func:`finalists`.
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
        """The measure of the plan's network: applied or repaired, whichever is better."""
        applied = self.comparison.measure
        return applied if self.repaired is None else min(applied, self.repaired.measure)

    @property
    def final(self) -> Comparison:
        """The network that would be returned: repaired, unless that did harm."""
        found = self.repaired
        return self.comparison if found is None or found.measure > self.comparison.measure else found

    @property
    def kinds(self) -> tuple[str, ...]:
        """Its names, with ``"solver"`` for every plan of the solver's pool."""
        return tuple(dict.fromkeys(name.split(" ")[0] for name in self.names))

    @property
    def sought(self) -> bool:
        """Whether the table's predictions chose it: all except those that hardly depend on them."""
        return not {"uniform", "magnitude"} & set(self.names)

    @property
    def measured_loss(self) -> float:
        """Mean loss on the held-out examples; infinite if it is not finite."""
        loss = self.comparison.loss
        return loss if math.isfinite(loss) else math.inf

    @property
    def divergence(self) -> float:
        """Mean divergence from the original's outputs on the held-out examples, in the geometry of the loss."""
        return self.comparison.divergence.mean

    @property
    def standard_error(self) -> float:
        """The standard error of the paired change of the loss."""
        return self.comparison.change.standard_error

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the candidate."""
        return (self.name, *self.also)


def select(
    table: SensitivityTable,
    problem: ChoiceProblem,
    solution: Solution,
    held_out: HeldOut,
    verify: int = VERIFIED_PLANS,
    seed: int = 0,
    weight_errors: FloatArray | None = None,
) -> tuple[tuple[Candidate, ...], Candidate]:
    """Measure every candidate; return all of them and the winner.

    Args:
        table: the solved table.
        problem: of that table, under the budget.
        solution: the solver's answer.
        held_out: measures the candidates.
        verify: how many plans of the solver's pool are measured.
        seed: of the opponents' solvers.
        weight_errors: (V,) of the table's choices, see :mod:`qubo_compress.selection.weight_errors`; None leaves
            ``magnitude`` out.

    Returns:
        The candidates, the solver's first, then ``additive``, ``uniform``, ``greedy``, ``magnitude`` and, where groups
        are parts of layers, ``layerwise``; and the winner: the lowest
        :attr:`~qubo_compress.selection.comparison.Comparison.measure`, the KL divergence from the original's outputs
        for losses on class outputs, the loss itself for others. Within 1e-9 the earlier one wins.
    """
    plans: dict[str, Plan] = {}
    names: dict[str, list[str]] = {}
    errors = None if weight_errors is None else weight_errors[table.allowed]
    for name, found in (*_pool(solution, verify), *opponents(problem, seed, errors)):
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
    """Predictions corrected by the measurements of other plans of the same table.

    An optimiser exploits errors of the table, so the plans that it chose are worse than predicted, similar plans by a
    similar factor. The prediction of such a plan is multiplied by measured over predicted of *another* one, the one
    with the closest prediction; its own measurement would make the prediction perfect by construction. Plans that the
    table did not choose keep their predictions, as do those without another one.

    Args:
        predicted: loss changes, one per plan.
        measured: measured values, in the same unit.
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
    """The winner, the best plan of every kind, and the solver's own answer, which its bound is about.

    Repair changes the order of plans: for a digits network with 16 images at 16x, the plan with the lower divergence
    had the higher loss after both were repaired. Plans that will be returned repaired are therefore compared repaired,
    and so are the alternatives that a report names. Plans whose outputs are not finite are left out.

    Args:
        candidates: the solver's answer first.
        winner: one of them; the first of the finalists. The others follow by rising measure.
    """
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        for kind in candidate.kinds:
            if kind not in best or candidate.comparison.measure < best[kind].comparison.measure:
                best[kind] = candidate
    found = {candidate.name: candidate for candidate in (candidates[0], *best.values())}
    found.pop(winner.name, None)
    others = [candidate for candidate in found.values() if math.isfinite(candidate.comparison.measure)]
    return (winner, *sorted(others, key=lambda c: c.comparison.measure))


def opponents(
    problem: ChoiceProblem, seed: int = 0, weight_errors: FloatArray | None = None
) -> list[tuple[str, Solution]]:
    """The plans that rely less on the loss model, if they can be found.

    Args:
        problem: under the budget.
        seed: of their solvers.
        weight_errors: (V,) of the problem's choices; None leaves ``magnitude`` out.
    """
    found: list[tuple[str, Solution]] = []
    for name, given, solver in (
        ("additive", problem.without_interactions(), "exact"),
        ("uniform", problem, "uniform"),
        ("greedy", problem, "greedy"),
    ):
        found += _solved(name, given, solver, seed)
    usual = dict(found).get("additive")
    if weight_errors is not None and usual is not None:
        plainer = of_least_weight_errors(problem, weight_errors, usual.assignment)
        found += _solved("magnitude", plainer, "exact", seed)
    return found + _layerwise(problem, seed)


def _solved(name: str, problem: ChoiceProblem, solver: str, seed: int) -> list[tuple[str, Solution]]:
    """An opponent's plan, or nothing if it cannot be found in its time."""
    try:
        return [(name, solve(problem, solver, time_limit=OPPONENT_SECONDS, seed=seed))]
    except (NoFeasibleFound, ProblemTooLarge) as reason:
        logger.info("%s is not compared: %s", name, reason)
        return []


def _layerwise(problem: ChoiceProblem, seed: int) -> list[tuple[str, Solution]]:
    """The best plan with the same choice for all parts of each layer, where groups are parts of layers."""
    layers: dict[str, list[int]] = {}
    for number, name in enumerate(problem.group_names):
        layers.setdefault(PART.sub("", name), []).append(number)
    if len(layers) == problem.num_groups:
        return []
    try:
        tied = tie(problem, list(layers.values()))
        found = solve(tied.problem, "annealer", time_limit=LAYERWISE_SECONDS, seed=seed)
    except (NoFeasibleFound, InfeasibleBudget, InvalidProblem, UnsupportedProblem) as reason:
        logger.info("layerwise is not compared: %s", reason)
        return []
    lifted = RawSolution((tied.lift(found.assignment),))
    return [("layerwise", verify(problem, found.solver, lifted, found.timing["total"]))]


def _pool(solution: Solution, verify: int) -> list[tuple[str, Solution]]:
    best = (solution.pool or (solution,))[: max(1, verify)]
    return [("solver" if number == 0 else f"solver {number + 1}", found) for number, found in enumerate(best)]
