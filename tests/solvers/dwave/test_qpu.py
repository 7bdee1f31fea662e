"""The annealer asked directly: size gate, embeddings, chains and ranges on Ocean's mock, and HTTP to the loopback."""

from __future__ import annotations

import json
import signal
import threading
import time
from types import SimpleNamespace

import dimod
import dwave.graphs
import numpy as np
import pytest
from dwave.system.testing import MockDWaveSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress import errors as e
from qubo_compress._internal.checked_json import with_checksum
from qubo_compress.encodings.encoding import encodings
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.dwave import minor_embedding, qpu, qpu_device, qpu_fit
from qubo_compress.solvers.dwave.minor_embedding import find_minor
from qubo_compress.solvers.dwave.qpu import Qpu
from qubo_compress.solvers.dwave.qpu_device import Device
from qubo_compress.solvers.dwave.qpu_embedding import EmbeddingCache, joins, may_fit, qubits_needed
from qubo_compress.solvers.dwave.qpu_sampling import (
    automatic_scale,
    bits_of_assignment,
    chain_strength,
    dynamic_range,
    owners,
)
from qubo_compress.solvers.local_search.local_model import local_model
from qubo_compress.testing import solvers as conformance
from qubo_compress.testing.loopback_leap import Chip, LoopbackLeap

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


@pytest.fixture(scope="module")
def chip():
    return MockDWaveSampler(topology_type="zephyr", topology_shape=[3, 4], parameter_warnings=False)


@pytest.fixture(scope="module")
def large_chip():
    return MockDWaveSampler(topology_type="zephyr", topology_shape=[12, 4], parameter_warnings=False)


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


# --- what does not fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, groups, choices", [("dense", 20, 16), ("low-rank", 20, 16), ("dense", 100, 16)])
def test_what_does_not_fit_is_refused_before_anything_that_takes_long(large_chip, kind, groups, choices, monkeypatch):
    built = []
    build = qpu_fit.build_bqm
    monkeypatch.setattr(qpu_fit, "build_bqm", lambda *args, **more: built.append(args) or build(*args, **more))
    monkeypatch.setattr(qpu_fit, "find_minor", lambda *_: pytest.fail("an embedding was searched"))
    problem = random_problem(kind, groups=groups, choices=choices, seed=0)
    with pytest.raises(e.ProblemTooLarge) as refusal:
        solve(problem, Qpu(sampler=large_chip, cache=None), time_limit=250.0)
    assert len(built) <= (2 if groups == 20 else 0), "the model of a large problem takes seconds to build"
    text = str(refusal.value)
    assert str(groups * (choices - 1)) in text and "184" in text
    assert all(word in text for word in ("qpu-decomposition", "leap-cqm", "annealer"))


def test_the_gate_counts_what_is_left_after_reduction(chip):
    # Two copies of one choice in each group: half of the bits go before the gate is asked.
    small = random_problem("low-rank", groups=6, choices=6, seed=3)
    twice = np.repeat(np.arange(small.num_choices), 2)
    doubled = ChoiceProblem(
        small.linear[twice], 2 * small.group_offsets, small.costs[:, twice], small.limits, factor=small.factor[twice]
    )
    most = Device(chip, cache=None).largest_clique
    assert 6 * 5 <= most < 6 * 11
    solution = solve(doubled, Qpu(sampler=chip, submissions=1, cache=None), time_limit=20.0)
    assert solution.details["bits"] <= 30
    assert doubled.is_feasible(solution.assignment)


def test_few_couplings_need_no_clique(chip):
    problem = random_problem("sparse", groups=24, choices=3, seed=0, neighbours=1)
    solver = Qpu(sampler=chip, submissions=1, num_reads=10, cache=None, roof_duality=False)
    assert Device(chip, cache=None).largest_clique < 48
    solution = solve(problem, solver, time_limit=20.0)
    assert problem.is_feasible(solution.assignment)
    assert solution.details["bits"] > solution.details["largest_clique"]
    assert solution.details["submissions"] == 1


