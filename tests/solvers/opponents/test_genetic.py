"""The genetic algorithm: operators that keep to the budget, small optima found, pymoo named when missing."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InvalidSolverOption, MissingDependency
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.opponents import genetic_operators as operators
from qubo_compress.solvers.opponents.genetic import Genetic
from qubo_compress.testing.solvers import brute_force


@pytest.mark.parametrize(
    ("kind", "crossover"),
    [("separable", "uniform"), ("sparse", "two-point"), ("dense", "uniform"), ("low-rank", "two-point")],
)
def test_small_optima_are_found(kind, crossover):
    problem = random_problem(kind, 5, 4, 3)
    solution = solve(problem, Genetic(population=40, crossover=crossover), time_limit=60.0, work_limit=2000)
    assert solution.energy == pytest.approx(brute_force(problem)[0], abs=1e-9)


problems = st.builds(
    random_problem,
    st.just("dense"),
    st.integers(1, 7),
    st.integers(1, 6),
    st.integers(0, 10**6),
    budgets=st.integers(0, 2),
)


@settings(max_examples=50, deadline=None)
@given(problem=problems, seed=st.integers(0, 10**6), reach=st.integers(1, 6), spend=st.sampled_from([0.0, 0.5, 1.0]))
def test_level_switches_preserve_the_budgets(problem, seed, reach, spend):
    levels, rng = operators.make_levels(problem), np.random.default_rng(seed)
    words = operators.generator_words(rng)
    genomes = operators.random_genomes(levels, 12, rng)
    operators.repair(levels, genomes, words)
    held = (levels.overspending(genomes) <= 0).all(axis=1)
    before = genomes.copy()
    operators.switch_levels(levels, genomes, 3.0, reach, spend, words)
    assert (genomes >= 0).all() and (genomes < problem.group_sizes).all()
    for row in levels.assignments(genomes)[held]:
        assert problem.is_feasible(row)
    if problem.num_budgets < 2:
        assert held.all()
    if problem.num_budgets == 0 and problem.group_sizes.min() > 1 and spend == 0.0:
        assert (genomes != before).any()


@settings(max_examples=40, deadline=None)
@given(problem=problems, seed=st.integers(0, 10**6))
def test_switches_never_add_to_what_is_overspent(problem, seed):
    levels, rng = operators.make_levels(problem), np.random.default_rng(seed)
    genomes = operators.random_genomes(levels, 12, rng)
    before = np.maximum(0.0, levels.overspending(genomes))
    operators.switch_levels(levels, genomes, 2.0, 6, 1.0, operators.generator_words(rng))
    assert (np.maximum(0.0, levels.overspending(genomes)) <= before + 1e-12).all()


def test_a_switch_moves_bytes_from_one_group_to_another():
    # Every total but the full one is below the limit: a raise must be paid for by another group.
    problem = ChoiceProblem([0.0] * 6, [0, 3, 6], [[1, 2, 3, 1, 2, 3]], [4])
    levels = operators.make_levels(problem)
    genomes = np.tile([1, 1], (200, 1))
    operators.switch_levels(levels, genomes, 1.0, 2, 1.0, operators.generator_words(np.random.default_rng(0)))
    reached = {tuple(row) for row in genomes.tolist()}
    assert reached == {(0, 2), (2, 0)}


def test_levels_are_ordered_by_cost_and_map_back():
    problem = random_problem("dense", 6, 5, 1, budgets=2)
    levels = operators.make_levels(problem)
    genomes = operators.random_genomes(levels, 30, np.random.default_rng(0))
    excess = [(problem.totals(row) - problem.limits) for row in levels.assignments(genomes)]
    room = problem.limits - problem.fixed_costs
    assert np.allclose(levels.overspending(genomes), np.array(excess) / room)
    share = (levels.costs / room).sum(axis=1).reshape(6, 5)
    assert (np.diff(share, axis=1) >= 0).all()


def test_priced_individuals_are_better_than_uniform_ones_once_repaired():
    problem = random_problem("low-rank", 30, 8, 0)
    levels, rng = operators.make_levels(problem), np.random.default_rng(0)
    means = []
    for genomes in (
        operators.priced_genomes(levels, problem.linear, 50, rng),
        operators.random_genomes(levels, 50, rng),
    ):
        assert genomes.shape == (50, 30) and (genomes >= 0).all() and (genomes < 8).all()
        operators.repair(levels, genomes, operators.generator_words(rng))
        means.append(problem.energies(levels.assignments(genomes)).min())
    assert means[0] < means[1]


def test_the_same_work_gives_the_same_answer_whatever_numpy_was_seeded_with():
    problem = random_problem("dense", 10, 8, 0)
    answers = []
    for state in (1, 2):
        np.random.seed(state)
        answers.append(solve(problem, "genetic", time_limit=60.0, work_limit=777, seed=5))
        assert np.random.random() == np.random.RandomState(state).random()
    assert answers[0].work == answers[1].work == 777
    assert (answers[0].assignment == answers[1].assignment).all()
    assert [e.energy for e in answers[0].pool] == [e.energy for e in answers[1].pool]


def test_a_population_that_stands_still_makes_way_for_a_new_one():
    problem = random_problem("dense", 6, 4, 2)
    solution = solve(problem, Genetic(population=20, patience=3), time_limit=60.0, work_limit=2000)
    assert solution.details["populations"] > 1 and solution.details["evaluations"] == solution.work == 2000


@pytest.mark.parametrize(
    "options",
    [
        {"population": 1}, {"pressure": 1}, {"patience": 0}, {"crossover": "sbx"}, {"crossover_probability": 1.5},
        {"switches": 0.5}, {"reach": 0}, {"spend": -0.1}, {"seeded": 2.0},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidSolverOption, match=next(iter(options))):
        Genetic(**options)


def test_missing_pymoo_is_named_with_the_command_that_brings_it(monkeypatch):
    real = importlib.import_module

    def without(name, *args):
        if name.startswith("pymoo"):
            raise ModuleNotFoundError("No module named 'pymoo'")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingDependency, match=r"pip install 'qubo_compress\[genetic\]'"):
        solve(random_problem("dense", 3, 3, 0), "genetic")
