"""CLADO: the clipped problem is the clipped quadratic form, and its optimum is priced honestly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qubo_compress import ChoiceProblem, solve
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.opponents import clado
from qubo_compress.solvers.opponents.clado import clip, quadratic_form
from qubo_compress.testing.solvers import brute_force


def everything(problem):
    return [np.array(x) for x in itertools.product(*(range(n) for n in problem.group_sizes))]


def one_hot(problem, assignment):
    x = np.zeros(problem.num_choices)
    x[problem.selected(assignment)] = 1.0
    return x


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(["sparse", "dense"]), groups=st.integers(2, 4), seed=st.integers(0, 10**6))
def test_the_clipped_problem_is_the_clipped_form(kind, groups, seed):
    problem = random_problem(kind, groups, 3, seed)
    matrix = quadratic_form(problem)
    values, vectors = np.linalg.eigh(matrix)
    positive = (vectors * np.maximum(values, 0.0)) @ vectors.T
    clipped = clip(problem)
    scale = max(1.0, float(np.abs(values).max()))
    for assignment in everything(problem):
        x = one_hot(problem, assignment)
        assert problem.energy(assignment) == pytest.approx(problem.constant + 0.5 * x @ matrix @ x, abs=1e-9)
        energy = clipped.problem.energy(assignment)
        assert energy == pytest.approx(problem.constant + 0.5 * x @ positive @ x, abs=1e-5 * scale)
        assert clipped.problem.is_feasible(assignment) == problem.is_feasible(assignment)
        # Clipping only ever adds energy, and never more than the slack says.
        assert -1e-5 * scale <= energy - problem.energy(assignment) <= clipped.slack + 1e-9
    assert clipped.share == pytest.approx(np.maximum(0, -values).sum() / np.abs(values).sum(), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_of_the_clipped_problem_is_found_and_priced_on_the_original(seed):
    problem = random_problem("dense", 5, 4, seed, coupling=1.5)
    solution = solve(problem, "clado", time_limit=30.0)
    least, assignment = brute_force(clip(problem).problem)
    assert (solution.assignment == assignment).all()
    assert solution.details["clipped_energy"] == pytest.approx(least, abs=1e-9)
    assert solution.energy == problem.energy(assignment) >= brute_force(problem)[0]
    assert solution.bound is None and solution.details["clipped_share"] > 0.0
    assert solution.details["least_eigenvalue"] < 0.0 and any("clipped" in note for note in solution.notes)
    assert len(solution.pool) == 1


def test_a_form_that_is_definite_is_solved_with_a_bound():
    rows = np.random.default_rng(0).standard_normal((8, 8)) * 0.1
    gram = rows @ rows.T
    for start in range(0, 8, 2):
        gram[start : start + 2, start : start + 2] = 0.0
    problem = ChoiceProblem(
        np.full(8, 1.0) + np.arange(8) / 100, np.arange(0, 9, 2), [[4, 1] * 4], [9], pairs=sparse.csr_array(gram)
    )
    solution = solve(problem, "clado", time_limit=30.0)
    least = brute_force(problem)[0]
    assert solution.energy == pytest.approx(least, abs=1e-12) and solution.details["clipped_share"] == 0.0
    assert solution.bound is not None and least - 1e-4 <= solution.bound <= least


@pytest.mark.parametrize("kind", ["low-rank", "separable"])
def test_nothing_is_clipped_where_nothing_was_measured_in_pairs(kind):
    problem = random_problem(kind, 5, 4, 1)
    solution = solve(problem, "clado", time_limit=30.0)
    assert solution.status == "optimal" and solution.details["clipped_share"] == 0.0
    assert solution.energy == pytest.approx(brute_force(problem)[0], abs=1e-6)


def test_a_spectrum_too_large_is_said_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(clado, "LARGEST_SPECTRUM", 10)
    problem = random_problem("dense", 5, 4, 0)
    solution = solve(problem, "clado", time_limit=10.0)
    assert problem.is_feasible(solution.assignment) and solution.bound is None
    assert "nothing was clipped" in solution.notes[0]
