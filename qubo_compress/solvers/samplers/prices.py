"""The price per unit of each budget, for solvers of models without budgets."""

from __future__ import annotations

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray

_REACH = 1e9
"""Prices stay within this factor of their unit: beyond, the price alone decides and would only overflow."""


class PriceSearch:
    """One price per budget, raised or lowered until its limit is crossed, then bisected on a logarithmic scale.

    Args:
        problem: the problem.
        spread: typical energy difference between the choices of a group, which sets the first step from zero.
        first: (B,) estimated prices to start from; default: zero.
        factor: of the first change of a price.
    """

    def __init__(
        self, problem: ChoiceProblem, spread: float, first: FloatArray | None = None, factor: float = 4.0
    ) -> None:
        ranges = np.ptp(problem.costs, axis=1).astype(np.float64)
        self.unit = spread / np.maximum(1.0, ranges)
        self.prices = np.zeros(problem.num_budgets) if first is None else first.astype(np.float64)
        self.factors = np.full(problem.num_budgets, factor)
        self.last = np.zeros(problem.num_budgets)

    def update(self, excess: IntArray) -> None:
        """Adjust prices after a round whose best sample missed the limits by ``excess``; zero is tried first."""
        over = excess > 0
        for b in range(self.prices.size):
            direction = 1.0 if over[b] else -1.0
            if self.prices[b] == 0.0:
                self.prices[b] = self.unit[b] if over[b] else 0.0
                continue
            if direction * self.last[b] < 0:
                self.factors[b] = max(1.02, np.sqrt(self.factors[b]))
            moved = self.prices[b] * self.factors[b] ** direction
            self.prices[b] = np.clip(moved, self.unit[b] / _REACH, self.unit[b] * _REACH)
            self.last[b] = direction
