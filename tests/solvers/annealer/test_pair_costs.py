"""Pair costs in the kernels: totals stay exact through every move, and single changes cost no more than without."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.problem.generators import random_problem
from qubo_compress.problem.pair_costs import costs_beside
from qubo_compress.solvers.annealer import moves, polish
from qubo_compress.solvers.annealer.jobs import make_state
from qubo_compress.solvers.annealer.kernels import State
from qubo_compress.solvers.annealer.tables import make_tables
from qubo_compress.solvers.local_search.descent import LocalSearch
from qubo_compress.testing import brute_force

KINDS = ("channels", "dense", "low-rank", "sparse", "separable")


def paired(kind: str, seed: int, groups: int = 8, **options: float) -> ChoiceProblem:
    share = 0.0 if kind == "channels" else 0.8
    return random_problem(kind, groups, 4, seed, budgets=1 + seed % 2, pair_costs=share, **options)


def check(problem: ChoiceProblem, state: State) -> None:
    assignment = state.chosen - problem.group_offsets[:-1]
    assert (state.totals + problem.fixed_costs == problem.totals(assignment)).all()
    assert (costs_beside(problem, state.chosen) == state.costs.T).all()


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6))
def test_totals_are_exact_after_every_kind_of_move(kind: str, seed: int) -> None:
    problem = paired(kind, seed)
    tables, rng = make_tables(problem), np.random.default_rng(seed)
    state = make_state(tables, rng, np.full(problem.num_budgets, 1e-6))
    check(problem, state)
    moves.anneal(tables, state, moves.Cooling(12, 1.0, 0.01, 0.8, 1.5, 0.1, 12), 0, 12)
    check(problem, state)
    fits = polish.repair(tables, state, 100)
    check(problem, state)
    assert fits == (state.totals <= tables.room).all()
    polish.descend(tables, state, 0.0)
    for group in range(problem.num_groups):
        polish.improve_pairs(tables, state, group, group + 1, problem.num_groups, 1e-9)
    polish.improve_random_pairs(tables, state, 1e-9, 30)
    check(problem, state)
    assert not fits or (state.totals <= tables.room).all()


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6))
def test_no_double_change_is_better_after_a_descent(kind: str, seed: int) -> None:
    problem = paired(kind, seed, groups=4)
    local = LocalSearch(problem, np.random.default_rng(seed))
    local.place(np.random.default_rng(seed).integers(problem.group_sizes))
    if not local.repair():
        return
    local.descend(np.inf)
    here = local.assignment
    assert problem.is_feasible(here)
    energy = problem.energy(here)
    for first in range(4):
        for second in range(first):
            for v in range(4):
                for w in range(4):
                    there = here.copy()
                    there[first], there[second] = v, w
                    assert not problem.is_feasible(there) or problem.energy(there) >= energy - 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_annealer_finds_the_optimum_of_small_problems(kind: str) -> None:
    for seed in range(3):
        problem = paired(kind, seed, groups=5)
        truth = brute_force(problem)
        assert truth is not None
        solution = solve(problem, "annealer", time_limit=600.0, work_limit=400, threads=1)
        assert solution.energy == pytest.approx(truth[0], abs=1e-6)
        assert solution.bound is None or solution.bound <= truth[0] + 1e-9
        again = solve(problem, "annealer", time_limit=600.0, work_limit=400, threads=1)
        assert (again.assignment == solution.assignment).all() and again.work == solution.work


def test_greedy_ends_within_the_budget() -> None:
    for kind in KINDS:
        problem = paired(kind, 3)
        assert problem.is_feasible(solve(problem, "greedy", time_limit=60.0).assignment)


def test_the_bound_of_a_problem_without_interactions_is_not_the_one_without_pair_costs() -> None:
    """Dynamic programming over linear costs would prove a wrong optimum: removals pay for each other."""
    problem = random_problem("channels", 6, 3, 5, neighbours=2, coupling=0.0)
    truth = brute_force(problem)
    assert truth is not None
    solution = solve(problem, "annealer", time_limit=600.0, work_limit=300, threads=1)
    assert solution.bound is None or solution.bound <= truth[0] + 1e-9
    assert solution.energy == pytest.approx(truth[0], abs=1e-9)
