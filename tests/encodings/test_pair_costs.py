"""Pair costs in models: exact as quadratic constraints and by prices, refused where a square would be quartic."""

from __future__ import annotations

import itertools
from typing import Any

import dimod
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem
from qubo_compress.encodings import to_bqm, to_cqm, to_dqm, to_nonlinear
from qubo_compress.encodings.domain_wall import by_cost
from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import UnsupportedProblem
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.samplers.binary_model import build_model
from qubo_compress.testing.loopback_leap import choices

KINDS = ("channels", "dense", "low-rank", "separable")


def paired(kind: str, seed: int, groups: int = 4) -> ChoiceProblem:
    return random_problem(kind, groups, 3, seed, budgets=2, pair_costs=0.0 if kind == "channels" else 0.8)


def assignments_of(problem: ChoiceProblem) -> list[np.ndarray]:
    return [np.array(picks) for picks in itertools.product(*(range(size) for size in problem.group_sizes))]


def bits_of(problem: ChoiceProblem, encoding: str, assignment: np.ndarray) -> np.ndarray:
    """The valid bits of an assignment, found by decoding all patterns of a group."""
    x = np.zeros(problem.num_choices, dtype=np.int8)
    x[problem.selected(assignment)] = 1
    if encoding == "one-hot":
        return x
    order, parts = by_cost(problem), []
    for a, b in itertools.pairwise(problem.group_offsets):
        position = int(np.flatnonzero(x[order[a:b]])[0])
        parts.append(np.arange(b - a - 1) < position)
    return np.concatenate(parts).astype(np.int8)


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), encoding=st.sampled_from(["domain-wall", "one-hot"]))
def test_prices_make_pair_costs_couplings(kind: str, seed: int, encoding: str) -> None:
    problem = paired(kind, seed, groups=3)
    prices = np.random.default_rng(seed).random(2) * 1e-4
    bqm, decode = to_bqm(problem, encoding, "multiplier", multipliers=prices)
    dqm, read = to_dqm(problem, multipliers=prices)
    model = build_model(problem, encodings.get(encoding)(), np.zeros(2))
    before = [model.bqm.energy(2 * bits_of(problem, encoding, a) - 1) for a in assignments_of(problem)]
    model.charge(prices)
    shifts = []
    for assignment, uncharged in zip(assignments_of(problem), before, strict=True):
        wanted = problem.energy(assignment) + prices @ (problem.totals(assignment) - problem.limits)
        bits = bits_of(problem, encoding, assignment)
        assert bqm.energy(bits) == pytest.approx(wanted, abs=1e-7)
        assert decode(bits).assignments.tolist() == assignment.tolist()
        sample = dict(zip(problem.group_names, assignment.tolist(), strict=True))
        assert dqm.energy(sample) == pytest.approx(wanted, abs=1e-7)
        assert read(sample).assignments.tolist() == assignment.tolist()
        shifts.append(model.bqm.energy(2 * bits - 1) - uncharged - prices @ problem.totals(assignment))
    assert np.ptp(shifts) < 1e-7  # up to a constant, which does not matter to a sampler


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6))
def test_constrained_models_hold_them_exactly(kind: str, seed: int) -> None:
    problem = paired(kind, seed)
    cqm, decode = to_cqm(problem)
    again = choices.from_constrained(dimod.ConstrainedQuadraticModel.from_file(cqm.to_file()))
    assert again is not None and again.problem.pair_costs is not None
    for assignment in assignments_of(problem)[::7]:
        bits = bits_of(problem, "one-hot", assignment)
        sample = dict(enumerate(bits.tolist()))
        assert cqm.check_feasible(sample) == problem.is_feasible(assignment)
        assert cqm.objective.energy(sample) == pytest.approx(problem.energy(assignment), abs=1e-9)
        assert decode(bits).assignments.tolist() == assignment.tolist()
        # The model lists its groups in an order of its own.
        chosen = [again.variables.index(v) for v in problem.selected(assignment).tolist()]
        other = np.sort(chosen) - again.problem.group_offsets[:-1]
        assert again.problem.is_feasible(other) == problem.is_feasible(assignment)


@settings(max_examples=10, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6))
def test_nonlinear_models_hold_them_exactly(kind: str, seed: int) -> None:
    problem = paired(kind, seed)
    model, _ = to_nonlinear(problem)
    integers: Any = next(model.iter_decisions())
    model.states.resize(1)
    with model.lock():
        for assignment in assignments_of(problem)[::5]:
            integers.set_state(0, assignment)
            met = all(bool(constraint.state(0)) for constraint in model.iter_constraints())
            assert met == problem.is_feasible(assignment)
            assert float(model.objective.state(0)) == pytest.approx(problem.energy(assignment), abs=1e-9)


@pytest.mark.parametrize("budget", ["slack", "unbalanced"])
def test_squares_of_pair_costs_are_refused_and_say_what_to_use(budget: str) -> None:
    problem = paired("channels", 0)
    with pytest.raises(UnsupportedProblem, match="'bytes'.*fourth order.*budget='multiplier'.*to_cqm or to_nonlinear"):
        to_bqm(problem, budget=budget)
    with pytest.raises(UnsupportedProblem, match="fourth order"):
        to_dqm(problem, budget="unbalanced")


@pytest.mark.parametrize("budget", ["slack", "unbalanced"])
def test_a_budget_that_cannot_bind_needs_no_square(budget: str) -> None:
    problem = paired("channels", 0)
    free = problem.with_limits(2 * problem.totals([0] * 4) + 1)
    bqm, _ = to_bqm(free, "one-hot", budget)
    for assignment in assignments_of(free)[::5]:
        assert bqm.energy(bits_of(free, "one-hot", assignment)) == pytest.approx(free.energy(assignment), abs=1e-7)
