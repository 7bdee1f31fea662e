"""The first answer of a proof: local optima from several starts, then from kicks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.exact import price_kernels
from qubo_compress.solvers.exact.convex_relaxation import scaled_costs
from qubo_compress.solvers.local_search.descent import LocalSearch, lagrangian_vertex
from qubo_compress.solvers.search import Search

_KICKS = 60
"""Restarts of the local search, if double changes are cheap."""

_FEW_GROUPS = 60
_KICKED_GROUPS = 4
_FIRST_SHARE = 0.2
"""Largest share of the time for the first answer."""


def first_answers(search: Search, local: LocalSearch, given: tuple[int, ...] | None = None) -> Iterator[IntArray]:
    """Feasible assignments, each better than the one before, noted in the search's trace.

    If the clock ends them, the search's ``details["repeats"]`` is False.

    Args:
        search: the search on the standardised problem.
        local: a local search on the same problem.
        given: an assignment to start from, before those of least energy and least priced energy.

    Example:
        >>> from qubo_compress.solvers.search import SearchLimits
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> rng = np.random.default_rng(0)
        >>> found = list(first_answers(Search(problem, SearchLimits(10.0), rng), LocalSearch(problem, rng)))
        >>> energies = [problem.energy(assignment) for assignment in found]
        >>> energies == sorted(energies, reverse=True)
        True
    """
    problem, rng = search.problem, search.rng
    deadline = search.start + _FIRST_SHARE * search.limits.seconds
    few = problem.num_groups <= _FEW_GROUPS
    best: IntArray | None = None
    for vertex in _starts(problem, given):
        for better in _improvements(search, local, vertex, best, deadline, few):
            best = better
            yield better
    for _ in range(_KICKS if few and problem.structure != "separable" else 0):
        if best is None or time.perf_counter() >= deadline:
            break
        kicked = best.copy()
        groups = rng.integers(problem.num_groups, size=_KICKED_GROUPS)
        kicked[groups] = rng.integers(problem.group_sizes[groups])
        for better in _improvements(search, local, kicked, best, deadline, few):
            best = better
            yield better
    if time.perf_counter() >= deadline:
        search.details["repeats"] = False  # the recorded work does not tell when the clock stopped the starts


def _starts(problem: ChoiceProblem, given: tuple[int, ...] | None) -> list[IntArray]:
    starts = [lagrangian_vertex(problem, np.zeros(problem.num_budgets))]
    if given is not None:
        starts.insert(0, np.array(given, dtype=np.int64))
    if problem.num_budgets:
        prices = _prices(problem)
        starts += [lagrangian_vertex(problem, prices), lagrangian_vertex(problem, prices, most_expensive=True)]
    return starts


def _improvements(
    search: Search, local: LocalSearch, vertex: IntArray, best: IntArray | None, deadline: float, pairs: bool
) -> Iterator[IntArray]:
    """Repair an assignment and descend from it: what is better than the best so far."""
    local.place(vertex)
    if not local.repair():
        return
    found = local.assignment
    local.descend(deadline, pairs)
    for assignment in (found, local.assignment):
        energy = search.problem.energy(assignment)
        if best is None or energy < search.problem.energy(best):
            best = assignment
            search.trace.append((search.elapsed, energy, None))
            yield assignment


def _prices(problem: ChoiceProblem) -> FloatArray:
    """(B,) prices per unit at which the linear terms alone would meet the budgets."""
    costs, room, scales = scaled_costs(problem)
    price = np.zeros(room.size)
    choices = np.arange(problem.num_choices)
    value = price_kernels.polish_prices(
        problem.linear.copy(), problem.group_offsets.copy(), choices, costs, room, price, 4
    )
    return price / scales if np.isfinite(value) else np.zeros(room.size)
