"""Lower bounds on the energy of every assignment within the budgets."""

from __future__ import annotations

import time

import numpy as np
from scipy import optimize, sparse

from qubo_compress._internal import compiling
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.energy_scale import standardise
from qubo_compress.problem.generators import tiny_problem
from qubo_compress.solvers.exact import price_kernels
from qubo_compress.solvers.exact import relaxation_kernels as kernels
from qubo_compress.solvers.exact.convex_relaxation import (
    LARGEST_GRAM,
    convex_form,
    factor_form,
    relax,
    scaled_costs,
    start_at,
)
from qubo_compress.solvers.exact.message_passing import fits_in_blocks, message_bound

LARGEST_EIGENPROBLEM = 1500
_PATIENCE = 8

_WARM_UP_SECONDS = 600.0
"""Never reached: a tiny problem takes no time."""

_PAIRS_PER_SECOND = 12_000_000
"""Stored pair energies that can be arranged in blocks in a second."""


def lower_bound(problem: ChoiceProblem, seconds: float) -> float | None:
    """A proven lower bound on the energy of every feasible assignment.

    With a factor, it is the dual bound of the convex relaxation, in which every group may hold a mixture of its
    choices: for any vector s and prices p >= 0,

        energy >= constant - 1/2 |s|^2 - p . room + sum over groups of min_v (diagonal[v] + A[v] . s + p . cost[v]),

    so any s and p that the search finds give a valid bound. With pairs, it is the better of message
    passing and the relaxation of the convexified problem; without interactions, the linear relaxation.
    The largest possible rounding error is deducted. Pair costs of budgets are replaced by costs that are never above.

    Args:
        problem: the problem; its budgets are part of the bound.
        seconds: wall clock to spend.

    Returns:
        The bound; ``inf`` if the budgets were found to exclude everything; None if no bound is
        available for a problem of this size.

    Example:
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=6, choices=4, seed=0)
        >>> bound = lower_bound(problem, seconds=1.0)
        >>> cheapest = [3] * 6
        >>> bound <= problem.energy(cheapest)
        True
    """
    problem = problem.without_pair_costs()
    warm_up(problem.structure)  # compiling, once per machine, does not count
    standard = standardise(problem)
    bound = _standard_bound(standard.problem, time.perf_counter() + seconds, seconds)
    return None if bound is None else standard.energy(bound)


