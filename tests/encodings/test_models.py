"""Discrete, nonlinear and constrained models say the same as the problem and decode by label."""

from __future__ import annotations

import dimod
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem
from qubo_compress.encodings import nonlinear, to_cqm
from qubo_compress.encodings.budgets import make_treatment
from qubo_compress.errors import InvalidAssignment, ProblemTooLarge
from qubo_compress.problem.generators import random_problem
from tests.encodings.test_budgets import reachable, stated
from tests.encodings.test_encodings import assignments, small_problems


@settings(max_examples=40, deadline=None)
@given(problem=small_problems(), budget=st.sampled_from(["multiplier", "none", "unbalanced"]), price=st.floats(0, 3))
def test_a_discrete_model_has_the_energy_of_the_problem(problem, budget, price):
    assume(reachable(problem))
    options = {"multipliers": np.full(problem.num_budgets, price)} if budget == "multiplier" else {}
    dqm, decode = problem.to_dqm(budget, **options)
    terms = make_treatment(budget, options).terms(problem)
    assert tuple(dqm.variables) == problem.group_names
    everything = assignments(problem)
    for x in everything:
        sample = dict(zip(problem.group_names, x.tolist(), strict=True))
        assert dqm.energy(sample) == pytest.approx(stated(problem, budget, terms, x), abs=1e-4)
        assert np.array_equal(decode(sample).assignments, x)
    samples = dimod.ExactDQMSolver().sample_dqm(dqm)
    decoded = decode(samples)
    assert len(decoded.assignments) == len(everything)
    assert not decoded.invalid.any()
    for row, energy in zip(decoded.assignments, samples.record.energy, strict=True):
        assert energy == pytest.approx(stated(problem, budget, terms, row), abs=1e-4)


def test_a_discrete_model_decodes_by_label():
    problem = random_problem("dense", 4, 3, 1)
    _, decode = problem.to_dqm()
    names = list(problem.group_names)[::-1]
    samples = dimod.SampleSet.from_samples(([[2, 1, 0, 2]], names), vartype="INTEGER", energy=[0.0])
    assert decode(samples).assignments.tolist() == [[2, 0, 1, 2]]
    assert decode([2, 0, 1, 7]).invalid == 1
    with pytest.raises(InvalidAssignment, match="lacks group 'group3'"):
        decode({"group0": 0, "group1": 0, "group2": 0})
    with pytest.raises(InvalidAssignment, match="4 cases"):
        decode([0, 1])


@settings(max_examples=40, deadline=None)
@given(problem=small_problems())
def test_a_nonlinear_model_has_the_energy_and_the_budgets_of_the_problem(problem):
    model, decode = problem.to_nonlinear()
    everything = assignments(problem)
    integers = next(model.iter_decisions())
    constraints = list(model.iter_constraints())
    assert len(constraints) == problem.num_budgets
    model.states.resize(len(everything))
    with model.lock():
        for i, x in enumerate(everything):
            integers.set_state(i, x)
            assert float(model.objective.state(i)) == pytest.approx(problem.energy(x), abs=1e-6)
            assert all(bool(rule.state(i)) for rule in constraints) == problem.is_feasible(x)
    decoded = decode(model)
    assert np.array_equal(decoded.assignments, everything)
    assert not decoded.invalid.any()


def test_a_nonlinear_model_keeps_its_meaning_through_a_file():
    problem = random_problem("sparse", 6, 4, 0)
    model, decode = problem.to_nonlinear()
    with model.to_file() as handle:
        copy = type(model).from_file(handle)
    copy.states.resize(1)
    next(copy.iter_decisions()).set_state(0, [3, 2, 1, 0, 1, 2])
    with copy.lock():
        assert float(copy.objective.state(0)) == pytest.approx(problem.energy([3, 2, 1, 0, 1, 2]), abs=1e-9)
    assert decode(copy).assignments.tolist() == [[3, 2, 1, 0, 1, 2]]


def test_integers_out_of_range_are_clipped_and_counted():
    problem = random_problem("dense", 3, 3, 0)
    _, decode = problem.to_nonlinear()
    decoded = decode([[0.0, 5.0, -1.0], [0, 1, 2]])
    assert decoded.assignments.tolist() == [[0, 2, 0], [0, 1, 2]]
    assert decoded.invalid.tolist() == [2, 0]
    with pytest.raises(InvalidAssignment, match="3 integers"):
        decode([[1, 2]])
    with pytest.raises(InvalidAssignment, match="fractions"):
        decode([0.5, 1.0, 0.0])


def test_a_nonlinear_model_with_too_many_constants_is_refused(monkeypatch):
    monkeypatch.setattr(nonlinear, "LARGEST_CONSTANTS", 100)
    for kind in ("dense", "low-rank"):
        with pytest.raises(ProblemTooLarge, match="at most 100"):
            random_problem(kind, 20, 8, 0).to_nonlinear()
    random_problem("separable", 20, 8, 0).to_nonlinear()


def test_a_constrained_model_decodes_by_label_and_keeps_the_feasibility_field():
    problem = random_problem("dense", 3, 3, 0)
    cqm, decode = to_cqm(problem)
    samples = dimod.ExactCQMSolver().sample_cqm(cqm)
    decoded = decode(samples)
    valid = decoded.invalid == 0
    feasible = np.array([problem.is_feasible(x) for x in decoded.assignments])
    assert np.array_equal(samples.record.is_feasible, valid & feasible)
    shuffled = dimod.SampleSet.from_samples(
        (samples.record.sample[:, ::-1], list(samples.variables)[::-1]), vartype="BINARY", energy=samples.record.energy
    )
    assert np.array_equal(decode(shuffled).assignments, decoded.assignments)


def test_labels_of_a_constrained_model_are_unique_whatever_the_names():
    problem = ChoiceProblem(
        linear=[0.0] * 4,
        group_offsets=[0, 2, 4],
        costs=[[2, 1, 2, 1], [1, 1, 1, 1]],
        limits=[3, 2],
        group_names=["bytes", "budget bytes"],
        budget_names=["bytes", "bytes"],
    )
    cqm, _ = to_cqm(problem)
    assert len(cqm.constraints) == 4
