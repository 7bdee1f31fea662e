"""Greedy, uniform, random and auto."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import NoFeasibleFound
from qubo_compress.solvers.greedy import Greedy
from qubo_compress.solvers.solver import Search, SearchLimits
from qubo_compress.solvers.uniform import Uniform, _Climb
from qubo_compress.testing import brute_force


def test_greedy_skips_groups_that_cannot_help():
    # The first group offers the best rate but nothing after its first step; greedy must not stop there.
    problem = ChoiceProblem(
        linear=[0.0, 0.1, 0.0, 5.0, 0.0, 6.0], group_offsets=[0, 2, 4, 6], costs=[[10, 9, 10, 1, 10, 1]], limits=[12]
    )
    solution = solve(problem, "greedy")
    assert solution.assignment.tolist() in ([0, 1, 1], [1, 1, 1])
    assert problem.is_feasible(solution.assignment)


def test_greedy_fills_the_room_left_over():
    problem = ChoiceProblem(
        linear=[0.0, 1.0, 3.0, 0.0, 10.0], group_offsets=[0, 3, 5], costs=[[8, 7, 1, 4, 1]], limits=[11]
    )
    assert solve(problem, Greedy(fill=True)).energy <= solve(problem, Greedy(fill=False)).energy
    assert solve(problem, "greedy").energy == brute_force(problem)[0]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_takes_interactions_into_account(seed):
    problem = ChoiceProblem.random(kind="low-rank", groups=20, choices=10, seed=seed)
    blind = solve(problem.without_interactions(), "exact").assignment
    assert solve(problem, "greedy").energy < problem.energy(blind)


def test_greedy_ends_where_no_single_change_helps():
    problem = ChoiceProblem.random(kind="dense", groups=12, choices=6, seed=0)
    solution = solve(problem, "greedy")
    for group in range(12):
        for choice, rise in enumerate(problem.deltas(solution.assignment, group)):
            other = solution.assignment.copy()
            other[group] = choice
            assert rise > -1e-6 or not problem.is_feasible(other)


def test_greedy_makes_few_changes_on_thousands_of_groups_and_looks_at_the_clock(clock):
    problem = ChoiceProblem.random(kind="low-rank", groups=1000, choices=12, seed=0, budgets=2)
    solution = solve(problem, "greedy", time_limit=250.0)
    assert problem.is_feasible(solution.assignment)
    assert solution.work <= 3 * 1000, "changes, for a thousand groups"
    with clock(1.0):
        hurried = solve(problem, "greedy", time_limit=2.0)
    assert problem.is_feasible(hurried.assignment) and hurried.work < solution.work


def named(limit: int) -> ChoiceProblem:
    return ChoiceProblem(
        linear=[0.0, 1.0, 3.0, 0.0, 2.0, 0.0, 1.0, 3.0], group_offsets=[0, 3, 5, 8],
        costs=[[8, 4, 2, 8, 6, 8, 4, 2]], limits=[limit],
        choice_names=["keep", "q4", "q2", "keep", "half", "keep", "q4", "q2"],
    )  # fmt: skip


def test_uniform_applies_one_name_wherever_it_is_offered():
    solution = solve(named(16), "uniform")
    assert solution.choices == {"group0": "q4", "group1": "keep", "group2": "q4"}
    assert solution.notes == ("uniform choice: 'q4' in 2 of 3 groups",)


def test_uniform_makes_the_others_cheap_where_it_must():
    solution = solve(named(10), "uniform")
    assert solution.choices == {"group0": "q2", "group1": "half", "group2": "q2"}


def test_uniform_of_one_name_is_that_name():
    assert set(solve(named(23), Uniform(choice="q2")).choices.values()) == {"q2", "keep"}
    with pytest.raises(NoFeasibleFound):
        solve(named(10), Uniform(choice="keep"))


def test_uniform_spends_the_rest_in_the_order_of_the_groups():
    solution = solve(named(20), "uniform")
    assert solution.choices == {"group0": "keep", "group1": "keep", "group2": "q4"}
    assert solution.notes[0].endswith("then 1 step up")
    assert solve(named(20), Uniform(fill=False)).choices == {"group0": "q4", "group1": "keep", "group2": "q4"}


def test_gains_by_luck_do_not_add_up_to_a_better_name():
    """The smaller name gains in every other group, by luck, and more than it loses in the others."""
    lucky = [0.0, 0.001, 0.01, 0.5, 0.0, -0.002, -0.03, 0.5]
    problem = ChoiceProblem(
        linear=lucky * 10, group_offsets=np.arange(0, 81, 4), costs=[[32, 8, 6, 2] * 20], limits=[8 * 20 + 30],
        choice_names=["keep", "q8", "q6", "q2"] * 20,
    )  # fmt: skip
    assert list(solve(problem, "uniform").choices.values()) == ["keep", *["q8"] * 19]


@given(seed=st.integers(0, 10_000), budgets=st.integers(1, 3), kind=st.sampled_from(["separable", "low-rank"]))
@settings(max_examples=40, deadline=None)
def test_uniform_leaves_no_room_for_the_next_name_of_any_group(seed, budgets, kind):
    problem = ChoiceProblem.random(kind=kind, groups=6, choices=5, seed=seed, budgets=budgets)
    base, full = solve(problem, Uniform(fill=False)), solve(problem, "uniform")
    assert problem.is_feasible(full.assignment)
    assert solve(problem.without_interactions(), "uniform").choices == full.choices, "pair energies were looked at"
    walk = _Climb(Search(problem, SearchLimits(60.0), np.random.default_rng(0)))
    walk.base = base.notes[0].split("'")[1]
    shares = walk.shares[problem.group_offsets[:-1] + base.assignment]
    assert (walk.shares[problem.group_offsets[:-1] + full.assignment] >= shares).all()
    for group, above in enumerate(walk._steps(walk._ladder(), full.assignment)):
        rank = [local for local in above if walk.shares[walk.spans[group][0] + local] > shares[group]]
        if full.assignment[group] == base.assignment[group] and rank:
            other = full.assignment.copy()
            other[group] = rank[0]
            assert not problem.is_feasible(other)


def test_uniform_stops_at_its_work_limit():
    whole = solve(named(28), "uniform")
    assert set(whole.choices.values()) == {"keep"}
    assert solve(named(20), "uniform").work == 4 + 1
    assert solve(named(20), "uniform", work_limit=4).choices == {"group0": "q4", "group1": "keep", "group2": "q4"}


def test_random_draws_are_feasible_and_different():
    problem = ChoiceProblem.random(kind="dense", groups=10, choices=8, seed=0, budgets=2)
    solution = solve(problem, "random", work_limit=100, time_limit=20.0)
    assert solution.work == 100 and len(solution.pool) > 5
    assert solution.energy == min(entry.energy for entry in solution.pool)


@pytest.mark.parametrize(
    "kind, groups, choices, budgets, says",
    [
        ("separable", 50, 8, 1, "exact: no interactions"),
        ("low-rank", 8, 4, 1, "exact: only 8 groups"),
        ("dense", 6, 4, 1, "exact: only 4096 combinations"),
        ("low-rank", 20, 6, 1, "annealer, then exact"),
        ("dense", 30, 6, 1, "annealer, then exact: pairs"),
        ("dense", 210, 3, 1, "annealer: pairs"),
        ("separable", 20, 6, 2, "exact: no interactions, 2 budgets"),
    ],
)
def test_auto_says_what_it_chose(kind, groups, choices, budgets, says):
    problem = ChoiceProblem.random(kind=kind, groups=groups, choices=choices, seed=0, budgets=budgets)
    solution = solve(problem, "auto", time_limit=1.0)
    assert f"auto chose {says}" in solution.notes[0]


def test_auto_proves_factor_tables_of_twenty_groups():
    problem = ChoiceProblem.random(kind="low-rank", groups=20, choices=10, seed=1)
    solution = solve(problem, "auto", time_limit=20.0)
    assert solution.status == "optimal"
    assert np.isfinite(solution.bound)
