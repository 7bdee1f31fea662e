"""The annealer asked directly, on Ocean's mock chips: chains, ranges, schedules, budgets and options."""

from __future__ import annotations

import dimod
import numpy as np
import pytest
from dwave.system.testing import MockDWaveSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import errors as e
from qubo_compress import solve
from qubo_compress.encodings.encoding import encodings
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.dwave import qpu
from qubo_compress.solvers.dwave.qpu import Qpu
from qubo_compress.solvers.dwave.qpu_sampling import (
    automatic_scale,
    bits_of_assignment,
    chain_strength,
    dynamic_range,
    owners,
)
from qubo_compress.solvers.local_search.local_model import local_model
from qubo_compress.testing import solvers as conformance

PROBLEM = random_problem("dense", groups=6, choices=5, seed=1)


class Recorder(MockDWaveSampler):
    """A mock that remembers what it was asked."""

    def __init__(self, topology="zephyr", shape=(3, 4), **more):
        super().__init__(
            topology_type=topology, topology_shape=list(shape), parameter_warnings=False, exact_solver_cutoff=0, **more
        )
        self.asked = []

    def sample(self, bqm, **parameters):
        self.asked.append((bqm.copy(), parameters))
        return super().sample(bqm, **{k: v for k, v in parameters.items() if k in ("num_reads", "answer_mode")})


@pytest.mark.parametrize("topology, shape", [("zephyr", [3, 4]), ("pegasus", [4])])
@pytest.mark.parametrize("encoding", ["domain-wall", "one-hot"])
def test_small_problems_are_solved_on_mock_chips(topology, shape, encoding):
    mock = MockDWaveSampler(topology_type=topology, topology_shape=shape, parameter_warnings=False)
    solver = Qpu(sampler=mock, encoding=encoding, submissions=4, num_reads=30, cache=None, roof_duality=False)
    problem = random_problem("dense", groups=5, choices=4, seed=2)
    solution = solve(problem, solver, time_limit=20.0)
    assert problem.is_feasible(solution.assignment)
    details = solution.details
    assert 1 <= details["submissions"] <= 4 and details["submissions"] == solution.work
    assert details["samples"] == 30 * solution.work >= details["samples_valid"]
    assert details["bits"] <= (15 if encoding == "domain-wall" else 20)
    assert details["qubits"] >= details["longest_chain"] >= 1
    assert 0.0 <= details["chain_break_fraction"] <= 1.0
    assert solution.energy <= details["energy_before_sampling"] + 1e-12
    truth, _ = conformance.brute_force(problem)
    assert solution.energy >= truth - 1e-9
    stages = {"build", "embed", "queue", "programming", "anneal", "readout", "decode", "solve", "total"}
    assert stages <= set(solution.timing) and all(seconds >= 0 for seconds in solution.timing.values())


@pytest.mark.parametrize("kind", ["channels", "dense"])
def test_budgets_with_pair_costs_are_priced(kind, chip):
    share = 0.0 if kind == "channels" else 0.8
    problem = random_problem(kind, groups=6, choices=3, seed=2, pair_costs=share)
    solution = solve(problem, Qpu(sampler=chip, submissions=4, num_reads=30, cache=None), time_limit=20.0)
    assert problem.is_feasible(solution.assignment)
    truth, _ = conformance.brute_force(problem)
    assert truth - 1e-9 <= solution.energy <= solution.details["energy_before_sampling"] + 1e-12


def test_an_embedding_has_the_couplings_of_pair_costs():
    """Energies without interactions under a budget with pair costs: at price zero the model has no couplings."""
    chip = Recorder("chimera", (3, 3, 4))
    problem = random_problem("channels", groups=20, choices=2, seed=0, neighbours=1, coupling=0.0)
    solver = Qpu(sampler=chip, encoding="domain-wall", submissions=3, num_reads=10, cache=None, roof_duality=False)
    solution = solve(problem, solver, time_limit=60.0)
    assert problem.is_feasible(solution.assignment) and solution.details["submissions"] >= 1
    assert not [note for note in solution.notes if "stopped early" in note]
    assert solution.details["bits"] > solution.details["largest_clique"]
    assert solution.details["longest_chain"] < 4  # no clique: a chain of layers


