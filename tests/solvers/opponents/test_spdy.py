"""SPDY: the dynamic programme, its budget, and the search for coefficients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.solvers.opponents.spdy import BucketProgramme, Spdy
from qubo_compress.testing import brute_force


def test_the_defaults_are_those_published() -> None:
    published = Spdy()
    assert (published.draws, published.patience, published.share, published.buckets) == (100, 100, 0.1, 10_000)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), buckets=st.sampled_from([1, 3, 10, 100, 10_000]), tight=st.floats(0, 1))
def test_the_programme_keeps_the_budget_and_is_exact_with_enough_buckets(seed: int, buckets: int, tight: float) -> None:
    problem = ChoiceProblem.random(kind="separable", groups=5, choices=4, seed=seed)
    least = problem.smallest_totals()
    problem = problem.with_limits(least + (tight * (problem.limits - least)).astype(np.int64))
    assignment = BucketProgramme(problem, buckets).solve(problem.linear)
    assert problem.is_feasible(assignment)
    finest = BucketProgramme(problem, 10**6).solve(problem.linear)
    truth = brute_force(problem)
    assert truth is not None
    assert problem.energy(finest) == pytest.approx(truth[0], abs=1e-9)
    assert problem.energy(assignment) >= truth[0] - 1e-9


def test_separable_problems_are_solved_exactly() -> None:
    for seed in range(5):
        problem = ChoiceProblem.random(kind="separable", groups=40, choices=8, seed=seed)
        best = solve(problem, "exact", time_limit=20.0).energy
        found = solve(problem, "spdy", time_limit=60.0, work_limit=1, buckets=10**6).energy
        assert found == pytest.approx(best, abs=1e-9)


def test_coefficients_make_good_what_additive_errors_miss() -> None:
    solved = 0
    for seed in range(6):
        problem = ChoiceProblem.random(kind="dense", groups=5, choices=4, seed=seed)
        additive = solve(problem, "spdy", time_limit=60.0, work_limit=1).energy
        solution = solve(problem, "spdy", time_limit=60.0)
        truth = brute_force(problem)
        assert truth is not None
        assert truth[0] - 1e-9 <= solution.energy <= additive
        solved += solution.energy == pytest.approx(truth[0], abs=1e-9)
    assert solved >= 3


def test_the_search_ends_when_no_neighbourhood_helps() -> None:
    problem = ChoiceProblem.random(kind="dense", groups=20, choices=6, seed=0)
    solution = solve(problem, "spdy", time_limit=60.0, loss=lambda assignment, examples: 1.0)
    # The plain programme, the draws, and a hundred failures with two coefficients and with one.
    assert solution.work == 1 + 100 + 2 * 100
    assert solution.details["candidates_scored"] <= solution.work


def test_the_loss_is_asked_once_for_each_assignment() -> None:
    problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=3)
    asked: list[bytes] = []

    def loss(assignment: IntArray, examples: int | None) -> float:
        assert examples is None and problem.is_feasible(assignment)
        asked.append(assignment.tobytes())
        return problem.energy(assignment)

    solution = solve(problem, "spdy", time_limit=60.0, loss=loss)
    assert len(set(asked)) == len(asked) == solution.details["candidates_scored"] < solution.work
    losses = [entry["loss"] for entry in solution.details["history"]]
    assert losses == sorted(losses, reverse=True)
    assert solution.details["loss"] == pytest.approx(solution.energy)


@pytest.mark.parametrize("seed", range(3))
def test_a_second_budget_holds_too(seed: int) -> None:
    problem = ChoiceProblem.random(kind="low-rank", groups=10, choices=6, seed=seed, budgets=2)
    assert problem.is_feasible(solve(problem, "spdy", time_limit=60.0, draws=10, patience=10).assignment)


def test_on_a_real_network_within_its_evaluations(sample: Callable[[str], Any]) -> None:
    found = sample("grouped-view-inplace")
    menu = qc.Menu(bits=(2, 3, 4, 8), sparsity=(0.0, 0.5))
    table = qc.measure(found.model, found.batches, menu=menu, metric="magnitude", progress=False)
    problem = table.problem(qc.Budget(bytes=int(table.problem(qc.Budget(ratio=1)).smallest_totals()[0] * 1.15)))
    loss = table.stitched_loss(found.model, found.batches)
    spent = loss.evaluations
    solution = solve(problem, "spdy", time_limit=60.0, loss=loss, draws=20, patience=5, most_evaluations=24 * 15)
    assert solution.details["network_evaluations"] == loss.evaluations - spent <= 24 * 15
    assert loss(solution.assignment) == solution.details["loss"] <= solution.details["history"][0]["loss"]
    given = solve(
        problem, "spdy", time_limit=60.0, loss=loss, work_limit=1, errors=tuple(float(e) for e in problem.linear**2)
    )
    assert problem.is_feasible(given.assignment)


@pytest.mark.parametrize("options", [{"draws": 0}, {"patience": 0}, {"share": 0.0}, {"buckets": 0}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSolverOption):
        Spdy(**options)
    problem = ChoiceProblem.random(kind="separable", groups=3, choices=2, seed=0)
    with pytest.raises(InvalidSolverOption, match="6 choices"):
        solve(problem, "spdy", errors=(1.0,))
