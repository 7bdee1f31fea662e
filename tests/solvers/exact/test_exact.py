"""The exact solver equals brute force, and proves it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget
from qubo_compress.problem.generators import planted_problem
from qubo_compress.solvers.exact.dynamic_programming import solve_table
from qubo_compress.solvers.exact.exact import Exact
from qubo_compress.testing import brute_force

KINDS = ("separable", "sparse", "dense", "low-rank", "planted")


def ragged(kind: str, seed: int, budgets: int) -> ChoiceProblem:
    """A random problem with groups of different sizes, coarse costs (so ties) and a random budget."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=int(rng.integers(1, 6)))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    costs = rng.integers(0, 9, size=(budgets, total))
    least = np.minimum.reduceat(costs, offsets[:-1], axis=1).sum(axis=1) if budgets else np.zeros(0, dtype=np.int64)
    limits = least + rng.integers(0, 4 * sizes.size, size=budgets)
    options = {}
    if kind == "factor":
        options["factor"] = rng.standard_normal((total, int(rng.integers(1, 5)))) * (rng.random((total, 1)) < 0.8)
    if kind == "pairs":
        from scipy import sparse

        matrix = rng.standard_normal((total, total)) * (rng.random((total, total)) < 0.6)
        group = np.repeat(np.arange(sizes.size), sizes)
        matrix[group[:, None] == group[None, :]] = 0.0
        options["pairs"] = sparse.csr_array(np.triu(matrix) + np.triu(matrix).T)
    return ChoiceProblem(
        linear=np.round(rng.standard_normal(total), 1), group_offsets=offsets, costs=costs, limits=limits,
        constant=float(rng.normal()), **options,
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(["separable", "factor", "pairs"]), seed=st.integers(0, 10**6), budgets=st.integers(0, 3))
def test_equals_brute_force(kind, seed, budgets):
    problem = ragged(kind, seed, budgets)
    truth = brute_force(problem)
    if truth is None:
        with pytest.raises(InfeasibleBudget):
            solve(problem, "exact", time_limit=20.0)
        return
    solution = solve(problem, "exact", time_limit=20.0)
    scale = max(1.0, abs(truth[0]))
    assert solution.energy == pytest.approx(truth[0], abs=2e-7 * scale)
    assert solution.bound <= truth[0] + 1e-12 * scale
    assert solution.status == "optimal" or abs(truth[0]) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force_on_realistic_costs(kind, seed):
    problem = ChoiceProblem.random(kind=kind, groups=6, choices=4, seed=seed)
    solution = solve(problem, "exact", time_limit=20.0)
    assert solution.energy == pytest.approx(brute_force(problem)[0], rel=1e-6)
    assert solution.status == "optimal"


@pytest.mark.parametrize("groups, choices", [(100, 16), (500, 12)])
def test_large_separable_problems_are_proven(groups, choices):
    problem = ChoiceProblem.random(kind="separable", groups=groups, choices=choices, seed=4)
    solution = solve(problem, "exact", time_limit=250.0, work_limit=10 * groups * choices)
    assert solution.status == "optimal"  # within so many states, a second or less of one core


def test_bytes_beyond_any_table_are_exact():
    rng = np.random.default_rng(0)
    costs = rng.integers(10**11, 10**12, size=(1, 12 * 6)) * 3
    problem = ChoiceProblem(
        linear=rng.random(72), group_offsets=np.arange(13) * 6, costs=costs, limits=[int(costs.mean() * 12 * 0.8)]
    )
    solution = solve(problem, "exact", time_limit=10.0)
    assert solution.status == "optimal"


def test_states_dropped_for_memory_leave_a_true_bound():
    problem = ChoiceProblem.random(kind="separable", groups=40, choices=12, seed=1)
    optimum = solve(problem, "exact", time_limit=10.0).energy
    cheapest = problem.costs[0].reshape(40, 12).argmin(axis=1)
    tight = solve_table(problem, cheapest, time.perf_counter() + 10, most_states=20)
    assert problem.is_feasible(tight.assignment)
    assert tight.bound <= optimum + 1e-12
    assert problem.energy(tight.assignment) >= optimum - 1e-12


def test_planted_optimum_is_proven():
    problem, optimum = planted_problem(groups=20, choices=16, seed=3)
    solution = solve(problem, "exact", time_limit=20.0)
    assert solution.status == "optimal"
    assert solution.energy == pytest.approx(problem.energy(optimum), rel=1e-6)


def test_factor_table_of_a_small_network_is_proven():
    problem = ChoiceProblem.random(kind="low-rank", groups=16, choices=12, seed=0)
    solution = solve(problem, "exact", time_limit=30.0)
    assert solution.status == "optimal"


def test_out_of_work_the_bound_is_true_and_the_answer_repeats():
    problem = ChoiceProblem.random(kind="low-rank", groups=14, choices=10, seed=1)
    optimum = solve(problem, "exact", time_limit=30.0)
    assert optimum.status == "optimal"
    for work in (1, 7, 50):
        first, second = (solve(problem, "exact", time_limit=30.0, work_limit=work) for _ in range(2))
        assert first.work <= work
        assert first.bound <= optimum.energy
        assert first.bound == second.bound and (first.assignment == second.assignment).all()


def test_bound_never_falls_while_the_tree_grows():
    problem = ChoiceProblem.random(kind="low-rank", groups=14, choices=10, seed=2)
    bounds = [solve(problem, "exact", time_limit=30.0, work_limit=work).bound for work in (1, 10, 100, 1000)]
    assert bounds == sorted(bounds)


def test_a_given_start_is_used():
    problem = ChoiceProblem.random(kind="low-rank", groups=10, choices=6, seed=0)
    best = solve(problem, "exact", time_limit=20.0)
    again = solve(problem, Exact(first=tuple(best.assignment.tolist())), time_limit=20.0)
    assert again.energy == best.energy


@pytest.mark.parametrize("kind", ["separable", "low-rank"])
def test_everything_is_kept_where_no_budget_binds(kind):
    problem = ChoiceProblem.random(kind="low-rank", groups=20, choices=8, seed=9)
    if kind == "separable":
        problem = problem.without_interactions()
    solution = solve(problem.with_limits(problem.totals([0] * 20)), "exact", time_limit=10.0)
    assert not solution.assignment.any()
    assert solution.status == "optimal" and solution.energy == 0.0


def test_too_many_choices_get_a_bound_and_a_note():
    problem = ChoiceProblem.random(kind="low-rank", groups=300, choices=14, seed=0)
    solution = solve(problem, "exact", time_limit=3.0)
    assert solution.bound is not None and solution.bound <= solution.energy
    assert "bound only" in solution.notes[0]
