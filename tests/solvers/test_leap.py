"""Leap's hybrid solvers with the real Ocean client, over HTTP, against the loopback server."""

from __future__ import annotations

import _thread
import re
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loopback_leap import LoopbackLeap
from qubo_compress import ChoiceProblem, solve
from qubo_compress import errors as e
from qubo_compress.solvers import leap, make_solver
from qubo_compress.solvers.dwave_connection import Connection
from qubo_compress.testing import solvers as conformance

NAMES = ("leap-cqm", "leap-nonlinear", "leap-dqm", "leap-bqm")
# Ocean's DQM sampler refuses less than 5 s whatever the service says; the loopback server ends early.
LIMITS = {"leap-cqm": 4.0, "leap-nonlinear": 4.0, "leap-dqm": 8.0, "leap-bqm": 4.0}
PROBLEM = ChoiceProblem.random(kind="low-rank", groups=8, choices=5, seed=0)


@pytest.fixture(scope="module")
def server():
    with LoopbackLeap(chips=(), eager=True) as running, running.environment():
        for name in NAMES:  # what is compiled or imported once
            solve(PROBLEM, name, time_limit=120.0, reserve=0.2, **running.client_options)
        yield running


@pytest.fixture(autouse=True)
def no_faults(server):
    server.faults.clear()
    yield
    server.faults.clear()


def options(server, **more):
    return {"reserve": 0.3, "endpoint": server.endpoint, "token": server.token, **more}


def at(server, **more):
    return Connection(endpoint=server.endpoint, **{"token": server.token, **more})


def sockets():
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.append(target)
    return set(found)


@contextmanager
def nothing_left_behind(seconds=3.0):
    threads, handles = set(running_threads()), sockets()
    yield
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and (set(running_threads()) - threads or sockets() - handles):
        time.sleep(0.02)
    assert not set(running_threads()) - threads
    assert not sockets() - handles


def running_threads():
    """All but the server's own, which it starts when it needs them."""
    return [thread for thread in threading.enumerate() if not thread.name.startswith("loopback-leap")]


def kinds(server, since):
    return [request.kind for request in server.requests[since:]]


@pytest.mark.parametrize("name", NAMES)
def test_every_solver_end_to_end(server, name):
    with nothing_left_behind():
        solution = solve(PROBLEM, name, time_limit=LIMITS[name], **options(server))
    assert PROBLEM.is_feasible(solution.assignment)
    assert solution.energy == pytest.approx(PROBLEM.energy(solution.assignment), rel=1e-12)
    assert solution.energy <= 1.05 * solve(PROBLEM, "greedy").energy
    assert solution.work == 1
    details, timing = solution.details, solution.timing
    assert details["simulated"] and any("no D-Wave machine" in note for note in solution.notes)
    assert details["service_solver"].startswith("loopback_hybrid")
    assert len(details["problem_ids"]) == 1 and details["label"] == "qubo_compress"
    for stage in ("connect", "build", "upload", "queue", "network", "run", "decode"):
        assert timing[stage] >= 0.0
    assert 0.05 < timing["run_time"] < 5.0  # seconds, not microseconds
    assert {"qpu_access_time", "charge_time"} <= set(timing)
    assert details["quota_seconds"] == pytest.approx(timing["charge_time"] / 20)
    assert timing["connect"] + timing["upload"] + timing["run"] <= timing["total"]


def test_the_service_gets_what_the_time_limit_leaves(server):
    solution = solve(PROBLEM, "leap-cqm", time_limit=3.0, **options(server, reserve=1.0))
    asked = solution.details["submissions"][0]["seconds_asked"]
    assert 1.0 < asked <= 2.0
    fixed = solve(PROBLEM, "leap-cqm", time_limit=3.0, **options(server, service_seconds=0.5))
    assert fixed.details["submissions"][0]["seconds_asked"] == 0.5


def test_a_time_limit_below_the_minimum_is_refused_before_anything_is_sent():
    with LoopbackLeap(chips=(), documented_times=True) as slow, slow.environment():
        for name in NAMES:
            with pytest.raises(e.TimeLimitTooShort, match=r"at least.*time_limit=2 s.*of quota") as raised:
                solve(PROBLEM, name, time_limit=2.0, **options(slow))
            least = 3.0 if name == "leap-bqm" else 5.0
            assert least < raised.value.minimum < least + 2.0
        with pytest.raises(e.TimeLimitTooShort, match="service_seconds=1,"):
            solve(PROBLEM, "leap-cqm", time_limit=20.0, **options(slow, service_seconds=1.0))
        assert set(kinds(slow, 0)) == {"list"}


