"""Bounds of whole energies are raised, never above the optimum."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem
from qubo_compress.problem.whole_energies import energy_unit, raised_bound
from qubo_compress.solvers import RawSolution
from qubo_compress.solvers.verification import verify
from qubo_compress.testing.solvers import brute_force


def whole_problem(seed, unit):
    problem = ChoiceProblem.random(kind="sparse", groups=4, choices=3, seed=seed, budgets=2)
    pairs = problem.pairs
    if pairs is not None:
        pairs = unit * (20 * pairs).rint()
    return problem._replace(linear=unit * np.rint(20 * problem.linear), pairs=pairs)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), unit=st.integers(1, 3), below=st.floats(0.0, 5.0))
def test_a_raised_bound_is_a_bound(seed, unit, below):
    problem = whole_problem(seed, float(unit))
    best = brute_force(problem)
    if best is not None:
        for bound in (best[0] - below, best[0], best[0] + 1e-9):
            raised = raised_bound(problem, bound)
            assert bound <= raised <= best[0] + 1e-9
        assert energy_unit(problem) is None or energy_unit(problem) % unit == 0


def test_energies_that_are_not_whole_keep_their_bound():
    problem = ChoiceProblem.random(kind="dense", groups=3, choices=3, seed=0)
    assert energy_unit(problem) is None and raised_bound(problem, 0.3) == 0.3
    halves = ChoiceProblem(linear=[0.5, 1.0], group_offsets=[0, 2], costs=[[2, 1]], limits=[1])
    assert raised_bound(halves, 0.3) == 0.3
    nothing = ChoiceProblem(linear=[0.0, 0.0], group_offsets=[0, 2], costs=[[2, 1]], limits=[1])
    assert energy_unit(nothing) is None
    huge = ChoiceProblem(linear=[1e300, 2e300], group_offsets=[0, 2], costs=[[2, 1]], limits=[1])
    assert raised_bound(huge, 1.0) == 1.0


def test_an_answer_that_only_its_whole_energies_prove_is_optimal():
    weights = [4, 4, 6, 4, 6, 4]
    cost = np.zeros((2, 12 + 4), dtype=np.int64)
    for b in range(2):
        cost[b, b:12:2] = weights
        cost[b, 12 + 2 * b] = 20
    linear = np.zeros(16)
    linear[[13, 15]] = 1.0
    problem = ChoiceProblem(
        linear=linear, group_offsets=[*range(0, 13, 2), 14, 16], costs=cost, limits=[20, 20], constant=0.25
    )
    raw = RawSolution((np.array([1, 0, 0, 1, 0, 0, 1, 1]),), bound=1.4)
    solution = verify(problem, "somebody", raw, 1.0)
    assert solution.energy == 2.25 == solution.bound and solution.status == "optimal"
