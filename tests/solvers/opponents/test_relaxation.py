"""The softmax relaxation: its energies and gradients are the problem's, and it finds small optima."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import solve
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.opponents.relaxation import Mixtures, SoftmaxRelaxation
from qubo_compress.testing.solvers import brute_force

KINDS = ("separable", "sparse", "dense", "low-rank")


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), groups=st.integers(1, 6), choices=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_pure_mixtures_have_the_energy_of_the_assignment(kind, groups, choices, seed):
    problem = random_problem(kind, groups, choices, seed)
    assignment = np.random.default_rng(seed).integers(problem.group_sizes)
    weights = np.zeros(problem.num_choices)
    weights[problem.selected(assignment)] = 1.0
    mixtures = Mixtures(problem)
    assert mixtures.energy(weights)[0] == pytest.approx(problem.energy(assignment), abs=1e-9)
    excess = (problem.totals(assignment) - problem.limits) / (problem.limits - problem.fixed_costs)
    assert np.allclose(mixtures.excess(weights), excess)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_through_the_softmax_is_that_of_finite_differences(kind):
    problem = random_problem(kind, 4, 3, 5)
    mixtures = Mixtures(problem)
    parameters = np.random.default_rng(0).standard_normal(problem.num_choices)

    def value(at):
        return mixtures.energy(mixtures.softmax(at, 0.7))[0]

    weights = mixtures.softmax(parameters, 0.7)
    assert np.allclose(np.add.reduceat(weights, problem.group_offsets[:-1]), 1.0)
    gradient = mixtures.through_softmax(mixtures.energy(weights)[1], weights, 0.7)
    for v, step in enumerate(1e-6 * np.eye(problem.num_choices)):
        assert gradient[v] == pytest.approx((value(parameters + step) - value(parameters - step)) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("budgets", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_most_small_optima_are_found(kind, budgets):
    found = 0
    for seed in range(3):
        problem = random_problem(kind, 5, 4, seed, budgets=budgets)
        solution = solve(problem, "relaxation", time_limit=60.0, work_limit=1000)
        least = brute_force(problem)[0]
        assert solution.energy >= least - 1e-9
        found += solution.energy <= least + 1e-9
    assert found >= 2  # rounding loses some: it is a baseline


def test_without_filling_the_rounded_mixture_is_only_repaired():
    problem = random_problem("dense", 12, 8, 0)
    plain = solve(problem, SoftmaxRelaxation(fill=False), time_limit=60.0, work_limit=500)
    filled = solve(problem, SoftmaxRelaxation(), time_limit=60.0, work_limit=500)
    assert problem.is_feasible(plain.assignment) and filled.energy <= plain.energy
    assert plain.details["descents"] == 10


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 0}, "steps"), ({"temperatures": (0.1, 1.0)}, "temperatures"), ({"temperatures": (1.0, 0.0)}, "temp"),
        ({"learning_rate": 0.0}, "learning_rate"), ({"spread": -1.0}, "spread"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, word):
    with pytest.raises(InvalidSolverOption, match=word):
        SoftmaxRelaxation(**options)
