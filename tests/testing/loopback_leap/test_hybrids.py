"""The hybrid solvers of the loopback server, asked with the unmodified client of Ocean."""

from __future__ import annotations

import itertools

import dimod
import numpy as np
import pytest
from dwave.cloud import exceptions
from dwave.optimization import Model
from dwave.system import (
    LeapHybridCQMSampler,
    LeapHybridDQMSampler,
    LeapHybridSampler,
    StrideHybridSolver,
)

from qubo_compress import ChoiceProblem


def test_binary_models(leap):
    model = dimod.generators.gnp_random_bqm(16, 0.5, "BINARY", random_state=2).relabel_variables(
        {i: f"x{i}" for i in range(16)}, inplace=False
    )
    with LeapHybridSampler() as sampler:
        found = sampler.sample(model, label="mine")
        assert len(found) == 1
        assert found.first.energy == pytest.approx(dimod.ExactSolver().sample(model).first.energy)
        assert found.info["qpu_access_time"] == 0 and "classical" in found.info["loopback"]
        assert found.info["problem_label"] == "mine" and found.info["charge_time"] == 200_000
        with pytest.raises(exceptions.SolverFailureError, match="unknown parameters"):
            sampler.sample(model, sweeps=3).resolve()


def least_energy(problem):
    assignments = itertools.product(*map(range, problem.group_sizes))
    return min(problem.energy(one) for one in map(np.array, assignments) if problem.is_feasible(one))


@pytest.mark.parametrize("kind", ["dense", "separable"])
def test_constrained_models_that_are_choice_problems(leap, kind):
    problem = ChoiceProblem.random(kind, groups=5, choices=4, seed=4)
    cqm, _ = problem.to_cqm()
    with LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(cqm)
    assert found.record.is_feasible.all() and len(found)
    assert found.first.energy == pytest.approx(least_energy(problem), abs=1e-5)
    assert "classical" in found.info["loopback"]
    assert set(found.info["constraint_labels"]) == set(cqm.constraints)


def test_an_infeasible_sample_of_least_energy_on_request(loopback):
    problem = ChoiceProblem.random("dense", groups=8, choices=5, seed=4)
    with loopback(eager=True, infeasible_first=True), LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(problem.to_cqm()[0])
    assert not found.first.is_feasible
    assert found.filter(lambda row: row.is_feasible).first.energy > found.first.energy


def test_budgets_of_fractions_negative_costs_and_the_other_sense(leap):
    cqm = dimod.ConstrainedQuadraticModel()
    rng = np.random.default_rng(0)
    names = [[f"{group}{choice}" for choice in range(3)] for group in "abcd"]
    flat = [name for group in names for name in group]
    for name in flat:
        cqm.add_variable("BINARY", name)
    cqm.set_objective(dimod.BQM(dict(zip(flat, rng.normal(size=12))), {("a0", "b1"): -3.0}, 1.0, "BINARY"))
    for group in names:
        cqm.add_discrete(group, label=f"group {group[0][0]}")
    weights = rng.normal(size=12)
    cqm.add_constraint([(name, weight) for name, weight in zip(flat, weights)] + [(0.25,)], "<=", 0.3, label="most")
    cqm.add_constraint([(name, weight) for name, weight in zip(flat, weights)], ">=", -2.0, label="least")
    with LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(cqm)
    exact = dimod.ExactCQMSolver().sample_cqm(cqm).filter(lambda row: row.is_feasible)
    assert found.first.is_feasible and found.first.energy == pytest.approx(exact.first.energy)


def test_constrained_models_of_another_shape(leap):
    cqm = dimod.ConstrainedQuadraticModel()
    i, x = dimod.Integer("i", upper_bound=6), dimod.Binary("x")
    cqm.set_objective((i - 4) * (i - 4) - 3 * x)
    cqm.add_constraint(i + 2 * x <= 5, label="room")
    with LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(cqm)
    best = found.filter(lambda row: row.is_feasible).first
    exact = dimod.ExactCQMSolver().sample_cqm(cqm).filter(lambda row: row.is_feasible).first
    assert best.energy == exact.energy


