"""The generators keep their promises: structure, costs, and above all the planted optimum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.errors import InvalidProblem, UnknownName
from qubo_compress.problem.generators import planted_problem, random_problem

KINDS = ("separable", "sparse", "dense", "low-rank", "planted")
STRUCTURES = {"separable": "separable", "sparse": "pairs", "dense": "pairs", "low-rank": "factor", "planted": "factor"}


@pytest.mark.parametrize("kind", KINDS)
def test_structure_shapes_and_a_free_keep(kind):
    problem = random_problem(kind, groups=7, choices=5, seed=2)
    assert problem.structure == STRUCTURES[kind]
    assert (problem.num_groups, problem.num_choices, problem.num_budgets) == (7, 35, 1)
    assert problem.energy(np.zeros(7, dtype=int)) == pytest.approx(0.0, abs=1e-12)
    assert set(problem.choice_names[::5]) == {"keep"}
    assert not problem.is_feasible(np.zeros(7, dtype=int)), "keeping everything must not fit"
    assert problem.is_feasible(np.full(7, 4)), "the smallest choices must fit"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_problem(kind):
    first, second, other = (random_problem(kind, 5, 4, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.linear, second.linear)
    assert np.array_equal(first.costs, second.costs)
    assert not np.array_equal(first.linear, other.linear)


def test_sparse_couples_neighbours_only_and_dense_couples_all():
    sparse = random_problem("sparse", 9, 4, 0, neighbours=2).pairs.tocoo()
    distance = np.abs(sparse.row // 4 - sparse.col // 4)
    assert set(distance.tolist()) == {1, 2}
    dense = random_problem("dense", 6, 4, 0).pairs.toarray()
    blocks = dense.reshape(6, 4, 6, 4).transpose(0, 2, 1, 3)
    for g, h in itertools.combinations(range(6), 2):
        assert np.all(blocks[g, h, 1:, 1:] != 0)
        assert np.all(blocks[g, h, 0] == 0), "keep moves nothing, so it couples to nothing"
    assert np.linalg.eigvalsh(dense)[0] < 0, "dense tables are indefinite"


def test_costs_shrink_from_everything_to_about_a_twentieth():
    problem = random_problem("dense", 10, 16, 1, budgets=2)
    costs = problem.costs.reshape(2, 10, 16)
    assert np.all(np.diff(costs, axis=2) < 0)
    assert np.allclose(costs[:, :, -1] / costs[:, :, 0], 0.05, atol=0.01)
    assert problem.budget_names == ("bytes", "budget1")


def test_low_rank_has_no_gain_without_a_budget():
    problem = random_problem("low-rank", 6, 4, 0, rank=5)
    assert problem.factor.shape == (24, 5)
    assert np.all(problem.diagonal >= -1e-6)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 5),
    choices=st.integers(1, 5),
    rank=st.integers(1, 6),
    budgets=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_the_planted_optimum_is_the_optimum(groups, choices, rank, budgets, seed):
    problem, optimum = planted_problem(groups, choices, seed, rank=rank, budgets=budgets)
    assert problem.is_feasible(optimum)
    least = problem.energy(optimum)
    for assignment in itertools.product(range(choices), repeat=groups):
        if problem.is_feasible(np.array(assignment)):
            assert problem.energy(np.array(assignment)) >= least - 1e-6 * max(1.0, abs(least))


def test_the_planted_optimum_is_not_what_the_linear_terms_say():
    problem, optimum = planted_problem(100, 16, 0, rank=64)
    tables = problem.linear.reshape(100, 16)
    assert np.mean(tables.argmin(axis=1) == optimum) < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be at least 1; got 0"),
        ({"choices": 0}, "choices must be at least 1"),
        ({"budget_fraction": 0.01}, "budget_fraction must exceed"),
        ({"budgets": -1}, "budgets must not be negative"),
        ({"kind": "low-rank", "rank": 0}, "rank must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(InvalidProblem, match=message):
        random_problem(**{"kind": "dense", "groups": 3, "choices": 3, **options})


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'dense'"):
        random_problem("dens")


def test_one_choice_or_one_group_work():
    for kind in KINDS:
        assert random_problem(kind, 1, 4, 0).num_choices == 4
        assert random_problem(kind, 3, 1, 0).is_feasible(np.zeros(3, dtype=int))
