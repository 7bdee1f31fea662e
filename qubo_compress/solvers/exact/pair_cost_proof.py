"""Proofs under budgets with pair costs: complete enumeration, a linearised integer program, or a bound alone.

Branch and bound and dynamic programming know only costs of single choices. A problem with few combinations is
enumerated. Otherwise every pair of groups that is coupled by energies or by pair costs gets the table of the
mixed-integer program, which then holds both exactly. Where that would be too large, the bound comes from costs that
are never above the true ones.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from scipy import sparse

from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.solvers.exact.bounds import lower_bound
from qubo_compress.solvers.exact.first_answer import first_answers
from qubo_compress.solvers.exact.infeasibility import nothing_fits
from qubo_compress.solvers.exact.integer_programming import MOST_TABLE_ENTRIES, solve_milp, table_entries
from qubo_compress.solvers.local_search.descent import LocalSearch
from qubo_compress.solvers.search import Search

FEW_COMBINATIONS = 100_000
"""Up to this many combinations are enumerated: a second at most."""

_CHUNK = 4096
"""Combinations between two checks of the clock."""
_LEAST_MILP_SECONDS = 3.0
"""Below this time limit, starting a process for HiGHS does not pay."""
_BOUND_SHARE = 0.1
"""Share of the remaining time for a bound before HiGHS."""


def prove_with_pair_costs(search: Search, first: tuple[int, ...] | None) -> None:
    """Solve a standardised problem whose budgets have pair costs.

    The bound, the answers and the work are kept in the search at any moment.

    Args:
        search: on the standardised problem.
        first: an assignment to start from; None for a local search.

    Example:
        >>> from qubo_compress.solvers.search import SearchLimits
        >>> problem = ChoiceProblem.random(kind="channels", groups=5, choices=3, seed=0)
        >>> search = Search(problem, SearchLimits(60.0), np.random.default_rng(0))
        >>> prove_with_pair_costs(search, None)
        >>> problem.is_feasible(search.best), search.bound == search.energy
        (True, True)
    """
    problem, limits = search.problem, search.limits
    local = LocalSearch(problem, search.rng)
    for better in first_answers(search, local, first):
        search.add(better)
    if combinations(problem) <= FEW_COMBINATIONS:
        _say(search, "enumeration")
        if _enumerate(search):
            return
    elif search.best is None and nothing_fits(search):
        return
    # HiGHS cannot be stopped after a given amount of work, so its answers would not repeat.
    entries = table_entries(problem) if problem.factor is None else _factor_entries(problem)
    programme = limits.work is None and limits.seconds >= _LEAST_MILP_SECONDS and entries <= MOST_TABLE_ENTRIES
    bound = lower_bound(problem, (_BOUND_SHARE if programme else 1.0) * max(0.0, search.seconds_left))
    _raise_bound(search, bound)
    if programme and not search.infeasible:
        _say(search, "mixed-integer programming with pair costs")
        _solve_programme(search)
    elif combinations(problem) > FEW_COMBINATIONS:
        search.details["method"] = "bound only"
        search.notes.append(
            f"bound only: with pair costs, exact proves with at most {MOST_TABLE_ENTRIES:,} entries of coupled tables "
            f"(here {entries:,}), without a work limit, and in {_LEAST_MILP_SECONDS:g} s or more"
        )


def combinations(problem: ChoiceProblem) -> float:
    """The number of assignments; at most 1e300."""
    return float(np.exp(min(690.0, np.log(problem.group_sizes).sum())))


def _say(search: Search, method: str) -> None:
    search.details["method"] = method
    search.notes.append(f"method: {method}")


def _raise_bound(search: Search, bound: float | None) -> None:
    if bound is None:
        return
    if bound == np.inf:
        search.infeasible = True
    elif np.isfinite(bound):
        search.bound = bound if search.bound is None else max(search.bound, bound)


def _enumerate(search: Search) -> bool:
    """Try every assignment; False if time or work ended before. The work is the number tried."""
    problem = search.problem
    count = round(combinations(problem))
    for start in range(0, count, _CHUNK):
        stop = min(count, start + _CHUNK)
        if search.over() or search.most_work(stop - start) < stop - start:
            return False
        rows = np.stack(np.unravel_index(np.arange(start, stop), tuple(problem.group_sizes.tolist())), axis=1)
        search.work += stop - start
        fits = rows[(totals_of(problem, rows) <= problem.limits).all(axis=1)]
        if len(fits):
            energies = problem.energies(fits)
            best = int(np.argmin(energies))
            search.keep(fits[best], problem.energy(fits[best]))
    search.infeasible = search.best is None
    if search.best is not None:
        search.bound = search.energy
    return True


def totals_of(problem: ChoiceProblem, assignments: IntArray) -> IntArray:
    """(N, B) totals of (N, G) assignments."""
    chosen = problem.group_offsets[:-1] + assignments
    totals = problem.fixed_costs + problem.costs[:, chosen].sum(axis=2).T
    starts = np.arange(0, chosen.size + 1, problem.num_groups)
    picks = sparse.csr_array(
        (np.ones(chosen.size, dtype=np.int64), chosen.ravel(), starts), shape=(len(chosen), problem.num_choices)
    )
    for budget, matrix in enumerate(problem.pair_costs or ()):
        if matrix is not None:
            totals[:, budget] += np.asarray((picks @ matrix).multiply(picks).sum(axis=1)).ravel() // 2
    return np.asarray(totals, dtype=np.int64)


def _factor_entries(problem: ChoiceProblem) -> int:
    """Entries of the tables of all pairs of groups, which a factor couples."""
    sizes = problem.group_sizes
    return int(sizes.sum() ** 2 - (sizes**2).sum()) // 2


def _solve_programme(search: Search) -> None:
    problem = search.problem
    answer = solve_milp(_multiplied_out(problem), search.deadline)
    search.work += answer.nodes
    if answer.ended:
        search.notes.append("HiGHS overran its time limit and was ended")
    _raise_bound(search, answer.bound)
    if answer.assignment is not None and problem.is_feasible(answer.assignment):
        search.keep(answer.assignment)


def _multiplied_out(problem: ChoiceProblem) -> ChoiceProblem:
    """The problem with the pairs of its factor."""
    if problem.factor is None:
        return problem
    rows = problem.factor.astype(np.float64)
    gram = rows @ rows.T
    for start, stop in itertools.pairwise(problem.group_offsets):
        gram[start:stop, start:stop] = 0.0
    return dataclasses.replace(problem, factor=None, pairs=sparse.csr_array(gram))
