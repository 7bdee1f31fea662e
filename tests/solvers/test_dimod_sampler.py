"""Our solvers behind dimod's interface: its own checks, its brute force, and its example problems."""

from __future__ import annotations

import json
import unittest

import dimod
import dimod.testing
import numpy as np
import pytest

from qubo_compress import ChoiceProblem
from qubo_compress.errors import InfeasibleBudget, InvalidProblem, InvalidSolverOption, UnknownName
from qubo_compress.solvers import DimodSampler


@dimod.testing.load_sampler_bqm_tests(DimodSampler("exact"))
class TestBinaryModels(unittest.TestCase):
    """dimod's own tests of samplers."""


def test_dimod_says_that_it_is_a_sampler():
    dimod.testing.assert_sampler_api(DimodSampler("exact"))


@pytest.mark.parametrize("solver", ["exact", "annealer", "greedy"])
def test_samples_of_a_constrained_model(solver):
    problem = ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=1, budgets=2)
    cqm, _ = problem.to_cqm()
    found = DimodSampler(solver).sample_cqm(cqm, work_limit=200, seed=3, label="mine")
    dimod.testing.assert_sampleset_energies_cqm(found, cqm)
    assert found.record.is_feasible.all() and found.record.is_satisfied.all()
    assert (np.diff(found.record.energy) >= -1e-12).all()
    assert found.info["constraint_labels"] == list(cqm.constraints)
    best = dimod.ExactCQMSolver().sample_cqm(cqm).filter(lambda one: one.is_feasible).first.energy
    assert found.first.energy >= best - 1e-9
    if found.info["bound"] is not None:
        assert found.info["bound"] <= best + 1e-9
    if solver == "exact":
        assert found.info["status"] == "optimal" and found.first.energy == pytest.approx(best)
    assert found.info["problem_label"] == "mine" and found.info["solver"] == solver
    json.dumps(found.info)  # plain values: sample sets are sent and stored
    assert dimod.SampleSet.from_serializable(found.to_serializable()).first.energy == found.first.energy


def test_samples_of_a_discrete_model():
    dqm, _ = ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=2, budgets=0).to_dqm()
    found = DimodSampler("exact").sample_dqm(dqm)
    dimod.testing.assert_sampleset_energies_dqm(found, dqm)
    expected = dimod.ExactDQMSolver().sample_dqm(dqm).first
    assert found.first.energy == pytest.approx(expected.energy) and found.info["status"] == "optimal"
    assert set(found.variables) == set(dqm.variables)


def test_reads_are_at_most_as_many_as_asked_for():
    bqm = dimod.generators.gnm_random_bqm(8, 20, "SPIN", random_state=1)
    found = DimodSampler("exact").sample(bqm, num_reads=1)
    assert len(found) == 1 and found.vartype is dimod.SPIN
    assert found.first.energy == pytest.approx(dimod.ExactSolver().sample(bqm).first.energy)
    with pytest.raises(InvalidSolverOption, match="num_reads must be a whole number of at least 1"):
        DimodSampler("exact").sample(bqm, num_reads=0)


def test_the_same_seed_and_work_give_the_same_samples():
    cqm, _ = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=1).to_cqm()
    first, second = (DimodSampler("annealer").sample_cqm(cqm, work_limit=20, seed=5) for _ in range(2))
    assert (first.record.sample == second.record.sample).all()


def test_errors_are_ours():
    x, y = dimod.Binaries("xy")
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.add_constraint(2 * x + 3 * y == 4, label="never")
    with pytest.raises(InfeasibleBudget):
        DimodSampler("exact").sample_cqm(cqm)
    with pytest.raises(UnknownName, match="did you mean 'annealer'"):
        DimodSampler("anealer")
    with pytest.raises(InvalidSolverOption, match="no option 'thread'; did you mean 'threads'"):
        DimodSampler("annealer", thread=1)
    with pytest.raises(InvalidProblem, match="takes a dimod.BinaryQuadraticModel; got dict"):
        DimodSampler().sample({})


KNAPSACK = ((35, 12), (85, 27), (30, 11), (50, 17), (70, 20), (80, 10), (55, 15))
"""Values and weights of ``data/small.csv`` in dwave-examples/knapsack."""


def test_dwaves_knapsack_is_solved_to_its_optimum():
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(dimod.quicksum(-value * dimod.Binary(i) for i, (value, _) in enumerate(KNAPSACK)))
    load = dimod.quicksum(weight * dimod.Binary(i) for i, (_, weight) in enumerate(KNAPSACK))
    cqm.add_constraint(load <= int(0.8 * sum(weight for _, weight in KNAPSACK)), label="capacity")
    best = dimod.ExactCQMSolver().sample_cqm(cqm).filter(lambda one: one.is_feasible).first.energy
    found = DimodSampler("exact").sample_cqm(cqm)
    assert found.first.energy == best == found.info["bound"] and found.info["status"] == "optimal"


def test_the_bins_of_dimods_own_example_are_packed_and_proven():
    weights = (0.9, 0.7, 0.2, 0.1)
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(dimod.quicksum(dimod.Binary(f"y_{j}") for j in range(4)))
    for i in range(4):
        cqm.add_discrete([f"x_{i}_{j}" for j in range(4)], label=f"item_{i}")
    for j in range(4):
        load = dimod.quicksum(weight * dimod.Binary(f"x_{i}_{j}") for i, weight in enumerate(weights))
        cqm.add_constraint(load - dimod.Binary(f"y_{j}") <= 0, label=f"capacity_{j}")
    best = dimod.ExactCQMSolver().sample_cqm(cqm).filter(lambda one: one.is_feasible).first.energy
    found = DimodSampler("exact").sample_cqm(cqm)
    assert found.first.energy == best == 2.0 and found.info["status"] == "optimal"