@pytest.mark.parametrize("name", NAMES)
def test_preview_and_dry_run_send_nothing(server, name):
    before = len(server.requests)
    with nothing_left_behind():
        seen = leap.preview(PROBLEM, name, time_limit=LIMITS[name], **options(server))
        with pytest.raises(e.DryRun, match="nothing was submitted") as raised:
            solve(PROBLEM, name, time_limit=LIMITS[name], dry_run=True, **options(server))
    assert set(kinds(server, before)) == {"list"}
    assert raised.value.preview.bytes_to_upload == seen.bytes_to_upload > 1000
    assert seen.simulated and seen.solver == name and seen.service_solver.startswith("loopback_hybrid")
    assert seen.variables == {"leap-cqm": 40, "leap-nonlinear": 8, "leap-dqm": 8, "leap-bqm": 32}[name]
    assert seen.minimum_seconds == pytest.approx(5.0 if name == "leap-dqm" else 0.2, abs=0.05)
    assert seen.minimum_seconds < seen.charged_seconds < LIMITS[name]
    assert seen.quota_seconds == pytest.approx(seen.charged_seconds / 20)
    short = leap.preview(PROBLEM, name, time_limit=0.1, **options(server))
    assert short.charged_seconds == seen.minimum_seconds
    assert 0.3 < short.shortest_time_limit - seen.minimum_seconds < 2.0


def test_preview_is_for_leap_only():
    with pytest.raises(e.InvalidSolverOption, match="Leap's solvers only"):
        leap.preview(PROBLEM, "greedy")


def test_what_was_uploaded_is_what_was_announced(server):
    solution = solve(PROBLEM, "leap-bqm", time_limit=4.0, **options(server))
    announced = leap.preview(PROBLEM, "leap-bqm", **options(server))
    assert solution.details["submissions"][0]["bytes_uploaded"] == announced.bytes_to_upload


def test_infeasible_samples_of_least_energy_are_not_the_answer():
    with LoopbackLeap(chips=(), eager=True, infeasible_first=True) as sly, sly.environment():
        solution = solve(PROBLEM, "leap-cqm", time_limit=4.0, **options(sly))
    assert 0 < solution.details["feasible_share"] < 1
    assert PROBLEM.is_feasible(solution.assignment)
    assert any("over budget" in note or "within every budget" in note for note in solution.notes)


def test_models_beyond_the_service_are_refused_with_both_numbers(server, monkeypatch):
    record = server._solvers["loopback_hybrid_cqm"].record
    monkeypatch.setitem(record["properties"], "maximum_number_of_variables", 39)
    before = len(server.requests)
    with pytest.raises(e.ProblemTooLarge, match=r"40 variables.*at most 39.*annealer"):
        solve(PROBLEM, "leap-cqm", time_limit=4.0, **options(server))
    assert set(kinds(server, before)) == {"list"}


def test_more_submissions_move_the_prices_and_are_counted(server):
    problem = ChoiceProblem.random(kind="dense", groups=8, choices=5, seed=3)
    solution = solve(problem, "leap-bqm", time_limit=6.0, **options(server, submissions=3))
    prices = [job["prices"][0] for job in solution.details["submissions"]]
    assert solution.work == len(prices) == 3 and len(set(prices)) > 1
    assert solution.timing["run_time"] > 0.25
    limited = solve(problem, "leap-bqm", time_limit=6.0, work_limit=2, **options(server, submissions=3))
    assert limited.work == 2


def test_a_later_failure_keeps_what_came_before(server):
    done = threading.Event()

    def fail_the_second():
        while sum(request.kind == "submit" for request in server.requests) == before:
            time.sleep(0.005)
        server.faults.next("submit", status=500)
        done.set()

    before = sum(request.kind == "submit" for request in server.requests)
    threading.Thread(target=fail_the_second).start()
    solution = solve(PROBLEM, "leap-bqm", time_limit=6.0, **options(server, submissions=2))
    done.wait(2.0)
    assert solution.work == 1
    assert any("further submission failed" in note and "HTTP 500" in note for note in solution.notes)