def _standard_bound(problem: ChoiceProblem, deadline: float, seconds: float) -> float | None:
    if problem.structure == "separable":
        return _separable_bound(problem, seconds)
    if problem.structure == "pairs":
        return _pairs_bound(problem, deadline)
    if problem.num_choices <= LARGEST_GRAM:
        form = convex_form(problem)
        return relax(form, start_at(form, _lowest_vertex(problem)), deadline)[0]
    return _factor_bound(problem, deadline)


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) every kernel that a structure needs, on a tiny problem."""
    problem = tiny_problem(structure)
    _standard_bound(problem, np.inf, _WARM_UP_SECONDS)
    if structure == "factor":
        _factor_bound(problem, np.inf)


def _lowest_vertex(problem: ChoiceProblem) -> IntArray:
    """(G,) global numbers of the choices with the lowest linear energy: in measured tables, keeping everything."""
    ends = zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)
    return np.array([start + np.argmin(problem.linear[start:stop]) for start, stop in ends], dtype=np.int64)


def _separable_bound(problem: ChoiceProblem, seconds: float) -> float:
    costs, room, _ = scaled_costs(problem)
    offsets, choices = problem.group_offsets.copy(), np.arange(problem.num_choices)
    price = np.zeros(room.size)
    if room.size > 1:
        price = _linear_program_prices(problem, costs, room, seconds)
    certified = -np.inf
    if room.size > 1:  # the line searches below start from zero in each budget and may end lower
        certified = _certified(problem, problem.linear, 0.0, costs, room, price)
    if np.isinf(price_kernels.polish_prices(problem.linear.copy(), offsets, choices, costs, room, price, 20)):
        return np.inf
    return max(certified, _certified(problem, problem.linear, 0.0, costs, room, price))


def _linear_program_prices(problem: ChoiceProblem, costs: FloatArray, room: FloatArray, seconds: float) -> FloatArray:
    total, groups = problem.num_choices, problem.num_groups
    member = sparse.csr_array(
        (np.ones(total), (np.repeat(np.arange(groups), problem.group_sizes), np.arange(total))), shape=(groups, total)
    )
    result = optimize.linprog(
        problem.linear, A_ub=costs.T, b_ub=room, A_eq=member, b_eq=np.ones(groups), method="highs",
        options={"time_limit": max(0.01, seconds)},
    )  # fmt: skip
    marginals = None if result.get("ineqlin") is None else result.ineqlin.get("marginals")
    if marginals is None or np.size(marginals) != room.size:
        return np.zeros(room.size)
    return np.maximum(0.0, -np.asarray(marginals, dtype=np.float64))


def _certified(
    problem: ChoiceProblem, slopes: FloatArray, quadratic: float, costs: FloatArray, room: FloatArray, price: FloatArray
) -> float:
    rank = 0 if problem.factor is None else problem.factor.shape[1]
    return problem.constant + price_kernels.certified_bound(
        problem.diagonal.copy(), slopes.copy(), quadratic, problem.group_offsets.copy(), np.arange(problem.num_choices),
        (costs, room), price, rank + problem.num_groups,
    )  # fmt: skip


def _pairs_bound(problem: ChoiceProblem, deadline: float) -> float | None:
    stored = 0 if problem.pairs is None else problem.pairs.nnz
    if stored > _PAIRS_PER_SECOND * (deadline - time.perf_counter()):
        return None  # arranging the blocks alone would take longer
    found: list[float] = []
    share = 0.5 if problem.num_choices <= LARGEST_EIGENPROBLEM else 1.0
    if fits_in_blocks(problem):
        found.append(message_bound(problem, share * (deadline - time.perf_counter())))
    if problem.num_choices <= LARGEST_EIGENPROBLEM and time.perf_counter() < deadline:
        form = convex_form(problem)
        found.append(relax(form, start_at(form, _lowest_vertex(problem)), deadline)[0])
    return max(found, default=None)


def _factor_bound(problem: ChoiceProblem, deadline: float) -> float:
    """The relaxation for a factor whose Gram matrix would not fit: V r operations a sweep."""
    factor = problem.factor if problem.factor is not None else np.zeros((problem.num_choices, 1), dtype=np.float32)
    form, choices = factor_form(problem, factor), np.arange(problem.num_choices)
    slopes, costs, room = np.empty(problem.num_choices), form.costs, form.room
    vertex = _lowest_vertex(problem)
    x = np.zeros(problem.num_choices)
    x[vertex] = 1.0
    total = factor[vertex].sum(axis=0, dtype=np.float64)
    used = costs[vertex].sum(axis=0)
    multipliers, prices = np.zeros(room.size), np.empty(room.size)
    scratch = np.empty(int(problem.group_sizes.max()))
    best, stale = -np.inf, 0
    while True:
        kernels.slopes_of(form, total, slopes)
        price = multipliers.copy()
        if np.isinf(price_kernels.polish_prices(slopes, form.offsets, choices, costs, room, price, 4)):
            return np.inf
        value = _certified(problem, slopes, float(total @ total), costs, room, price)
        if not np.isfinite(best):
            multipliers[:] = price
        stale = 0 if value > best + 1e-7 * max(abs(best), 1e-9) else stale + 1
        best = max(best, value)
        for sweep in range(4):
            if stale >= _PATIENCE or time.perf_counter() >= deadline:
                return best
            kernels.descend_factor(form, x, total, used, multipliers, prices, scratch)
            if sweep % 2:
                kernels.prices_of(multipliers, form.stiffness, used, room, multipliers)
