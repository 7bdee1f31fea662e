"""A problem around one assignment: the gain of each single change, and the prices at which changes fit the budgets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.pair_costs import tangent_costs

_BISECTIONS = 50
_DOUBLINGS = 60


@dataclass(frozen=True, eq=False)
class LocalModel:
    """All single changes from an assignment, padded to the largest group.

    Attributes:
        changes: (G, K) energy(group g set to k) - energy(assignment); infinite beyond a group's choices.
        prices: (B,) energy per unit of each budget: with single changes only and no interactions between
            them, the cheapest choices at these prices just fit.
        charged: (G, K) changes plus the price of the change in costs; infinite beyond a group's choices.
    """

    changes: FloatArray
    prices: FloatArray
    charged: FloatArray

    @property
    def gains(self) -> FloatArray:
        """(G,) largest gain of a single change of each group at the prices; never negative."""
        return np.asarray(-self.charged.min(axis=1), dtype=np.float64)


def local_model(problem: ChoiceProblem, assignment: npt.ArrayLike) -> LocalModel:
    """The changes around an assignment, and prices found by bisection.

    Several budgets share one multiplier: each budget's price is inversely proportional to its room. Pair costs are
    those beside the present choices.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> model = local_model(problem, [0, 1, 2, 3, 0, 1])
        >>> bool(np.allclose(model.changes[2], problem.deltas([0, 1, 2, 3, 0, 1], 2)))
        True
        >>> model.charged.shape, bool((model.gains >= 0).all())
        ((6, 4), True)
    """
    chosen = problem.selected(assignment)
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    energies = problem.linear + fields(problem, chosen)
    changes = _padded(problem, energies - energies[chosen][group], np.inf)
    costs, fixed = problem.costs, problem.fixed_costs
    if problem.pair_costs is not None:
        here_only = np.zeros(problem.num_choices)
        here_only[chosen] = 1.0
        costs, fixed = tangent_costs(problem, here_only)
    room = np.maximum(1.0, (problem.limits - fixed).astype(np.float64))
    spent = (costs / room[:, None]).sum(axis=0)
    shares = _padded(problem, spent, 0.0)
    allowed = float(((problem.limits - fixed) / room).sum())
    price = _price(changes, shares, allowed) if problem.num_budgets else 0.0
    here = spent[chosen][:, None]
    return LocalModel(changes, price / room, changes + price * (shares - here))


def least_linear(problem: ChoiceProblem) -> IntArray:
    """(G,) the choice of least linear energy in each group."""
    spans = zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)
    return np.array([int(np.argmin(problem.linear[a:b])) for a, b in spans], dtype=np.int64)


def fields(problem: ChoiceProblem, chosen: IntArray) -> FloatArray:
    """(V,) pair energies of every choice with the present choices of the other groups.

    Args:
        problem: the problem.
        chosen: (G,) global numbers of the choices at present.
    """
    if problem.pairs is not None:
        # Pairs within a group are never stored, so a group's own choice adds zero here.
        return np.asarray(problem.pairs[:, chosen].sum(axis=1), dtype=np.float64).ravel()
    if problem.factor is None:
        return np.zeros(problem.num_choices)
    total = problem.factor[chosen].sum(axis=0, dtype=np.float64)
    energies = np.empty(problem.num_choices)
    for g, (start, stop) in enumerate(zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)):
        energies[start:stop] = problem.factor[start:stop].astype(np.float64) @ (total - problem.factor[chosen[g]])
    return energies


def _padded(problem: ChoiceProblem, values: FloatArray, filler: float) -> FloatArray:
    sizes = problem.group_sizes
    table = np.full((problem.num_groups, int(sizes.max())), filler)
    table[np.arange(table.shape[1]) < sizes[:, None]] = values
    return table


def _price(changes: FloatArray, shares: FloatArray, allowed: float) -> float:
    """The least price, to the precision of the bisection, at which the cheapest choices fit."""
    rows = np.arange(len(changes))

    def fits(price: float) -> bool:
        return float(shares[rows, np.argmin(changes + price * shares, axis=1)].sum()) <= allowed

    if fits(0.0):
        return 0.0
    finite = changes[np.isfinite(changes)]
    high = max(float(np.ptp(finite)), 1e-300)
    for _ in range(_DOUBLINGS):
        if fits(high):
            break
        high *= 2.0
    low = 0.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