def test_a_mock_is_never_called_quantum(chip):
    solution = solve(PROBLEM, Qpu(sampler=chip, submissions=1, cache=None), time_limit=20.0)
    assert solution.details["simulated"] is True
    assert any("no D-Wave machine was involved" in note for note in solution.notes)


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(["separable", "sparse", "dense", "low-rank"]),
    budgets=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_budgets_are_never_exceeded(chip, kind, budgets, seed):
    problem = random_problem(kind, groups=5, choices=4, seed=seed, budgets=budgets)
    solution = solve(problem, Qpu(sampler=chip, submissions=2, num_reads=10, cache=None), time_limit=20.0)
    assert all(problem.is_feasible(entry.assignment) for entry in solution.pool)
    assert not any("over budget" in note for note in solution.notes)


@pytest.mark.parametrize(
    "check",
    [
        conformance.unreachable_budgets_are_refused,
        conformance.degenerate_shapes_are_solved,
        conformance.tight_budgets_are_met,
        conformance.same_seed_and_work_repeat,
    ],
    ids=lambda check: check.__name__,
)
def test_the_conformance_checks_of_small_problems(chip, check):
    check(Qpu(sampler=chip, submissions=2, num_reads=10, cache=None), 5.0)


def test_chain_strength_is_computed_over_spins(chip):
    bqm, _ = PROBLEM.to_bqm()
    over_bits = dimod.BinaryQuadraticModel(bqm)
    spins = bqm.change_vartype(dimod.SPIN, inplace=False)
    couplings = spins.to_numpy_vectors().quadratic.biases
    expected = 1.414 * np.sqrt((couplings**2).mean()) * np.sqrt(2 * couplings.size / spins.num_variables)
    assert chain_strength(over_bits, 1.414) == pytest.approx(expected)
    assert chain_strength(spins, 2.0) == pytest.approx(expected * 2.0 / 1.414)
    recorder = Recorder()
    solver = Qpu(sampler=recorder, submissions=1, cache=None, roof_duality=False, chain_strength_factor=0.7)
    solution = solve(PROBLEM, solver, time_limit=20.0)
    embedded, _ = recorder.asked[0]
    strength = solution.details["chain_strength"]
    assert embedded.vartype is dimod.SPIN
    assert sum(np.isclose(embedded.to_numpy_vectors().quadratic.biases, -strength)) > 0, "the chains have it"


def test_the_dynamic_range_is_that_of_pair_energies_on_the_chip():
    problem = random_problem("dense", groups=2, choices=2, seed=0)
    assert owners(problem, encodings.get("domain-wall")().bit_map(problem)).tolist() == [0, 1]
    properties = {"h_range": [-4, 4], "j_range": [-1, 1], "extended_j_range": [-2, 1]}
    embedded = dimod.BinaryQuadraticModel({0: 0.4, 1: 0.4, 2: 0.8}, {(0, 1): -8.0, (1, 2): 0.1}, 0.0, "SPIN")
    assert automatic_scale(embedded, properties) == 4.0
    found = dynamic_range(embedded, {0: (0, 1), 1: (2,)}, np.array([0, 1]), properties)
    assert found.coupling == pytest.approx(0.1 / 4.0)
    assert found.field == pytest.approx(0.4 / 4.0 / 4.0)
    sums = {**properties, "per_qubit_coupling_range": [-1.0, 1.0]}
    assert automatic_scale(embedded, sums) == pytest.approx(8.0)


def test_what_the_chip_cannot_resolve_is_said(chip):
    tiny = random_problem("dense", groups=8, choices=5, seed=0, coupling=0.002)
    solution = solve(tiny, Qpu(sampler=chip, submissions=1, cache=None, roof_duality=False), time_limit=20.0)
    assert 0.0 < solution.details["dynamic_range_coupling"] < 0.015
    assert any("below its control noise" in note for note in solution.notes)


@settings(max_examples=20, deadline=None)
@given(encoding=st.sampled_from(["domain-wall", "one-hot"]), seed=st.integers(0, 1000), data=st.data())
def test_bits_of_an_assignment_decode_to_it(encoding, seed, data):
    problem = random_problem("dense", groups=4, choices=4, seed=seed)
    assignment = np.array(data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4)))
    kind = encodings.get(encoding)()
    decoded = kind.decode(problem, bits_of_assignment(problem, kind, assignment)[None, :])
    assert decoded.assignments[0].tolist() == assignment.tolist() and decoded.invalid[0] == 0


