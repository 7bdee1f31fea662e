"""Budget treatments add what they state, and keep what they promise on small problems solved exactly."""

from __future__ import annotations

import itertools

import dimod
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem
from qubo_compress.encodings import to_bqm, to_dqm
from qubo_compress.encodings.budgets import Slack, Unbalanced, make_treatment, slack_weight, unbalanced_weights
from qubo_compress.errors import InvalidBudget
from qubo_compress.problem.generators import random_problem
from tests.encodings.test_encodings import ENCODINGS, assignments, bits_of, small_problems


def slack_range(square):
    """All totals that a square's slack bits can make."""
    totals = {0}
    for value in square.slack:
        totals |= {total + int(value) for total in totals}
    return totals


def stated(problem, name, terms, assignment):
    """The energy that a treatment's formula gives, its slack at its best, written from the definition."""
    chosen = problem.selected(assignment)
    value = problem.energy(assignment) + terms.linear[chosen].sum() + terms.constant
    for square in terms.squares:
        short = square.costs[chosen].sum() + square.offset
        value += square.weight * min((short + slack) ** 2 for slack in slack_range(square))
    return value


def reachable(problem):
    return bool((problem.smallest_totals() <= problem.limits).all())


@settings(max_examples=40, deadline=None)
@given(
    problem=small_problems(),
    encoding=st.sampled_from(ENCODINGS),
    budget=st.sampled_from(["slack", "unbalanced", "multiplier", "none"]),
    bits=st.integers(1, 4),
)
def test_every_treatment_adds_its_stated_terms(problem, encoding, budget, bits):
    assume(reachable(problem))
    options = {"bits": bits} if budget == "slack" else {}
    bqm, decode = to_bqm(problem, encoding, budget, **options)
    terms = make_treatment(budget, options).terms(problem)
    everything = assignments(problem)
    rows = np.array([bits_of(problem, encoding, x) for x in everything]).reshape(len(everything), -1)
    slack = np.array(list(itertools.product((0, 1), repeat=terms.num_slack_bits)), dtype=int)
    least = np.full(len(everything), np.inf)
    for fill in slack:
        full = np.hstack([rows, np.tile(fill, (len(rows), 1))])
        least = np.minimum(least, bqm.energies((full, range(bqm.num_variables))))
        assert np.array_equal(decode(full).assignments, everything)
        assert not decode(full).invalid.any()
    expected = [stated(problem, budget, terms, x) for x in everything]
    assert np.allclose(least, expected, rtol=1e-9, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(problem=small_problems(), unit=st.integers(1, 9), seed=st.integers(0, 9))
def test_slack_is_free_exactly_within_the_rounded_budget_and_rounding_never_exceeds_it(problem, unit, seed):
    assume(reachable(problem))
    terms = Slack(weight=1.0, unit=unit).terms(problem)
    assert all(square.costs.min() >= 0 for square in terms.squares)
    for x in assignments(problem):
        free = stated(problem, "slack", terms, x) == pytest.approx(problem.energy(x), abs=1e-12)
        if free:
            assert problem.is_feasible(x)
        if problem.is_feasible(x) and unit == 1:
            assert free
        # One unit per group is all that rounding up can cost, and one more for the limit rounded down.
        loose = problem.with_limits(problem.limits - unit * (problem.num_groups + 1))
        if loose.is_feasible(x):
            assert free


@settings(max_examples=25, deadline=None)
@given(problem=small_problems(), encoding=st.sampled_from(ENCODINGS))
def test_the_ground_state_with_slack_is_the_optimum_within_the_budget(problem, encoding):
    assume(reachable(problem))
    feasible = [x for x in assignments(problem) if problem.is_feasible(x)]
    assume(feasible)
    weight = slack_weight(problem)
    # The costs of these problems are below 50, so that seven bits hold every slack in units of one.
    bqm, decode = to_bqm(problem, encoding, "slack", weight=weight, penalty=0.0, bits=8)
    stiff = 2.0 * float(np.abs(list(bqm.linear.values())).sum() + np.abs(list(bqm.quadratic.values())).sum()) + 1.0
    bqm, decode = to_bqm(problem, encoding, "slack", weight=weight, penalty=stiff, bits=8)
    assume(0 < bqm.num_variables <= 14)
    ground = dimod.ExactSolver().sample(bqm).first
    decoded = decode(ground.sample)
    assert int(decoded.invalid) == 0
    assert problem.is_feasible(decoded.assignments)
    least = min(problem.energy(x) for x in feasible)
    assert problem.energy(decoded.assignments) == pytest.approx(least, abs=1e-6 * max(1.0, stiff))
    assert ground.energy == pytest.approx(least, abs=1e-6 * max(1.0, stiff))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(problem=small_problems())
def test_unbalanced_ground_states_are_within_one_budget_at_the_proven_weights(problem):
    assume(problem.num_budgets == 1 and reachable(problem))
    terms = Unbalanced(weights=unbalanced_weights(problem)).terms(problem)
    ground = min(assignments(problem), key=lambda x: stated(problem, "unbalanced", terms, x))
    assert problem.is_feasible(ground)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(problem=small_problems(), first=st.floats(0, 3), second=st.floats(0, 3))
def test_unbalanced_is_the_published_parabola(problem, first, second):
    assume(problem.num_budgets == 1 and reachable(problem))
    terms = Unbalanced(weights=(first, second)).terms(problem)
    totals = np.array([problem.totals(x)[0] for x in assignments(problem)])
    if totals.max() <= problem.limits[0]:
        assert not terms.squares
        return
    shares = (problem.limits[0] - totals) / (totals.max() - totals.min())
    for x, h in zip(assignments(problem), shares, strict=True):
        value = stated(problem, "unbalanced", terms, x) - problem.energy(x)
        assert value == pytest.approx(-first * h + second * h**2, abs=1e-9)


def test_slack_needs_few_bits_by_default_and_fewer_with_a_unit_or_a_lower_end():
    base = random_problem("dense", 20, 16, 0)
    bqm, _ = to_bqm(base, budget="slack")
    assert bqm.num_variables - 300 == 10
    coarse, _ = to_bqm(base, budget="slack", bits=5)
    assert coarse.num_variables - 300 == 5
    near, _ = to_bqm(base, budget="slack", unit=int(np.ptp(base.costs)) // 64 or 1, lower=0.9)
    far, _ = to_bqm(base, budget="slack", unit=int(np.ptp(base.costs)) // 64 or 1)
    assert far.num_variables - near.num_variables in (3, 4)


def test_costs_of_a_common_divisor_are_counted_in_it():
    problem = ChoiceProblem(
        linear=[0.0, 1.0, 0.0, 1.0], group_offsets=[0, 2, 4], costs=[[8000, 3000, 13000, 3000]], limits=[16000]
    )
    (square,) = Slack().terms(problem).squares
    assert square.costs.tolist() == [1.0, 0.0, 2.0, 0.0]
    assert square.slack.tolist() == [1.0, 1.0]
    assert square.offset == -2.0


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        ("slack", {"lower": 1.0}, "lower must be in"),
        ("slack", {"bits": 0}, "bits from 1 to 32"),
        ("slack", {"unit": 0}, "unit must be one positive integer"),
        ("slack", {"unit": 1.5}, "unit must be one positive integer"),
        ("slack", {"weight": [1.0, 2.0]}, "weight must be one non-negative number"),
        ("slack", {"multipliers": [1.0]}, "budget='slack' has no option 'multipliers'"),
        ("unbalanced", {"weights": [1.0]}, "weights must be two non-negative numbers"),
        ("unbalanced", {"weights": [-1.0, 1.0]}, "weights must be two non-negative numbers"),
    ],
)
def test_options_out_of_range_are_refused(budget, options, message):
    with pytest.raises(InvalidBudget, match=message):
        to_bqm(random_problem("dense", 3, 3, 0), budget=budget, **options)


def test_squares_of_a_budget_out_of_reach_are_refused():
    problem = random_problem("dense", 3, 3, 0)
    for budget in ("slack", "unbalanced"):
        with pytest.raises(InvalidBudget, match="no assignment meets the budget 'bytes'"):
            to_bqm(problem.with_limits(problem.smallest_totals() - 1), budget=budget)


def test_a_discrete_model_refuses_slack():
    with pytest.raises(InvalidBudget, match="needs slack bits"):
        to_dqm(random_problem("dense", 3, 3, 0), "slack")
