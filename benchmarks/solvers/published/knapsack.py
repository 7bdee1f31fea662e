"""Quadratic knapsack by the published formula of its test problems.

Gallo, Hammer, Simeone, "Quadratic knapsack problems", Mathematical Programming Study 12 (1980), used again by
Billionnet and Soutif, "An exact method based on Lagrangian decomposition for the 0-1 quadratic knapsack problem",
European Journal of Operational Research 157 (2004): profits of items and of pairs are zero with probability 1 - density
and else uniform in 1..100, weights uniform in 1..50, the capacity uniform between 50 and the sum of the weights.
Generated here with numpy from the seed that is named: these are not the authors' files ``jeu_...``, so that no
published optimum applies.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from qubo_compress import ChoiceProblem


def knapsack_values(items: int, density: float, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(n, n) symmetric profits, those of single items on the diagonal; (n,) weights; the capacity."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, 101, (items, items)) * (rng.random((items, items)) < density)
    upper = np.triu(drawn)
    weights = rng.integers(1, 51, items)
    return upper + np.triu(upper, 1).T, weights, int(rng.integers(50, weights.sum() + 1))


def knapsack_problem(items: int, density: float, seed: int) -> ChoiceProblem:
    """Every item is a group of two choices, left and packed; the energy is minus the profit.

    Example:
        >>> knapsack_problem(50, 0.25, 0).num_choices
        100
    """
    profits, weights, capacity = knapsack_values(items, density, seed)
    packed = 2 * np.arange(items) + 1
    row, column = np.nonzero(profits * ~np.eye(items, dtype=bool))
    linear, costs = np.zeros(2 * items), np.zeros((1, 2 * items), dtype=np.int64)
    linear[packed], costs[0, packed] = -np.diag(profits), weights
    pairs = sparse.csr_array(
        (-profits[row, column].astype(float), (packed[row], packed[column])), shape=(2 * items, 2 * items)
    )
    return ChoiceProblem(
        linear=linear, group_offsets=2 * np.arange(items + 1), costs=costs, limits=[capacity], pairs=pairs,
        choice_names=("left", "packed") * items, budget_names=("weight",),
    )  # fmt: skip
