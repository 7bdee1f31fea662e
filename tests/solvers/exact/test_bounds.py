"""Lower bounds lie below every feasible energy, and close to the least one where that can be told."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.problem.generators import planted_problem
from qubo_compress.solvers.exact import bounds
from qubo_compress.solvers.exact.bounds import lower_bound, warm_up
from qubo_compress.solvers.exact.convex_relaxation import convex_form, relax, start_at
from qubo_compress.solvers.exact.message_passing import message_bound
from qubo_compress.testing import brute_force

KINDS = ("separable", "sparse", "dense", "low-rank", "planted")


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), budgets=st.integers(1, 3), groups=st.integers(1, 5))
def test_never_above_the_optimum(kind, seed, budgets, groups):
    problem = ChoiceProblem.random(kind=kind, groups=groups, choices=4, seed=seed, budgets=budgets)
    truth = brute_force(problem)
    bound = lower_bound(problem, 1.0)
    if truth is not None:
        assert bound <= truth[0]


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_convex_form_of_pairs_keeps_every_energy(kind):
    problem = ChoiceProblem.random(kind=kind, groups=6, choices=4, seed=0)
    form = convex_form(problem)
    rng = np.random.default_rng(0)
    for _ in range(50):
        assignment = rng.integers(problem.group_sizes)
        x = np.zeros(problem.num_choices)
        x[problem.selected(assignment)] = 1.0
        energy = form.constant + form.diagonal @ x + 0.5 * x @ form.gram @ x
        assert energy == pytest.approx(problem.energy(assignment), abs=1e-10)
    assert np.linalg.eigvalsh(form.gram).min() >= -1e-12


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_tight_where_the_relaxation_is(budgets):
    problem, optimum = planted_problem(groups=30, choices=8, seed=1, budgets=budgets)
    energy = problem.energy(optimum)
    assert lower_bound(problem, 5.0) == pytest.approx(energy, rel=1e-4)


def test_without_a_gram_matrix_the_same_bound(monkeypatch):
    problem = ChoiceProblem.random(kind="low-rank", groups=40, choices=8, seed=1)
    formed = lower_bound(problem, 5.0)
    monkeypatch.setattr(bounds, "LARGEST_GRAM", 0)
    assert lower_bound(problem, 5.0) == pytest.approx(formed, rel=1e-4)


def test_relaxation_meets_its_dual():
    problem = ChoiceProblem.random(kind="low-rank", groups=20, choices=10, seed=0)
    form = convex_form(problem)
    mixture = start_at(form, problem.selected([0] * 20))
    bound, _ = relax(form, mixture, time.perf_counter() + 10.0)
    value = form.constant + form.diagonal @ mixture.x + 0.5 * mixture.x @ form.gram @ mixture.x
    assert value == pytest.approx(bound, rel=1e-6)
    sums = np.add.reduceat(mixture.x, problem.group_offsets[:-1])
    assert np.allclose(sums, 1.0) and (mixture.x >= 0).all()
    assert (mixture.used <= form.room + 1e-6).all()


def test_messages_prove_a_chain_without_budget():
    # On a tree of groups the bound of message passing is the optimum.
    problem = ChoiceProblem.random(kind="sparse", groups=8, choices=4, seed=3, neighbours=1)
    free = problem.with_limits(problem.totals([0] * 8) * 10)
    assert message_bound(free, 5.0) == pytest.approx(solve(free, "exact", time_limit=20.0).energy, abs=1e-4)


def test_exact_where_nothing_is_changed():
    problem = ChoiceProblem.random(kind="low-rank", groups=10, choices=5, seed=0)
    free = problem.with_limits(problem.totals([0] * 10))
    assert lower_bound(free, 2.0) == 0.0


def test_contradictory_budgets_give_no_false_bound():
    problem = ChoiceProblem(
        linear=[0.0, 1.0, 0.0, 1.0], group_offsets=[0, 2, 4], costs=[[4, 1, 4, 1], [1, 4, 1, 4]], limits=[4, 4]
    )
    assert lower_bound(problem, 1.0) > 1.0


@pytest.mark.parametrize("kind, groups", [("dense", 60), ("sparse", 200), ("low-rank", 400)])
def test_time_is_kept(kind, groups, clock):
    problem = ChoiceProblem.random(kind=kind, groups=groups, choices=12, seed=0)
    warm_up()

    def bound_and_reads(step):
        with clock(step) as wound:
            return lower_bound(problem, 0.5), wound.reads

    hurried, few = bound_and_reads(0.1)  # the time is over at the fifth reading
    patient, many = bound_and_reads(0.0001)
    assert few <= 10 and many >= 3 * few
    assert hurried <= patient and (hurried < patient or kind == "low-rank")