def test_reverse_annealing_starts_from_the_classical_answer():
    recorder = Recorder()
    solver = Qpu(sampler=recorder, submissions=1, num_reads=7, cache=None, reverse_from="greedy", roof_duality=False)
    solution = solve(PROBLEM, solver, time_limit=20.0)
    embedded, parameters = recorder.asked[0]
    assert parameters["anneal_schedule"][0] == [0.0, 1.0] and parameters["anneal_schedule"][-1][1] == 1.0
    assert parameters["reinitialize_state"] is True and parameters["num_reads"] == 7
    assert "annealing_time" not in parameters
    state = parameters["initial_state"]
    assert set(state) == set(embedded.variables) and set(state.values()) <= {-1, 1}
    # Every chain agrees with itself.
    strength = solution.details["chain_strength"]
    chained = [(u, v) for (u, v), bias in embedded.quadratic.items() if np.isclose(bias, -strength, rtol=1e-9)]
    assert chained and all(state[u] == state[v] for u, v in chained)
    assert solution.energy <= solve(PROBLEM, "greedy").energy + 1e-9


def test_a_forward_schedule_and_times_reach_the_sampler():
    recorder = Recorder()
    schedule = ((0.0, 0.0), (10.0, 0.5), (30.0, 1.0))
    solve(PROBLEM, Qpu(sampler=recorder, submissions=1, cache=None, anneal_schedule=schedule), time_limit=20.0)
    assert recorder.asked[0][1]["anneal_schedule"] == [[0.0, 0.0], [10.0, 0.5], [30.0, 1.0]]
    solve(PROBLEM, Qpu(sampler=recorder, submissions=1, cache=None, annealing_time=55.0), time_limit=20.0)
    parameters = recorder.asked[1][1]
    assert parameters["annealing_time"] == 55.0 and parameters["answer_mode"] == "raw"
    assert "anneal_schedule" not in parameters and "initial_state" not in parameters


def test_roof_duality_takes_spins_off_the_chip():
    problem = random_problem("dense", groups=6, choices=5, seed=1, coupling=0.01)
    with_, without = Recorder(), Recorder()
    fixing = solve(problem, Qpu(sampler=with_, submissions=2, cache=None), time_limit=20.0)
    solve(problem, Qpu(sampler=without, submissions=2, cache=None, roof_duality=False), time_limit=20.0)
    assert fixing.details["bits_fixed_by_roof_duality"] > 0
    assert min((len(bqm) for bqm, _ in with_.asked), default=0) < min(len(bqm) for bqm, _ in without.asked)


@pytest.mark.parametrize(
    "options",
    [
        {"num_reads": 0},
        {"submissions": 0},
        {"chain_strength_factor": 0.0},
        {"annealing_time": 5.0, "anneal_schedule": ((0.0, 0.0), (5.0, 1.0))},
        {"anneal_schedule": ((0.0, 1.0), (5.0, 1.0))},
        {"anneal_schedule": ((0.0, 0.0), (0.0, 1.0))},
        {"anneal_schedule": ((0.0, 0.0), (5.0, 1.0)), "reverse_from": "greedy"},
        {"sampler": object(), "endpoint": "http://127.0.0.1/"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(e.InvalidSolverOption):
        Qpu(**options)


def test_the_old_name_of_the_preview_warns():
    with pytest.warns(DeprecationWarning, match="QpuPreview"):
        assert qpu.Preview is qpu.QpuPreview
    with pytest.raises(AttributeError, match="'Preview2'"):
        qpu.Preview2  # noqa: B018


def test_an_unstructured_sampler_is_refused():
    with pytest.raises(e.InvalidSolverOption, match="ExactSolver"):
        solve(PROBLEM, Qpu(sampler=dimod.ExactSolver()), time_limit=5.0)


def test_the_work_limit_counts_submissions(chip):
    assert solve(PROBLEM, Qpu(sampler=chip, cache=None), time_limit=20.0, work_limit=1).work <= 1


def test_prices_of_the_local_model_are_where_the_budget_is_met():
    problem = random_problem("separable", groups=8, choices=6, seed=0)
    model = local_model(problem, np.zeros(8, dtype=np.int64))
    picks = np.argmin(model.charged, axis=1)
    assert problem.is_feasible(picks) and (model.prices > 0).all()
    cheaper = np.argmin(model.changes + 0.98 * model.prices[0] * problem.costs.reshape(8, 6), axis=1)
    assert problem.totals(cheaper)[0] >= problem.totals(picks)[0]
