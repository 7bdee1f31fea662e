"""Branch and bound on messages: right answers, valid bounds at any moment, work that repeats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.problem.energy_scale import standardise
from qubo_compress.solvers.exact import proof
from qubo_compress.solvers.exact.message_tree import MessageTree
from qubo_compress.testing.solvers import brute_force


def small(kind: str, seed: int, budgets: int) -> ChoiceProblem:
    drawn = ChoiceProblem.random(kind=kind, groups=5, choices=4, seed=seed, budgets=budgets)
    return standardise(drawn).problem


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(["dense", "sparse"]), seed=st.integers(0, 1000), budgets=st.integers(0, 2))
def test_the_optimum_is_found_and_proven(kind, seed, budgets):
    problem = small(kind, seed, budgets)
    least, _ = brute_force(problem)
    tree = MessageTree(problem, None)
    tree.run(np.inf, None)
    assert tree.finished and problem.energy(tree.best) == pytest.approx(least, abs=1e-9)
    assert least - 1e-6 < tree.bound <= least + 1e-12


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), budgets=st.integers(0, 2), work=st.integers(1, 12))
def test_bounds_are_valid_at_any_moment_and_the_same_work_repeats(seed, budgets, work):
    problem = small("dense", seed, budgets)
    least, _ = brute_force(problem)
    first, second = MessageTree(problem, None), MessageTree(problem, None)
    first.run(np.inf, work)
    for nodes in range(1, work + 1):
        second.run(np.inf, nodes)
        assert second.bound <= least + 1e-12 and second.nodes <= nodes
    assert first.bound == second.bound and first.nodes == second.nodes


def test_nothing_that_fits_is_proven():
    pairs = small("dense", 0, 0).pairs
    costs = np.tile([[4, 1, 4, 1], [1, 4, 1, 4]], 5)
    problem = ChoiceProblem(np.zeros(20), np.arange(0, 21, 4), costs, [12, 12], pairs=pairs)
    tree = MessageTree(problem, None)
    tree.run(np.inf, None)
    assert tree.finished and tree.best is None and tree.bound == np.inf


def test_dense_pairs_are_proven_without_other_software(monkeypatch):
    monkeypatch.setattr(proof, "toulbar2_is_installed", lambda: False)
    problem = ChoiceProblem.random(kind="dense", groups=14, choices=8, seed=0, budgets=2)
    solution = solve(problem, "exact", time_limit=600.0)
    assert solution.status == "optimal" and solution.details["method"] == "branch and bound on messages"


def test_eleven_groups_of_three_under_two_budgets_are_proven():
    for seed in range(4):
        problem = ChoiceProblem.random(kind="dense", groups=11, choices=3, seed=seed, budgets=2)
        assert solve(problem, "exact", time_limit=600.0).status == "optimal"