def test_a_search_for_an_embedding_ends_on_time(monkeypatch):
    graph = dwave.graphs.zephyr_graph(6, 4)
    couplings = [(u, v) for u in range(100) for v in range(u)]  # above the largest clique: there is nothing to find
    readings = iter(range(0, 100_000, 100))  # a clock that goes on by 100 s whenever it is read
    monkeypatch.setattr(minor_embedding, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    assert find_minor(couplings, 100, list(graph.edges), 0, 250.0, lambda: False) is None
    assert next(readings) == 400, "it was read after 250 s"
    asked = iter([False, False, True])
    assert find_minor(couplings, 100, list(graph.edges), 0, 250_000.0, lambda: next(asked)) is None
    assert list(asked) == []


def test_counting_qubits_is_a_lower_bound(chip):
    graph = Device(chip, cache=None).graph
    most = max(degree for _, degree in graph.degree)
    for size in (3, 10, 30):
        chains = Device(chip, cache=None).clique(size)
        assert qubits_needed(np.full(size, size - 1), most) <= sum(map(len, chains))
    assert not may_fit(graph, np.full(60, 59))
    assert may_fit(graph, np.full(60, 4))


# --- embeddings, remembered --------------------------------------------------------------------------


def test_an_embedding_is_searched_once_for_each_graph_id(tmp_path, monkeypatch):
    searches = []
    original = qpu_device.Cliques.chains
    monkeypatch.setattr(qpu_device.Cliques, "chains", lambda self, size: searches.append(size) or original(self, size))

    def embed(graph_id):
        mock = MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4], properties={"chip_id": graph_id})
        return Device(mock, str(tmp_path)).clique(12)

    first = embed("Advantage2_system1;graph_id=01")
    assert searches == [12]
    assert embed("Advantage2_system1;graph_id=01") == first
    assert searches == [12], "found on disk"
    embed("Advantage2_system1;graph_id=02")
    assert searches == [12, 12], "another graph id does not use it"
    assert len(list(tmp_path.iterdir())) == 2
    assert Device(MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4]), None).clique(12)
    assert len(list(tmp_path.iterdir())) == 2, "cache=None keeps nothing"


def test_a_kept_embedding_that_does_not_fit_the_graph_is_not_used(tmp_path):
    mock = MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4])
    device = Device(mock, str(tmp_path))
    chains = device.clique(6)
    assert joins(device.graph, chains, None)
    path = device.store.path
    whole = path.read_bytes()
    content = json.loads(whole)
    del content["checksum"]
    for known in (10**6, -1, True, "many"):
        path.write_bytes(with_checksum({**content, "entries": {"largest-clique": known}}))
        assert Device(mock, str(tmp_path)).largest_clique == device.largest_clique
    for damaged in (
        with_checksum({**content, "entries": {"clique-6": [[q] for q in range(6)]}}),
        whole.replace(b"1", b"2", 1),
        json.dumps(content).encode(),  # as version 0.4 wrote
        with_checksum({**content, "entries": []}),
        b"[]",
        b"{ torn",
    ):
        path.write_bytes(damaged)
        again = Device(mock, str(tmp_path))
        assert again.clique(6) == chains and again.searches == 1
    assert json.loads(path.read_bytes())["entries"]["clique-6"] == chains


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    EmbeddingCache(str(blocked / "sub"), "graph").put("clique-1", [[0]])
    assert "not kept" in caplog.text


# --- chains and ranges -------------------------------------------------------------------------------


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


# --- parameters --------------------------------------------------------------------------------------


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


# --- over HTTP ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with LoopbackLeap(chips=[Chip("zephyr", 3), Chip("pegasus", 3)]) as running, running.environment():
        yield running


@pytest.fixture
def remote(server):
    server.faults.clear()
    yield lambda **more: Qpu(**{"submissions": 2, "num_reads": 20, "cache": None, **server.client_options, **more})
    server.faults.clear()


@pytest.mark.parametrize("chip_name", ["loopback_zephyr3", "loopback_pegasus3"])
def test_end_to_end_over_http(server, remote, chip_name, nothing_left_behind):
    before = len(server.requests)
    with nothing_left_behind():
        solution = solve(PROBLEM, remote(service_solver=chip_name), time_limit=20.0)
    assert PROBLEM.is_feasible(solution.assignment)
    details = solution.details
    assert details["simulated"] is True and details["graph"].startswith(f"{chip_name};graph_id=")
    assert any("no D-Wave machine was involved" in note for note in solution.notes)
    assert sum(request.kind == "submit" for request in server.requests[before:]) == details["submissions"] >= 1
    assert details["qpu_access_seconds"] > 0
    assert solution.timing["programming"] > 0 and solution.timing["anneal"] > 0 and solution.timing["readout"] > 0


def test_reverse_annealing_over_http(remote):
    solution = solve(PROBLEM, remote(reverse_from="greedy", roof_duality=False, submissions=1), time_limit=20.0)
    assert solution.work == 1 and solution.details["samples"] == 20