FAULTS = [
    ("list", {"status": 401}, e.InvalidToken, "token"),
    ("list", {"status": 403}, e.RequestRejected, "403"),
    ("list", {"status": 404}, e.SolverUnavailable, "404"),
    ("list", {"status": 429}, e.QuotaExceeded, "429"),
    ("list", {"status": 500}, e.ServiceFailed, "500"),
    ("list", {"status": 503}, e.ServiceFailed, "503"),
    ("list", {"drop": True, "times": 9}, e.ServiceFailed, "connection broke"),
    ("submit", {"status": 400}, e.RequestRejected, "400"),
    ("submit", {"status": 401}, e.InvalidToken, "token"),
    ("submit", {"status": 404}, e.SolverUnavailable, "404"),
    ("submit", {"status": 429}, e.QuotaExceeded, "429"),
    ("submit", {"status": 500}, e.ServiceFailed, "500"),
    ("submit", {"status": 503}, e.ServiceFailed, "503"),
    ("submit", {"drop": True}, e.ServiceFailed, "connection broke"),
    ("submit", {"item_error": (400, "Invalid parameter: time_limit")}, e.RequestRejected, "Invalid parameter"),
    ("submit", {"delay": 3.0}, e.RemoteTimeout, "time limit"),
    ("poll", {"status": 401}, e.InvalidToken, "token"),
    ("poll", {"status": 429}, e.QuotaExceeded, "429"),
    ("load", {"status": 500, "times": 9}, e.ServiceFailed, "500"),
    ("load", {"drop": True, "times": 9}, e.ServiceFailed, "connection broke"),
    ("load", {"status": 404}, e.SolverUnavailable, "404"),
    ("solve", {"message": "Internal solver failure"}, e.ServiceFailed, "Internal solver failure"),
    ("solve", {"message": "Invalid problem data"}, e.RequestRejected, "Invalid problem data"),
    ("solve", {"delay": 20.0}, e.RemoteTimeout, "asked to cancel it"),
]


@pytest.mark.parametrize(
    ("kind", "fault", "expected", "words"),
    FAULTS,
    ids=[f"{kind}-{'-'.join(map(str, fault.values()))}" for kind, fault, _, _ in FAULTS],
)
def test_each_fault_has_its_exception(server, kind, fault, expected, words):
    server.faults.next(kind, **fault)
    start = time.perf_counter()
    with nothing_left_behind():
        with pytest.raises(expected, match=words) as raised:
            solve(PROBLEM, "leap-cqm", time_limit=1.5, **options(server))
        assert time.perf_counter() - start < 1.5 + 0.8
    assert type(raised.value) is expected
    assert "leap-cqm" in str(raised.value) or "LeapHybridCQMSampler" in str(raised.value)
    assert server.endpoint in str(raised.value) and server.token not in str(raised.value)
    if expected is not e.RemoteTimeout:
        assert raised.value.__cause__ is not None


def test_quota_words_are_recognised(server):
    server.faults.quota_exceeded()
    with nothing_left_behind(), pytest.raises(e.QuotaExceeded, match="insufficient remaining"):
        solve(PROBLEM, "leap-cqm", time_limit=2.0, **options(server))


def test_a_failing_upload_is_met_within_ten_seconds(server):
    server.faults.next("upload", status=503, times=3)  # the client tries three times, 2 s and 4 s apart
    start = time.perf_counter()
    with nothing_left_behind(), pytest.raises(e.ServiceFailed, match=r"uploading the problem failed.*503"):
        solve(PROBLEM, "leap-cqm", time_limit=9.0, **options(server))
    assert 5.0 < time.perf_counter() - start < 10.0


@pytest.mark.parametrize("fault", [{"status": 404}, {"drop": True}], ids=str)
def test_an_answer_that_cannot_be_downloaded(server, fault):
    server.faults.next("download", times=9, **fault)
    with nothing_left_behind(), pytest.raises(e.RemoteSolverError) as raised:
        solve(PROBLEM, "leap-nonlinear", time_limit=3.0, **options(server))
    assert isinstance(raised.value, (e.ServiceFailed, e.SolverUnavailable))


