"""Proofs that several budgets exclude every assignment: exact reductions, a linear program, an integer program.

One budget alone can always be met down to its smallest total. Several can exclude each other, and a search that finds
nothing proves nothing. Costs are first reduced in exact integers: each group's least cost is subtracted, choices that
exceed a budget are removed, and the rest is divided by its common divisor, which also settles parities. A linear
program then searches for prices p >= 0 with

    sum over groups of min_v (p . cost[v])  >  p . room,

which exclude every assignment; they are rounded to integers and checked exactly. If no such prices exist, HiGHS
searches for any integer solution.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, sparse

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.exact.integer_programming import (
    MOST_TABLE_ENTRIES,
    Programme,
    linear_programme,
    run_programme,
    table_entries,
)

if TYPE_CHECKING:
    from qubo_compress.solvers.search import Search

_SHARE = 0.4
"""Largest share of a search's time for the proof that nothing fits."""

_PRICE_UNITS = 2**30
"""Prices are rounded to multiples of the largest price divided by this number."""

_LARGEST_COST = 10**6
"""Largest reduced cost for which a floating-point program is trusted: one unit is well above its tolerance."""

_LARGEST_PROGRAMME = 2_000_000
"""Most entries of the cost matrix of a program."""


@dataclass(frozen=True, eq=False)
class _Budgets:
    """The reduced problem: costs (B, V') of the remaining choices, the room, and the group offsets."""

    costs: IntArray
    room: IntArray
    offsets: IntArray


def nothing_fits(search: Search) -> bool:
    """Whether the budgets are proven to exclude everything; the search, which has found nothing yet, is told so.

    With a work limit no integer program runs, because a separate process's work would not repeat.
    """
    soon = time.perf_counter() + _SHARE * search.limits.seconds
    search.infeasible = proves_infeasible(search.problem, soon, integers=search.limits.work is None)
    return search.infeasible


def proves_infeasible(problem: ChoiceProblem, deadline: float, integers: bool = True) -> bool:
    """Whether it is proven that no assignment meets all budgets; False proves nothing.

    Args:
        problem: the problem; its energies do not matter.
        deadline: value of ``time.perf_counter`` by which this function returns.
        integers: whether an integer program in a separate process may follow the linear one.

    Example:
        >>> costs = [[4, 1, 4, 1], [1, 4, 1, 4]]
        >>> problem = ChoiceProblem(linear=[0.0] * 4, group_offsets=[0, 2, 4], costs=costs, limits=[4, 4])
        >>> proves_infeasible(problem, time.perf_counter() + 10.0)
        True
    """
    if problem.num_budgets == 0 or problem.costs.size > _LARGEST_PROGRAMME:
        return False
    if problem.pair_costs is not None:
        # Costs that are never above the true ones: what they exclude is excluded.
        if proves_infeasible(problem.without_pair_costs(), deadline, integers=False):
            return True
        return integers and _no_products(problem, deadline)
    budgets = _reduced(problem)
    if budgets is None:
        return True
    if problem.num_budgets == 1:
        return False
    seconds = deadline - time.perf_counter()
    if seconds <= 0.0:
        return False
    if _prices_exclude(budgets, _prices(budgets, seconds)):
        return True
    return integers and int(budgets.costs.max(initial=0)) <= _LARGEST_COST and _no_integers(budgets, deadline)


def _reduced(problem: ChoiceProblem) -> _Budgets | None:
    """The budgets in their smallest exact form; None if a group has no affordable choice."""
    costs, room, offsets = problem.costs, problem.limits - problem.fixed_costs, problem.group_offsets
    while True:
        sizes = np.diff(offsets)
        least = np.minimum.reduceat(costs, offsets[:-1], axis=1)
        costs, room = costs - np.repeat(least, sizes, axis=1), room - least.sum(axis=1)
        if (room < 0).any():
            return None
        divisors = np.maximum(1, np.gcd.reduce(costs, axis=1))
        costs, room = costs // divisors[:, None], room // divisors
        affordable = (costs <= room[:, None]).all(axis=0)
        if affordable.all():
            return _Budgets(costs, room, offsets)
        group = np.repeat(np.arange(sizes.size), sizes)
        left = np.bincount(group[affordable], minlength=sizes.size)
        if (left == 0).any():
            return None
        costs = costs[:, affordable]
        offsets = np.concatenate([[0], np.cumsum(left)]).astype(np.int64)


