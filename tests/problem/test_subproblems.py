"""A block with the rest held is the whole problem seen from it; removing dominated choices changes no optimum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qubo_compress import ChoiceProblem
from qubo_compress.errors import InvalidAssignment
from qubo_compress.problem.generators import random_problem
from qubo_compress.problem.subproblems import condition, reduce_dominated
from qubo_compress.testing import brute_force


def weakly_coupled(kind: str, seed: int, strength: float, budgets: int) -> ChoiceProblem:
    """Few distinct costs and weak couplings, so that choices do dominate each other; some are duplicates."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, size=int(rng.integers(1, 6)))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total = int(offsets[-1])
    linear = np.round(rng.random(total), 1)
    costs = rng.integers(1, 5, size=(budgets, total))
    rows = strength * rng.standard_normal((total, 3))
    for v in np.flatnonzero(rng.random(total) < 0.3):
        if v + 1 in offsets or v + 1 >= total:
            continue
        linear[v + 1], costs[:, v + 1], rows[v + 1] = linear[v], costs[:, v], rows[v]
    options = {"factor": rows} if kind == "factor" else {}
    if kind == "pairs":
        matrix = rows @ (rows * [1.0, -1.0, 0.5]).T
        group = np.repeat(np.arange(sizes.size), sizes)
        matrix[group[:, None] == group[None, :]] = 0.0
        options = {"pairs": sparse.csr_array(matrix)}
    least = np.minimum.reduceat(costs, offsets[:-1], axis=1).sum(axis=1) if budgets else np.zeros(0, dtype=np.int64)
    limits = least + rng.integers(0, 2 * sizes.size + 1, size=budgets)
    return ChoiceProblem(linear=linear, group_offsets=offsets, costs=costs, limits=limits, **options)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["separable", "factor", "pairs"]),
    seed=st.integers(0, 10**6),
    strength=st.sampled_from([0.05, 0.2, 1.0]),
    budgets=st.integers(0, 2),
)
def test_the_optimum_is_unchanged(kind, seed, strength, budgets):
    problem = weakly_coupled(kind, seed, strength, budgets)
    reduction = reduce_dominated(problem)
    before, after = brute_force(problem), brute_force(reduction.problem)
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        assert after[0] == pytest.approx(before[0], abs=1e-9)
        lifted = reduction.lift(after[1])
        assert problem.is_feasible(lifted)
        assert problem.energy(lifted) == pytest.approx(after[0], abs=1e-9)
        assert (reduction.lower(lifted) == after[1]).all()
        assert problem.names_of(lifted) == reduction.problem.names_of(after[1])


def test_something_is_removed_and_again_nothing():
    problem = weakly_coupled("factor", 3, 0.01, 1)
    reduction = reduce_dominated(problem)
    assert reduction.removed > 0
    assert reduce_dominated(reduction.problem).removed == 0


def test_of_equals_the_first_stays():
    problem = ChoiceProblem(
        linear=[1.0] * 4, group_offsets=[0, 4], costs=[[2] * 4], limits=[2], factor=np.ones((4, 2), dtype=np.float32)
    )
    assert reduce_dominated(problem).kept.tolist() == [0]


def test_a_context_that_favours_the_loser_saves_it():
    # Alone the second choice is worse and no cheaper, but it cancels what the other group does.
    problem = ChoiceProblem(
        linear=[0.0, 0.1, 0.0, 1.0], group_offsets=[0, 2, 4], costs=[[1, 1, 4, 1]], limits=[2],
        factor=[[0.0], [-1.0], [0.0], [1.0]],
    )  # fmt: skip
    assert reduce_dominated(problem).removed == 0
    assert brute_force(problem)[1].tolist() == [1, 1]


def test_lowering_a_removed_choice_is_refused():
    problem = ChoiceProblem(linear=[0.0, 1.0], group_offsets=[0, 2], costs=[[1, 1]], limits=[1], group_names=["conv"])
    with pytest.raises(InvalidAssignment, match="conv"):
        reduce_dominated(problem).lower([1])


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["separable", "sparse", "dense", "low-rank"]),
    budgets=st.integers(0, 2),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
def test_energy_and_feasibility_are_those_of_the_whole_problem(kind, budgets, seed, data):
    problem = random_problem(kind, groups=5, choices=3, seed=seed, budgets=budgets)
    held = np.array(data.draw(st.lists(st.integers(0, 2), min_size=5, max_size=5)))
    groups = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True))
    block = condition(problem, held, groups)
    assert block.groups.tolist() == sorted(groups)
    assert np.array_equal(block.lift(block.lower(held)), held)
    for picks in itertools.product(range(3), repeat=len(groups)):
        whole = held.copy()
        whole[sorted(groups)] = picks
        part = np.array(picks)
        assert np.array_equal(block.lift(part), whole)
        assert block.problem.energy(part) == pytest.approx(problem.energy(whole), rel=1e-9, abs=1e-9)
        assert np.array_equal(block.problem.totals(part), problem.totals(whole))
        assert block.problem.is_feasible(part) == problem.is_feasible(whole)


def test_names_follow_their_groups():
    problem = random_problem("sparse", groups=4, choices=3, seed=0)
    block = condition(problem, [0, 1, 2, 0], [3, 1]).problem
    assert block.group_names == ("group1", "group3")
    assert block.names_of([1, 2]) == {"group1": "choice1", "group3": "choice2"}


@pytest.mark.parametrize("groups", [[], [0, 0], [-1], [4]])
def test_blocks_that_are_none_are_refused(groups):
    problem = random_problem("sparse", groups=4, choices=3, seed=0)
    with pytest.raises(InvalidAssignment, match="from 0 to 3"):
        condition(problem, [0, 0, 0, 0], groups)


def test_a_lift_checks_its_assignment():
    problem = random_problem("sparse", groups=4, choices=3, seed=0)
    with pytest.raises(InvalidAssignment, match="3 choices"):
        condition(problem, [0, 0, 0, 0], [1, 2]).lift([0, 3])
