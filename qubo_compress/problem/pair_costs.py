"""Pair costs of budgets: what two choices together cost beyond the sum of each alone.

Removing a channel of one layer saves input weights of the next, so bytes and multiplications are products of two
choices. With P the pair costs of a budget and x the indicators of the selected choices, an assignment uses

    fixed_costs + costs . x + 1/2 x^T P x

of it. P is sparse, symmetric, of either sign, and empty within groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import sparse

from qubo_compress.errors import InvalidProblem, UnsupportedProblem
from qubo_compress.problem.pairs import checked_integers

if TYPE_CHECKING:
    from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray

PairCosts: TypeAlias = tuple[sparse.csr_array | None, ...]
"""(V, V) integers of each budget, or None for a budget without."""


def checked_pair_costs(given: Sequence[Any] | None, budgets: int, offsets: IntArray) -> PairCosts | None:
    """Read-only copies of the pair costs, one of each budget; None if there are none at all.

    Raises:
        InvalidProblem: when they are not one symmetric matrix of integers, or None, for every budget.
    """
    if given is None:
        return None
    if sparse.issparse(given) or isinstance(given, np.ndarray):
        raise InvalidProblem("pair_costs holds one matrix, or None, for every budget; put the matrix into a list")
    matrices = list(given)
    if len(matrices) != budgets:
        raise InvalidProblem(
            f"pair_costs must hold one matrix, or None, for each of {budgets} budgets; got {len(matrices)}"
        )
    checked = [
        None if matrix is None else checked_integers(f"pair_costs[{budget}]", matrix, offsets)
        for budget, matrix in enumerate(matrices)
    ]
    kept = tuple(None if matrix is None or matrix.nnz == 0 else matrix for matrix in checked)
    return None if all(matrix is None for matrix in kept) else kept


def pair_totals(pair_costs: PairCosts, chosen: IntArray) -> IntArray:
    """(B,) pair costs of the chosen choices (G,)."""
    sums = [0 if matrix is None else int(matrix[chosen][:, chosen].sum()) // 2 for matrix in pair_costs]
    return np.array(sums, dtype=np.int64)


def largest_pair_totals(pair_costs: PairCosts, offsets: IntArray) -> FloatArray:
    """(B,) an upper bound on the magnitude of any assignment's pair costs, and of any part of their sum."""
    sums = np.zeros(len(pair_costs))
    groups = offsets.size - 1
    group = np.repeat(np.arange(groups), np.diff(offsets))
    for budget, matrix in enumerate(pair_costs):
        if matrix is not None:
            entries = matrix.tocoo()
            keys, block = np.unique(group[entries.row] * groups + group[entries.col], return_inverse=True)
            largest = np.zeros(keys.size)
            np.maximum.at(largest, block, np.abs(entries.data.astype(np.float64)))
            sums[budget] = 0.5 * largest.sum()  # every pair of groups is there twice
    return sums


def costs_beside(problem: ChoiceProblem, chosen: IntArray) -> IntArray:
    """(B, V) cost of each choice beside the present choices of all other groups.

    Changing one group from v to w changes the totals by the difference of their columns.

    Args:
        problem: the problem.
        chosen: (G,) global numbers of the present choices.

    Example:
        >>> from qubo_compress import ChoiceProblem
        >>> problem = ChoiceProblem.random(kind="channels", groups=4, choices=2, seed=0)
        >>> here = problem.selected([0, 0, 0, 0])
        >>> costs = costs_beside(problem, here)
        >>> change = problem.totals([0, 1, 0, 0]) - problem.totals([0, 0, 0, 0])
        >>> bool((change == costs[:, 3] - costs[:, 2]).all())
        True
    """
    if problem.pair_costs is None:
        return problem.costs
    costs = problem.costs.copy()
    for budget, matrix in enumerate(problem.pair_costs):
        if matrix is not None:
            # Pair costs within a group are never stored, so a group's own choice adds zero here.
            costs[budget] += np.asarray(matrix[:, chosen].sum(axis=1), dtype=np.int64).ravel()
    return costs


def cost_beside(problem: ChoiceProblem, choice: int, present: IntArray) -> IntArray:
    """(B,) cost of one choice beside the present choices of all other groups.

    Args:
        problem: the problem.
        choice: its global number.
        present: (V,) 1 for the present choices, else 0.
    """
    cost: IntArray = problem.costs[:, choice].copy()
    for budget, matrix in enumerate(problem.pair_costs or ()):
        if matrix is not None:
            row = slice(matrix.indptr[choice], matrix.indptr[choice + 1])
            cost[budget] += matrix.data[row] @ present[matrix.indices[row]]
    return cost