def test_passing_trouble_while_polling_is_survived(server):
    server.faults.next("poll", status=503)
    server.faults.next("poll", drop=True)
    server.faults.next("load", status=500)
    server.faults.next("load", drop=True)
    with nothing_left_behind():
        assert solve(PROBLEM, "leap-cqm", time_limit=4.0, **options(server)).work == 1


def test_a_problem_that_takes_too_long_is_cancelled_at_the_service(server):
    server.faults.next("solve", delay=20.0)
    before = len(server.requests)
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout, match="problem [0-9a-f-]{36}"):
        solve(PROBLEM, "leap-cqm", time_limit=1.0, **options(server))
    assert "cancel" in kinds(server, before)


def test_cancelled_by_somebody_else(server):
    server.faults.next("solve", delay=20.0)

    def cancel_it():
        from dwave.cloud import Client

        with Client(**server.client_options) as client:
            while not (polls := [r.path for r in server.requests[before:] if r.kind == "poll"]):
                time.sleep(0.02)
            client._cancel(re.search(r"id=([0-9a-f-]+)", polls[0])[1], None)

    before = len(server.requests)
    thread = threading.Thread(target=cancel_it)
    with nothing_left_behind():
        thread.start()
        with pytest.raises(e.RemoteCancelled, match="cancelled before it was solved"):
            solve(PROBLEM, "leap-cqm", time_limit=5.0, **options(server))
        thread.join()


def test_nobody_listens():
    start = time.perf_counter()
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout, match="connection refused"):
        solve(PROBLEM, "leap-cqm", time_limit=9.0, endpoint="http://127.0.0.1:9/sapi/v2/", token="t", reserve=0.3)
    assert time.perf_counter() - start < 5.0


def test_tokens_and_names(server, monkeypatch):
    with nothing_left_behind(), pytest.raises(e.InvalidToken) as raised:
        solve(PROBLEM, "leap-cqm", time_limit=4.0, endpoint=server.endpoint, token="not-the-token")
    assert "not-the-token" not in str(raised.value)
    with nothing_left_behind(), pytest.raises(e.SolverUnavailable, match="no_such_solver"):
        solve(PROBLEM, "leap-cqm", time_limit=4.0, **options(server, service_solver="no_such_solver"))
    with nothing_left_behind(), pytest.raises(e.SolverUnavailable, match="wrong kind"):
        solve(PROBLEM, "leap-cqm", time_limit=4.0, **options(server, service_solver="loopback_hybrid_bqm"))
    monkeypatch.delenv("DWAVE_API_TOKEN")
    with nothing_left_behind(), pytest.raises(e.MissingToken, match="DWAVE_API_TOKEN"):
        solve(PROBLEM, "leap-cqm", time_limit=4.0, endpoint=server.endpoint)


def test_configuration_files(server, tmp_path, monkeypatch):
    for name in ("DWAVE_API_TOKEN", "DWAVE_API_ENDPOINT"):
        monkeypatch.delenv(name)
    path = tmp_path / "dwave.conf"
    path.write_text(f"[here]\nendpoint = {server.endpoint}\ntoken = {server.token}\n")
    found = Connection(config_file=str(path), profile="here")
    assert solve(PROBLEM, "leap-cqm", time_limit=4.0, connection=found, reserve=0.3).work == 1
    with pytest.raises(e.RequestRejected, match="'there' not found"):
        solve(PROBLEM, "leap-cqm", connection=Connection(config_file=str(path), profile="there"))
    path.write_text("no sections here")
    with pytest.raises(e.RequestRejected, match="configuration file"):
        solve(PROBLEM, "leap-cqm", connection=Connection(config_file=str(path)))
    with pytest.raises(e.RequestRejected, match="configuration file"):
        solve(PROBLEM, "leap-cqm", connection=Connection(config_file=str(tmp_path / "missing.conf")))


def test_the_token_is_not_shown(server):
    assert "secret" not in repr(make_solver("leap-cqm", token="secret", endpoint="https://x"))
    assert "secret" not in repr(Connection(token="secret", proxy="http://user:secret@proxy"))


@pytest.mark.parametrize(
    "given",
    [{"reserve": -1.0}, {"service_seconds": 0.0}, {"connection": Connection(), "token": "t"}],
    ids=str,
)
def test_options_out_of_range(given):
    with pytest.raises(e.InvalidSolverOption):
        make_solver("leap-cqm", **given)


