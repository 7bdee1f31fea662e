"""Several budgets that exclude each other are proven to, and none that do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget
from qubo_compress.solvers.exact.certificates import least_energy
from qubo_compress.solvers.exact.infeasibility import proves_infeasible

LONG_AGO, NEVER = 0.0, 1e7
"""Deadlines that no load on the machine moves: readings of a clock that is counted from when the machine started."""


def opposed(groups, limit):
    """Two budgets whose costs add up to five whatever is chosen."""
    costs = np.tile([[4, 1], [1, 4]], groups)
    return ChoiceProblem(np.zeros(2 * groups), np.arange(0, 2 * groups + 1, 2), costs, [limit, limit])


def odd_sum(groups, seed):
    """Even costs that have to sum to an odd number: parity alone excludes everything."""
    rng = np.random.default_rng(seed)
    half = rng.integers(1, 10**4, size=(groups, 3))
    costs = 2 * np.stack([half, 10**4 - half]).reshape(2, -1)
    middle = int(costs[0].reshape(groups, 3).mean(axis=1).sum()) // 2 * 2 + 1
    limits = [middle, 2 * 10**4 * groups - middle]
    return ChoiceProblem(np.zeros(3 * groups), np.arange(0, 3 * groups + 1, 3), costs, limits)


@pytest.mark.parametrize("solver", ["exact", "auto", "annealer", "greedy", "random", "genetic"])
def test_what_a_linear_programme_excludes_is_proven_with_every_solver(solver):
    for groups in (20, 150):
        with pytest.raises(InfeasibleBudget, match="proven that no assignment"):
            solve(opposed(groups, 5 * groups // 2 - 1), solver, time_limit=10.0, work_limit=50)


@pytest.mark.parametrize("solver", ["exact", "auto"])
def test_parity_is_proven(solver):
    for groups in (15, 40):
        with pytest.raises(InfeasibleBudget):
            solve(odd_sum(groups, groups), solver, time_limit=10.0)


def test_whole_numbers_are_tried_where_mixtures_would_fit():
    # Three groups share out exactly 1 of each of two budgets, and every choice takes 2 of one or of the other.
    costs = np.tile([[2, 0, 1], [0, 2, 1]], 3)
    costs[:, [2, 5, 8]] = [[3], [3]]
    problem = ChoiceProblem(np.zeros(9), [0, 3, 6, 9], costs, [3, 3])
    assert least_energy(problem) == np.inf
    assert not proves_infeasible(problem, LONG_AGO)
    assert proves_infeasible(problem, NEVER)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_nothing_feasible_is_ever_excluded(seed):
    rng = np.random.default_rng(seed)
    groups, budgets = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    sizes = rng.integers(1, 5, size=groups)
    total = int(sizes.sum())
    costs = rng.integers(0, int(rng.choice([3, 20, 10**6, 2**48])), size=(budgets, total))
    costs *= rng.integers(1, 4, size=(budgets, 1))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    chosen = offsets[:-1] + rng.integers(sizes)
    limits = costs[:, chosen].sum(axis=1) + rng.integers(-1, 2, size=budgets)
    problem = ChoiceProblem(np.zeros(total), offsets, costs, limits, fixed_costs=rng.integers(0, 1, size=budgets))
    if proves_infeasible(problem, NEVER, integers=False):
        assert least_energy(problem) == np.inf