def linear_costs(problem: ChoiceProblem, most: bool = False) -> tuple[IntArray, IntArray]:
    """Costs (B, V) and fixed costs (B,) without pair costs, whose totals are never above the true ones.

    The least pair cost of a choice with another group is a bound that one of the two groups may carry, or each of
    them half. Of odd numbers, one half is rounded up and one down, which is still a bound because pair costs are
    integers. For every budget, the best of these three ways is taken.

    Args:
        problem: the problem.
        most: take the largest pair costs, so that totals are never below the true ones.
    """
    costs, fixed, offsets = problem.costs.copy(), problem.fixed_costs.copy(), problem.group_offsets
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    for budget, matrix in enumerate(problem.pair_costs or ()):
        if matrix is not None:
            rows, partners, values = extreme_pair_costs(matrix, offsets, most)
            first = partners > group[rows]
            ways = np.tile(costs[budget], (3, 1))
            shared = (
                np.where(first, -(-values // 2), values // 2),
                np.where(first, values, 0),
                np.where(first, 0, values),
            )
            for way, carried in zip(ways, shared, strict=True):
                np.add.at(way, rows, carried)
            reach = (np.maximum if most else np.minimum).reduceat(ways, offsets[:-1], axis=1).sum(axis=1)
            costs[budget] = ways[np.argmin(reach) if most else np.argmax(reach)]
    return without_negative(costs, fixed, offsets)


def priced_pair_costs(problem: ChoiceProblem, prices: FloatArray) -> sparse.csr_array | None:
    """(V, V) pair energies that prices (B,) make of the pair costs; None without pair costs."""
    if problem.pair_costs is None:
        return None
    total = sparse.csr_array((problem.num_choices, problem.num_choices), dtype=np.float64)
    for price, matrix in zip(prices.tolist(), problem.pair_costs, strict=True):
        if matrix is not None:
            total = total + price * matrix
    return sparse.csr_array(total)


def tangent_costs(problem: ChoiceProblem, shares: FloatArray | None = None) -> tuple[IntArray, IntArray]:
    """Costs (B, V) and fixed costs (B,) without pair costs, whose totals are the tangent of the true ones at a mixture.

    At an assignment, the tangent is exact there and for every change of a single group. It is an estimate, not a bound.

    Args:
        problem: the problem.
        shares: (V,) share of each choice in its group's mixture; default: even ones.
    """
    if shares is None:
        shares = np.repeat(1.0 / problem.group_sizes, problem.group_sizes)
    costs, fixed = problem.costs.copy(), problem.fixed_costs.copy()
    for budget, matrix in enumerate(problem.pair_costs or ()):
        if matrix is not None:
            beside = matrix @ shares
            costs[budget] += np.rint(beside).astype(np.int64)
            fixed[budget] -= round(0.5 * float(shares @ beside))
    return without_negative(costs, fixed, problem.group_offsets)


def extreme_pair_costs(matrix: sparse.csr_array, offsets: IntArray, most: bool) -> tuple[IntArray, IntArray, IntArray]:
    """The least (or largest) pair cost of choices with each group that they are coupled to.

    Returns:
        The choices, the numbers of the other groups, and the values; absent entries count as zero.
    """
    groups, sizes = offsets.size - 1, np.diff(offsets)
    group = np.repeat(np.arange(groups), sizes)
    rows = np.repeat(np.arange(int(offsets[-1])), np.diff(matrix.indptr))
    keys = rows * groups + group[matrix.indices]  # rising: the columns of a row are sorted
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    values = (np.maximum if most else np.minimum).reduceat(matrix.data, starts)
    partners = keys[starts] % groups
    partly = np.diff(starts, append=keys.size) < sizes[partners]
    extreme = np.maximum(values, 0) if most else np.minimum(values, 0)
    return rows[starts], partners, np.where(partly, extreme, values)


def without_negative(costs: IntArray, fixed: IntArray, offsets: IntArray) -> tuple[IntArray, IntArray]:
    """The same totals without negative costs: what a group costs at least, if negative, becomes a fixed cost."""
    least = np.minimum(np.minimum.reduceat(costs, offsets[:-1], axis=1), 0)
    return costs - np.repeat(least, np.diff(offsets), axis=1), fixed + least.sum(axis=1)


def refuse_pair_costs(problem: ChoiceProblem, what: str, instead: str) -> None:
    """Raise :class:`UnsupportedProblem` if a problem has pair costs.

    Args:
        problem: the problem.
        what: cannot take them, as the subject of a sentence.
        instead: what to use.
    """
    if problem.pair_costs is not None:
        named = [
            name for name, matrix in zip(problem.budget_names, problem.pair_costs, strict=True) if matrix is not None
        ]
        raise UnsupportedProblem(
            f"{what} cannot take pair costs of budgets; this problem has some for {', '.join(named)}. Use {instead}"
        )