def test_more_options_out_of_range(server):
    with pytest.raises(e.InvalidSolverOption, match="submissions"):
        make_solver("leap-dqm", submissions=0)
    with pytest.raises(e.UnknownName):
        make_solver("leap-bqm", encoding="two-hot")
    with pytest.raises(e.InvalidSolverOption, match="time-?out|request_timeout"):
        Connection(request_timeout=0.0)
    with pytest.raises(e.InvalidSolverOption, match="retries"):
        Connection(retries=-1)
    with pytest.raises(e.InvalidSolverOption, match="raise the time limit"):
        solve(PROBLEM, "leap-cqm", time_limit=2.0, **options(server, service_seconds=1.9))


def test_one_choice_everywhere_is_answered_without_sending(server):
    forced = ChoiceProblem.random(kind="low-rank", groups=3, choices=1, seed=0)
    before = len(server.requests)
    solution = solve(forced, "leap-bqm", **options(server))
    assert not solution.assignment.any() and any("nothing was sent" in note for note in solution.notes)
    assert len(server.requests) == before


def test_interrupted_while_waiting(server):
    server.faults.next("solve", delay=20.0)
    before = len(server.requests)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.6, _thread.interrupt_main)
    start = time.perf_counter()
    try:
        with nothing_left_behind():
            timer.start()
            with pytest.raises(e.NoFeasibleFound, match="interrupted"):
                solve(PROBLEM, "leap-cqm", time_limit=20.0, **options(server))
            timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.perf_counter() - start < 3.0
    assert "cancel" in kinds(server, before)


def test_interrupted_after_a_first_answer(server):
    server.faults.next("poll", delay=0.0001)  # counted in order: the first poll is served at once
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = sum(request.kind == "load" for request in server.requests)
    ended = threading.Event()

    def interrupt_in_the_second():
        while sum(request.kind == "load" for request in server.requests) == before and not ended.is_set():
            time.sleep(0.005)
        server.faults.next("solve", delay=20.0)
        time.sleep(0.6)
        if not ended.is_set():
            _thread.interrupt_main()

    thread = threading.Thread(target=interrupt_in_the_second)
    try:
        thread.start()
        solution = solve(PROBLEM, "leap-bqm", time_limit=30.0, **options(server, submissions=2))
        ended.set()
        thread.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert solution.interrupted and solution.work == 1
    assert PROBLEM.is_feasible(solution.assignment)


# Their time limits are below what any service takes; both are tested above and below in another way.
OTHERWISE = {"interruption_returns_the_best", "time_limit_is_kept"}
CHECKS = [check for check in conformance.CHECKS if check.__name__ not in OTHERWISE]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance_of_the_default(server, check):
    check(make_solver("leap-cqm", **options(server)), 2.0)


@pytest.mark.parametrize("name", ["leap-nonlinear", "leap-bqm", "leap-dqm"])
@pytest.mark.parametrize(
    "check",
    [
        conformance.unreachable_budgets_are_refused,
        conformance.degenerate_shapes_are_solved,
        conformance.tight_budgets_are_met,
    ],
    ids=lambda check: check.__name__,
)
def test_conformance_of_the_others(server, name, check):
    check(make_solver(name, **options(server)), 7.0 if name == "leap-dqm" else 2.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["separable", "sparse", "dense"])
def test_every_structure(server, name, kind):
    problem = ChoiceProblem.random(kind=kind, groups=5, choices=4, seed=5, budgets=2)
    solution = solve(problem, name, time_limit=LIMITS[name], **options(server))
    assert problem.is_feasible(solution.assignment)
    assert np.isclose(solution.energy, problem.energy(solution.assignment))


def test_the_time_limit_is_kept_by_large_problems(server):
    problem = ChoiceProblem.random(kind="low-rank", groups=60, choices=12, seed=1)
    server.faults.next("solve", delay=20.0)
    start = time.perf_counter()
    with nothing_left_behind():
        with pytest.raises(e.RemoteTimeout):
            solve(problem, "leap-cqm", time_limit=2.0, **options(server))
        assert time.perf_counter() - start < 2.5
    separable = ChoiceProblem.random(kind="separable", groups=200, choices=12, seed=1)
    start = time.perf_counter()
    assert solve(separable, "leap-cqm", time_limit=6.0, **options(server)).work == 1
    assert time.perf_counter() - start < 6.5
