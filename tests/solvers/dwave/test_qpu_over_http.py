"""The annealer asked over HTTP, by Ocean's own client, against the loopback server."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from qubo_compress import errors as e
from qubo_compress import solve
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers.dwave.qpu import Qpu
from qubo_compress.testing.loopback_leap import Chip, LoopbackLeap

PROBLEM = random_problem("dense", groups=6, choices=5, seed=1)


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