def _groups(budgets: _Budgets, beside: int = 0) -> sparse.csr_array:
    """(G, V' + beside) constraint rows: one choice of each group."""
    total, sizes = int(budgets.offsets[-1]), np.diff(budgets.offsets)
    places = (np.repeat(np.arange(sizes.size), sizes), np.arange(total))
    return sparse.csr_array((np.ones(total), places), shape=(sizes.size, total + beside))


def _scales(budgets: _Budgets) -> FloatArray:
    return np.asarray(np.maximum(1, budgets.costs.max(axis=1, initial=1)), dtype=np.float64)


def _prices(budgets: _Budgets, seconds: float) -> FloatArray:
    """(B,) prices at which mixtures overspend the least: duals of the program with a slack for every budget."""
    count, total = budgets.costs.shape
    scales = _scales(budgets)
    spending = sparse.hstack([sparse.csr_array(budgets.costs / scales[:, None]), -sparse.eye_array(count)])
    result = optimize.linprog(
        np.concatenate([np.zeros(total), np.ones(count)]), A_ub=spending.tocsr(), b_ub=budgets.room / scales,
        A_eq=_groups(budgets, count), b_eq=np.ones(budgets.offsets.size - 1), method="highs",
        options={"time_limit": max(0.01, seconds)},
    )  # fmt: skip
    found = None if result.get("ineqlin") is None else result.ineqlin.get("marginals")
    if found is None or np.size(found) != count:
        return np.zeros(count)
    return np.asarray(np.maximum(0.0, -np.asarray(found, dtype=np.float64)) / scales)


def _prices_exclude(budgets: _Budgets, prices: FloatArray) -> bool:
    """Whether prices, rounded to integers, prove in exact arithmetic that the room is too small."""
    largest = float(prices.max(initial=0.0))
    if largest <= 0.0:
        return False
    whole = [round(price / largest * _PRICE_UNITS) for price in prices.tolist()]
    # Python's integers: products of costs and prices may exceed 64 bits.
    charged = sum(price * row.astype(object) for price, row in zip(whole, budgets.costs, strict=True))
    least = sum(min(charged[a:b]) for a, b in itertools.pairwise(budgets.offsets.tolist()))
    return bool(least > sum(price * int(room) for price, room in zip(whole, budgets.room, strict=True)))


def _no_integers(budgets: _Budgets, deadline: float) -> bool:
    """Whether HiGHS finds that no assignment fits. It gets half a unit more room, so that rounding excludes none."""
    total, groups = int(budgets.offsets[-1]), budgets.offsets.size - 1
    scales = _scales(budgets)
    matrix = sparse.vstack([_groups(budgets), sparse.csr_array(budgets.costs / scales[:, None])]).tocsr()
    low = np.concatenate([np.ones(groups), np.full(scales.size, -np.inf)])
    high = np.concatenate([np.ones(groups), (budgets.room + 0.5) / scales])
    return run_programme(Programme(np.zeros(total), matrix, low, high), total, deadline).infeasible


def _no_products(problem: ChoiceProblem, deadline: float) -> bool:
    """Whether HiGHS finds that no assignment fits budgets with pair costs, with half a unit more room."""
    free = dataclasses.replace(problem, linear=np.zeros(problem.num_choices), factor=None, pairs=None, constant=0.0)
    largest = [matrix.data for matrix in problem.pair_costs or () if matrix is not None]
    if max(int(np.abs(values).max(initial=0)) for values in (problem.costs, *largest)) > _LARGEST_COST:
        return False
    if table_entries(free) > MOST_TABLE_ENTRIES:
        return False
    programme = linear_programme(free, 0.5)
    return run_programme(programme, free.num_choices, deadline).infeasible
