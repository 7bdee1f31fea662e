"""Softmax over the choices by gradient: the continuous rank search of Aghababaei-Harandi and Amini, as a baseline.

Every group holds a mixture of its choices with weights pi = softmax(alpha / temperature); the composite loss

    energy(pi) + sum_b multiplier_b excess_b(pi) + stiffness_b / 2 max(0, excess_b(pi))^2

is minimised over alpha while the temperature falls and the mixtures harden (arXiv 2409.03555: a probability per rank
tied to a learnable parameter, plus a loss for the constraint; its settings were not readable, so these are ours). The
energy of a mixture is multilinear, where no group interacts with itself, so it equals the problem's energy when the
mixtures are pure. Finally the largest share of each group is taken, repaired to the budgets, and improved by single
changes.

The defaults were chosen among 16 settings (50 to 500 steps, rates 0.03 to 0.3, spreads 0.1 to 1, four ranges of
temperatures) on random dense 20 x 16 problems of seeds 0 to 3 and layer tables of digits and ResNet-20, at
half a second: many short descents beat few long ones.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.local_search.descent import LocalSearch, warm_up
from qubo_compress.solvers.solver import Search, Solver, solvers

_MOMENTS = (0.9, 0.999)
_TINY = 1e-12


@solvers.register
@dataclass(frozen=True)
class SoftmaxRelaxation(Solver):
    """Descend a softmax over the choices of every group while its temperature falls, then round, repair and fill.

    Restarts from new random parameters until the time or the work is used up. The work is the number of gradient steps.

    Args:
        steps: gradient steps of one descent.
        learning_rate: of Adam, in units of the parameters.
        temperatures: of the softmax at the start and at the end of a descent; falls geometrically.
        spread: standard deviation of the random parameters that a descent starts from.
        fill: whether to improve rounded answers by single changes that fit.

    Raises:
        InvalidSolverOption: for a number out of range.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=6, choices=4, seed=0)
        >>> solution = solve(problem, "relaxation", time_limit=30.0, work_limit=600)
        >>> problem.is_feasible(solution.assignment), solution.work
        (True, 600)
    """

    name: ClassVar[str] = "relaxation"
    accepts_pair_costs: ClassVar[bool] = True
    steps: int = 50
    learning_rate: float = 0.3
    temperatures: tuple[float, float] = (1.0, 0.05)
    spread: float = 0.5
    fill: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InvalidSolverOption(f"steps must be at least 1; got {self.steps}")
        hot, cold = self.temperatures
        if not 0.0 < cold <= hot < math.inf:
            raise InvalidSolverOption(f"temperatures must be positive and not rise; got {self.temperatures}")
        if not 0.0 < self.learning_rate < math.inf or not 0.0 <= self.spread < math.inf:
            raise InvalidSolverOption(
                "learning_rate must be positive and spread not negative, both finite; "
                f"got {self.learning_rate} and {self.spread}"
            )

    def run(self, search: Search) -> None:
        """Descend, round and restart until the time or the work, counted in gradient steps, is used up."""
        with search.compiling():
            warm_up()
        descents = _Descents(search, self)
        try:
            descents.prepare()
            while not search.over():
                descents.descent()
        finally:
            search.details |= descents.figures()


class Mixtures:
    """Energies, budgets and gradients of mixtures, one weight per choice.

    Args:
        problem: the problem.

    Example:
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=4, choices=3, seed=0)
        >>> weights = np.zeros(12)
        >>> weights[problem.selected([0, 1, 2, 0])] = 1.0
        >>> energy, gradient = Mixtures(problem).energy(weights)
        >>> bool(np.isclose(energy, problem.energy([0, 1, 2, 0])))
        True
    """

    def __init__(self, problem: ChoiceProblem) -> None:
        self.problem = problem
        self.starts = problem.group_offsets[:-1]
        self.group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
        self.rows = None if problem.factor is None else problem.factor.astype(np.float64)
        if self.rows is not None:
            self.own = _blocks(self.rows, problem.group_offsets)
        room = (problem.limits - problem.fixed_costs).astype(np.float64)
        unit = np.maximum(1.0, room)
        self.shares = problem.costs / unit[:, None]
        self.room = room / unit
        self.pair_shares = [
            None if matrix is None else sparse.csr_array(matrix / scale)
            for matrix, scale in zip(problem.pair_costs or (), unit.tolist(), strict=False)
        ]

    def softmax(self, parameters: FloatArray, temperature: float) -> FloatArray:
        """(V,) weights that sum to one in every group."""
        scaled = parameters / temperature
        scaled -= np.maximum.reduceat(scaled, self.starts)[self.group]
        weights = np.exp(scaled)
        return np.asarray(weights / np.add.reduceat(weights, self.starts)[self.group], dtype=np.float64)

    def energy(self, weights: FloatArray) -> tuple[float, FloatArray]:
        """Multilinear energy of mixtures and its gradient (V,)."""
        problem = self.problem
        if self.rows is not None:
            # A group's interaction with itself is subtracted again.
            pulls = self.rows @ (weights @ self.rows) - self.own @ weights
        elif problem.structure == "pairs":
            pulls = problem.pairs @ weights  # type: ignore[operator]
        else:
            pulls = np.zeros(weights.size)
        value = problem.constant + float(weights @ (problem.linear + 0.5 * pulls))
        return value, np.asarray(problem.linear + pulls, dtype=np.float64)

    def excess(self, weights: FloatArray) -> FloatArray:
        """(B,) overspending of mixtures as shares of the limits, negative where there is room."""
        spent = self.shares @ weights
        for budget, matrix in enumerate(self.pair_shares):
            spent[budget] += 0.0 if matrix is None else 0.5 * float(weights @ (matrix @ weights))
        return np.asarray(spent - self.room, dtype=np.float64)

    def charges(self, weights: FloatArray, prices: FloatArray) -> FloatArray:
        """(V,) gradient of the priced overspending."""
        slopes = prices @ self.shares
        for price, matrix in zip(prices.tolist(), self.pair_shares, strict=False):
            if matrix is not None:
                slopes = slopes + price * (matrix @ weights)
        return np.asarray(slopes, dtype=np.float64)

    def through_softmax(self, gradient: FloatArray, weights: FloatArray, temperature: float) -> FloatArray:
        """(V,) gradient with respect to the parameters from that with respect to the weights."""
        means = np.add.reduceat(weights * gradient, self.starts)[self.group]
        return np.asarray(weights * (gradient - means) / temperature, dtype=np.float64)


def _blocks(rows: FloatArray, offsets: IntArray) -> sparse.csr_array:
    """(V, V) inner products of rows within groups, zero elsewhere."""
    blocks = [rows[a:b] @ rows[a:b].T for a, b in itertools.pairwise(offsets)]
    return sparse.csr_array(sparse.block_diag(blocks, format="csr"))


class _Descents:
    """What is carried over from one descent to the next."""

    def __init__(self, search: Search, settings: SoftmaxRelaxation) -> None:
        self.search, self.problem, self.settings = search, search.problem, settings
        self.descents = self.rounded_fitting = 0
        self.multipliers = np.zeros(self.problem.num_budgets)

    def prepare(self) -> None:
        problem = self.problem
        self.local = LocalSearch(problem, self.search.rng)
        self.mixtures = Mixtures(problem)
        self._round(problem.linear * -1.0)  # an answer even before the first step
        uniform = self.mixtures.softmax(np.zeros(problem.num_choices), 1.0)
        slopes = self.mixtures.energy(uniform)[1]
        starts, group = self.mixtures.starts, self.mixtures.group
        spreads = np.maximum.reduceat(slopes, starts) - np.minimum.reduceat(slopes, starts)
        self.scale = max(float(spreads.mean()), _TINY)
        means = (np.add.reduceat(self.mixtures.shares, starts, axis=1) / problem.group_sizes)[:, group]
        variation = np.sqrt(((self.mixtures.shares - means) ** 2).mean(axis=1))
        # A unit of overspending must cost as much as the typical choices that make up for it.
        self.stiffness = self.scale / np.maximum(variation, _TINY)

    def descent(self) -> None:
        """One annealed descent by Adam from random parameters; the prices of the budgets carry over."""
        settings, mixtures = self.settings, self.mixtures
        parameters = settings.spread * self.search.rng.standard_normal(self.problem.num_choices)
        mean, square = np.zeros_like(parameters), np.zeros_like(parameters)
        hot, cold = settings.temperatures
        for step in range(settings.steps):
            if self.search.over():
                break
            temperature = hot * (cold / hot) ** (step / max(1, settings.steps - 1))
            weights = mixtures.softmax(parameters, temperature)
            slopes = self._slopes(weights)
            gradient = mixtures.through_softmax(slopes, weights, temperature)
            mean += (1.0 - _MOMENTS[0]) * (gradient - mean)
            square += (1.0 - _MOMENTS[1]) * (gradient**2 - square)
            first, second = (1.0 - moment ** (step + 1) for moment in _MOMENTS)
            parameters -= settings.learning_rate * (mean / first) / (np.sqrt(square / second) + 1e-8 * self.scale)
            self.search.work += 1
        self.descents += 1
        self._round(parameters)

    def _slopes(self, weights: FloatArray) -> FloatArray:
        """(V,) gradient of the augmented Lagrangian of Hestenes and Powell; moves the multipliers."""
        slopes = self.mixtures.energy(weights)[1]
        if self.multipliers.size:
            excess = self.mixtures.excess(weights)
            prices = np.maximum(0.0, self.multipliers + self.stiffness * excess)
            self.multipliers += 0.1 * (prices - self.multipliers)
            slopes = slopes + self.mixtures.charges(weights, prices)
        return slopes

    def _round(self, parameters: FloatArray) -> None:
        """Take the largest parameter of each group, repair, fill and keep."""
        spans = itertools.pairwise(self.problem.group_offsets)
        self.local.place([int(np.argmax(parameters[a:b])) for a, b in spans])
        self.rounded_fitting += self.descents > 0 and self.local.feasible
        if not self.local.repair():
            return
        if self.settings.fill:
            # Not limited by the clock, so that the same work gives the same answer; it takes milliseconds.
            self.local.descend(np.inf, pairs=False)
        self.search.keep(self.local.assignment)

    def figures(self) -> dict[str, int]:
        """What was done, for the details."""
        return {
            "gradient_steps": self.search.work,
            "descents": self.descents,
            "descents_within_budget_before_repair": self.rounded_fitting,
        }
