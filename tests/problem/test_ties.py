"""Tied groups: energies and budgets are those of the original problem, and so is the optimum among tied plans."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress.errors import InvalidProblem, UnsupportedProblem
from qubo_compress.problem.ties import tie

SETS = [[4, 0, 2], [1], [3]]


@given(st.sampled_from(["low-rank", "dense", "separable", "sparse"]), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_energies_and_feasibility_are_those_of_the_original(kind, seed):
    problem = qc.ChoiceProblem.random(kind=kind, groups=5, choices=3, seed=seed)
    tied = tie(problem, SETS)
    assert tied.problem.group_names == ("group0", "group1", "group3")
    for assignment in itertools.product(range(3), repeat=3):
        lifted = tied.lift(assignment)
        assert lifted[0] == lifted[2] == lifted[4] == assignment[0]
        assert tied.problem.energy(assignment) == pytest.approx(problem.energy(lifted), rel=1e-5, abs=1e-5)
        assert tied.problem.is_feasible(np.array(assignment)) == problem.is_feasible(lifted)


def test_choices_are_tied_by_name():
    problem = qc.ChoiceProblem(
        linear=[0.0, 1.0, 2.0, 10.0, 20.0], group_offsets=[0, 3, 5], costs=[[5, 4, 3, 2, 1]], limits=[9],
        choice_names=["keep", "four", "two", "two", "keep"],
    )  # fmt: skip
    tied = tie(problem, [[0, 1]])
    assert tied.problem.choice_names == ("keep", "two")
    assert tied.problem.linear.tolist() == [20.0, 12.0] and tied.problem.costs.tolist() == [[6, 5]]
    assert tied.lift([1]).tolist() == [2, 0]


def test_what_cannot_be_tied_is_refused():
    problem = qc.ChoiceProblem.random(kind="low-rank", groups=3, choices=2, seed=0)
    for sets in ([[0, 1]], [[0, 1], [1, 2]], [[0, 1, 2], [3]]):
        with pytest.raises(InvalidProblem, match="exactly one set"):
            tie(problem, sets)
    other = dataclasses.replace(problem, choice_names=("a", "b", "c", "d", "a", "b"))
    with pytest.raises(InvalidProblem, match="no choice in common"):
        tie(other, [[0, 1], [2]])
    with pytest.raises(UnsupportedProblem, match="pair costs"):
        tie(qc.ChoiceProblem.random(kind="channels", groups=4, choices=2, seed=0), [[0, 1], [2, 3]])
