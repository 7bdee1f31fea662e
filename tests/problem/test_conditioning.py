"""A block with the rest held is exactly the whole problem seen from the block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.errors import InvalidAssignment
from qubo_compress.problem.conditioning import condition
from qubo_compress.problem.generators import random_problem


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
    assert np.array_equal(block.lift(block.lower()), held)
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