def test_a_preview_submits_nothing(server, remote, nothing_left_behind):
    before = len(server.requests)
    with nothing_left_behind():
        preview = remote().preview(PROBLEM)
    with pytest.raises(e.DryRun, match="nothing was submitted") as dry:
        solve(PROBLEM, remote(dry_run=True), time_limit=20.0)
    assert dry.value.preview == preview
    assert not [request for request in server.requests[before:] if request.kind == "submit"]
    assert preview.bits <= preview.largest_clique and preview.qubits >= preview.bits and preview.simulated
    assert preview.seconds == pytest.approx(2 * preview.seconds_per_submission) and preview.seconds > 0.05
    assert "2 submissions" in str(preview)


def test_a_submission_longer_than_the_chip_allows_is_refused(server, remote):
    before = len(server.requests)
    with pytest.raises(e.InvalidSolverOption, match="at most [0-9]+ reads") as refusal:
        solve(PROBLEM, remote(num_reads=9000, annealing_time=200.0, roof_duality=False), time_limit=20.0)
    assert not [request for request in server.requests[before:] if request.kind == "submit"]
    most = int(str(refusal.value).split("at most ")[1].split()[0])
    assert 100 < most < 9000
    remote(num_reads=most, annealing_time=200.0).preview(PROBLEM)
    with pytest.raises(e.InvalidSolverOption, match="at most"):
        remote(num_reads=most + 50, annealing_time=200.0).preview(PROBLEM)
    with pytest.raises(e.InvalidSolverOption, match="num_reads must be from 1 to 10000"):
        remote(num_reads=20_000, annealing_time=1.0).preview(PROBLEM)


@pytest.mark.parametrize(
    "fault, expected",
    [
        ({"kind": "submit", "status": 401}, e.InvalidToken),
        ({"kind": "submit", "status": 400}, e.RequestRejected),
        ({"kind": "submit", "status": 429}, e.QuotaExceeded),
        ({"kind": "submit", "status": 500}, e.ServiceFailed),
        ({"kind": "submit", "status": 503}, e.ServiceFailed),
        ({"kind": "submit", "drop": True}, e.ServiceFailed),
        ({"kind": "solve", "message": "the chip warmed up"}, e.ServiceFailed),
        ({"kind": "solve", "delay": 3600.0}, e.RemoteTimeout),
    ],
    ids=lambda value: str(value),
)
def test_each_fault_has_its_own_exception(server, remote, fault, expected, nothing_left_behind):
    server.faults.next(**fault)
    # Only what waits for the time limit depends on it; nothing else may, however slow the machine is.
    limit = 2.0 if expected is e.RemoteTimeout else 250.0
    with nothing_left_behind(), pytest.raises(expected):
        solve(PROBLEM, remote(roof_duality=False), time_limit=limit)
    assert server.token not in repr(remote())


def test_a_fault_after_the_first_submission_keeps_what_came_back(server, remote):
    solver = remote(roof_duality=False, submissions=3)
    solve(PROBLEM, solver, time_limit=20.0, work_limit=1)
    server.faults.next("load", status=500, times=20)
    taken = server.faults.take  # the first answer is let through
    calls = []
    server.faults.take = lambda kind: (
        None if kind == "load" and not calls.append(kind) and len(calls) == 1 else taken(kind)
    )
    try:
        solution = solve(PROBLEM, solver, time_limit=20.0)
    finally:
        server.faults.take = taken
    assert solution.work == 1 and PROBLEM.is_feasible(solution.assignment)
    assert any("stopped early, after 1 submissions: ServiceFailed" in note for note in solution.notes)


def test_no_token_no_such_chip_and_no_server(server, remote, monkeypatch, nothing_left_behind):
    with nothing_left_behind(), pytest.raises(e.InvalidToken):
        solve(PROBLEM, remote(token="wrong"), time_limit=10.0)
    with nothing_left_behind(), pytest.raises(e.SolverUnavailable):
        solve(PROBLEM, remote(service_solver="Advantage9"), time_limit=10.0)
    monkeypatch.delenv("DWAVE_API_TOKEN")
    with pytest.raises(e.MissingToken):
        solve(PROBLEM, Qpu(), time_limit=10.0)


def test_ctrl_c_cancels_the_problem_and_returns_what_there_is(server, remote, nothing_left_behind):
    server.faults.next("solve", delay=3600.0)
    before = len(server.requests)

    def press_when_submitted():
        while "submit" not in [request.kind for request in server.requests[before:]]:
            time.sleep(0.01)
        time.sleep(0.2)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=press_when_submitted, daemon=True)
    with nothing_left_behind():
        thread.start()
        solution = solve(PROBLEM, remote(roof_duality=False), time_limit=3600.0)
        thread.join()
    assert solution.interrupted and PROBLEM.is_feasible(solution.assignment)
    assert "cancel" in [request.kind for request in server.requests[before:]]