def test_constrained_models_that_cannot_be_met(leap):
    problem = ChoiceProblem.random("dense", groups=4, choices=3, seed=0)
    cqm, _ = problem.with_limits(problem.smallest_totals() - 1).to_cqm()
    with LeapHybridCQMSampler() as sampler:
        found = sampler.sample_cqm(cqm)
    assert len(found) and not found.record.is_feasible.any()


def test_discrete_models(leap):
    rng = np.random.default_rng(1)
    dqm = dimod.DiscreteQuadraticModel()
    for name in "abcde":
        dqm.add_variable(4, label=name)
        dqm.set_linear(name, rng.normal(size=4))
    for u, v in ("ab", "bc", "ad", "ce"):
        dqm.set_quadratic(u, v, rng.normal(size=(4, 4)))
    with LeapHybridDQMSampler() as sampler:
        found = sampler.sample_dqm(dqm)
    assert found.first.energy == pytest.approx(dimod.ExactDQMSolver().sample_dqm(dqm).first.energy)
    assert "classical" in found.info["loopback"] and set(found.variables) == set("abcde")


def choice_model(groups=6, choices=4):
    rng = np.random.default_rng(0)
    values, sizes = rng.random((groups, choices)), rng.integers(1, 9, (groups, choices)).astype(float)
    model = Model()
    group, choice = model.constant(np.arange(groups)), model.integer(groups, lower_bound=0, upper_bound=choices - 1)
    model.minimize(model.constant(values)[group, choice].sum())
    room = sizes.min(axis=1).sum() + 5
    model.add_constraint(model.constant(sizes)[group, choice].sum() <= model.constant(room))
    grid = np.array(np.meshgrid(*[np.arange(choices)] * groups)).reshape(groups, -1)
    fits = sizes[np.arange(groups)[:, None], grid].sum(axis=0) <= room
    best = values[np.arange(groups)[:, None], grid].sum(axis=0)[fits].min()
    return model, best


def test_nonlinear_models(leap):
    model, best = choice_model()
    with StrideHybridSolver() as solver:
        result = solver.sample(model, time_limit=0.2, label="mine").result(timeout=600)
        with model.lock():
            assert model.objective.state(0) == pytest.approx(best)
            assert all(constraint.state(0) for constraint in model.iter_constraints())
        assert result.info["timing"]["qpu_access_time"] == 0 and result.info["problem_label"] == "mine"
        listing = Model()
        listing.minimize(listing.list(4).sum())
        with pytest.raises(exceptions.SolverFailureError, match="ListVariable"):
            solver.sample(listing, time_limit=0.2).result(timeout=600)


def test_nonlinear_with_binaries_and_wide_integers(leap):
    model = Model()
    x, i = model.binary(3), model.integer((), lower_bound=-100, upper_bound=100)
    model.minimize((i - 37) * (i - 37) - x.sum())
    model.add_constraint(x.sum() == model.constant(2.0))
    with StrideHybridSolver() as solver:
        solver.sample(model, time_limit=0.2).result(timeout=600)
    with model.lock():
        assert model.objective.state(0) == -2 and i.state(0) == 37 and x.state(0).sum() == 2


def test_without_eager_the_time_limit_is_used_and_polls_are_long(loopback):
    model, _ = choice_model()
    with loopback() as running:
        with LeapHybridSampler() as sampler:
            found = sampler.sample(dimod.BQM({0: 1.0}, {}, 0.0, "SPIN"), time_limit=0.7)
            assert found.info["run_time"] >= 690_000  # microseconds; no load makes it less
        polls = [request for request in running.requests if request.kind == "poll"]
        assert len(polls) == 1 and "timeout=30" in polls[0].path
        with StrideHybridSolver() as solver:
            result = solver.sample(model, time_limit=0.4).result(timeout=600)
            assert result.info["timing"]["run_time"] >= 390_000
