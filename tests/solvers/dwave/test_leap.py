"""Leap's hybrid solvers with the real Ocean client, over HTTP, against the loopback server."""

from __future__ import annotations

import itertools
import re
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from qubo_compress import ChoiceProblem, solve
from qubo_compress import errors as e
from qubo_compress.solvers import make_solver
from qubo_compress.solvers.dwave import leap
from qubo_compress.solvers.dwave import waiting as dwave_waiting
from qubo_compress.solvers.dwave.connection import Connection
from qubo_compress.testing import solvers as conformance
from qubo_compress.testing.loopback_leap import LoopbackLeap
from qubo_compress.testing.loopback_leap.faults import Fault

NAMES = WARMED_UP = ("leap-cqm", "leap-nonlinear", "leap-dqm", "leap-bqm")
CHIPS = ()
# The loopback server ends early, whatever the limit: enough for any machine, however busy.
ENOUGH = 60.0
NO_TEST_TAKES_SO_LONG = 3600.0
PROBLEM = ChoiceProblem.random(kind="low-rank", groups=8, choices=5, seed=0)

pytestmark = pytest.mark.usefixtures("no_faults")


def options(server, **more):
    return {"reserve": 0.3, "endpoint": server.endpoint, "token": server.token, **more}


def at(server, **more):
    return Connection(endpoint=server.endpoint, **{"token": server.token, **more})


def kinds(server, since):
    return [request.kind for request in server.requests[since:]]


@pytest.mark.parametrize("name", NAMES)
def test_budgets_with_pair_costs(server, name):
    """As quadratic constraints, as tables, or as couplings at a price; what comes back is within the true budgets."""
    for problem in (
        ChoiceProblem.random(kind="channels", groups=8, choices=4, seed=1, budgets=2),
        ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=2, pair_costs=0.8),
    ):
        solution = solve(problem, name, time_limit=ENOUGH, **options(server))
        assert problem.is_feasible(solution.assignment)
        assert solution.energy <= solve(problem, "greedy").energy + 0.2 * abs(solution.energy)
        if name in ("leap-cqm", "leap-nonlinear"):  # the others' samples are at a price, not within the budget
            assert solution.details["feasible_share"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_solver_end_to_end(server, name, nothing_left_behind):
    with nothing_left_behind():
        solution = solve(PROBLEM, name, time_limit=ENOUGH, **options(server))
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
    assert 0.05 < timing["run_time"] <= timing["total"]  # seconds, not microseconds
    assert {"qpu_access_time", "charge_time"} <= set(timing)
    assert details["quota_seconds"] == pytest.approx(timing["charge_time"] / 20)
    assert timing["connect"] + timing["upload"] + timing["run"] <= timing["total"]


def test_the_service_gets_what_the_time_limit_leaves(server):
    solution = solve(PROBLEM, "leap-cqm", time_limit=200.0, **options(server, reserve=70.0))
    asked = solution.details["submissions"][0]["seconds_asked"]
    assert 70.0 < asked <= 130.0
    fixed = solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server, service_seconds=0.5))
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
def test_preview_and_dry_run_send_nothing(server, name, nothing_left_behind):
    before = len(server.requests)
    with nothing_left_behind():
        seen = leap.preview(PROBLEM, name, time_limit=ENOUGH, **options(server))
        with pytest.raises(e.DryRun, match="nothing was submitted") as raised:
            solve(PROBLEM, name, time_limit=ENOUGH, dry_run=True, **options(server))
    assert set(kinds(server, before)) == {"list"}
    assert raised.value.preview.bytes_to_upload == seen.bytes_to_upload > 1000
    assert seen.simulated and seen.solver == name and seen.service_solver.startswith("loopback_hybrid")
    assert seen.variables == {"leap-cqm": 40, "leap-nonlinear": 8, "leap-dqm": 8, "leap-bqm": 32}[name]
    assert seen.minimum_seconds == pytest.approx(5.0 if name == "leap-dqm" else 0.2, abs=0.05)
    assert seen.minimum_seconds < seen.charged_seconds < ENOUGH
    assert seen.quota_seconds == pytest.approx(seen.charged_seconds / 20)
    short = leap.preview(PROBLEM, name, time_limit=0.1, **options(server))
    assert short.charged_seconds == seen.minimum_seconds
    assert 0.3 < short.shortest_time_limit - seen.minimum_seconds < ENOUGH


def test_preview_is_for_leap_only():
    with pytest.raises(e.InvalidSolverOption, match="Leap's solvers only"):
        leap.preview(PROBLEM, "greedy")


def test_what_was_uploaded_is_what_was_announced(server):
    solution = solve(PROBLEM, "leap-bqm", time_limit=ENOUGH, **options(server))
    announced = leap.preview(PROBLEM, "leap-bqm", **options(server))
    assert solution.details["submissions"][0]["bytes_uploaded"] == announced.bytes_to_upload


def test_infeasible_samples_of_least_energy_are_not_the_answer():
    with LoopbackLeap(chips=(), eager=True, infeasible_first=True) as sly, sly.environment():
        solution = solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(sly))
    assert 0 < solution.details["feasible_share"] < 1
    assert PROBLEM.is_feasible(solution.assignment)
    assert any("over budget" in note or "within every budget" in note for note in solution.notes)


def test_models_beyond_the_service_are_refused_with_both_numbers(server, monkeypatch):
    record = server._solvers["loopback_hybrid_cqm"].record
    monkeypatch.setitem(record["properties"], "maximum_number_of_variables", 39)
    before = len(server.requests)
    with pytest.raises(e.ProblemTooLarge, match=r"40 variables.*at most 39.*annealer"):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server))
    assert set(kinds(server, before)) == {"list"}


def test_more_submissions_move_the_prices_and_are_counted(server):
    problem = ChoiceProblem.random(kind="dense", groups=8, choices=5, seed=3)
    solution = solve(problem, "leap-bqm", time_limit=ENOUGH, **options(server, submissions=3))
    prices = [job["prices"][0] for job in solution.details["submissions"]]
    assert solution.work == len(prices) == 3 and len(set(prices)) > 1
    runs = [job["timing"]["run_time"] for job in solution.details["submissions"]]
    assert solution.timing["run_time"] == pytest.approx(sum(runs)) and min(runs) > 0
    limited = solve(problem, "leap-bqm", time_limit=ENOUGH, work_limit=2, **options(server, submissions=3))
    assert limited.work == 2


def fault_at(server, monkeypatch, kind, number, fault):
    """Inject a fault when so many have come before."""
    take, seen = server.faults.take, itertools.count()
    monkeypatch.setattr(
        server.faults, "take", lambda asked: fault if asked == kind and next(seen) == number else take(asked)
    )


def test_a_later_failure_keeps_what_came_before(server, monkeypatch):
    fault_at(server, monkeypatch, "submit", 1, Fault(status=500))
    solution = solve(PROBLEM, "leap-bqm", time_limit=ENOUGH, **options(server, submissions=2))
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
    ("list", {"delay": 3.2}, e.RemoteTimeout, "time limit"),
    ("submit", {"status": 400}, e.RequestRejected, "400"),
    ("submit", {"status": 401}, e.InvalidToken, "token"),
    ("submit", {"status": 404}, e.SolverUnavailable, "404"),
    ("submit", {"status": 429}, e.QuotaExceeded, "429"),
    ("submit", {"status": 500}, e.ServiceFailed, "500"),
    ("submit", {"status": 503}, e.ServiceFailed, "503"),
    ("submit", {"drop": True}, e.ServiceFailed, "connection broke"),
    ("submit", {"item_error": (400, "Invalid parameter: time_limit")}, e.RequestRejected, "Invalid parameter"),
    ("submit", {"delay": 3.2}, e.RemoteTimeout, "time limit"),
    ("poll", {"status": 401}, e.InvalidToken, "token"),
    ("load", {"status": 429, "times": 9}, e.QuotaExceeded, "429"),
    ("load", {"status": 500, "times": 9}, e.ServiceFailed, "500"),
    ("load", {"drop": True, "times": 9}, e.ServiceFailed, "connection broke"),
    ("load", {"status": 404}, e.SolverUnavailable, "404"),
    ("solve", {"message": "Internal solver failure"}, e.ServiceFailed, "Internal solver failure"),
    ("solve", {"message": "Invalid problem data"}, e.RequestRejected, "Invalid problem data"),
    ("solve", {"delay": NO_TEST_TAKES_SO_LONG}, e.RemoteTimeout, "asked to cancel it"),
]


@pytest.mark.parametrize(
    ("kind", "fault", "expected", "words"),
    FAULTS,
    ids=[f"{kind}-{'-'.join(map(str, fault.values()))}" for kind, fault, _, _ in FAULTS],
)
def test_each_fault_has_its_exception(server, late, kind, fault, expected, words, nothing_left_behind):
    server.faults.next(kind, **fault)
    if expected is e.RemoteTimeout:
        late(kind)
    with nothing_left_behind(), pytest.raises(expected, match=words) as raised:
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server))
    assert type(raised.value) is expected
    assert "leap-cqm" in str(raised.value) or "LeapHybridCQMSampler" in str(raised.value)
    assert server.endpoint in str(raised.value) and server.token not in str(raised.value)
    if expected is not e.RemoteTimeout:
        assert raised.value.__cause__ is not None


def test_quota_words_are_recognised(server, nothing_left_behind):
    server.faults.quota_exceeded()
    with nothing_left_behind(), pytest.raises(e.QuotaExceeded, match="insufficient remaining"):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server))


@pytest.mark.parametrize("fault", [{"status": 404}, {"drop": True}], ids=str)
def test_an_answer_that_cannot_be_downloaded(server, fault, nothing_left_behind):
    server.faults.next("download", times=9, **fault)
    with nothing_left_behind(), pytest.raises(e.RemoteSolverError) as raised:
        solve(PROBLEM, "leap-nonlinear", time_limit=ENOUGH, **options(server))
    assert isinstance(raised.value, (e.ServiceFailed, e.SolverUnavailable))


def test_passing_trouble_while_polling_is_survived(server, nothing_left_behind):
    server.faults.next("poll", status=503)
    server.faults.next("poll", drop=True)
    server.faults.next("load", status=429)
    server.faults.next("load", status=500)
    with nothing_left_behind():
        assert solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server)).work == 1


def test_a_problem_that_takes_too_long_is_cancelled_at_the_service(server, late, nothing_left_behind):
    server.faults.next("solve", delay=NO_TEST_TAKES_SO_LONG)
    late("solve")
    before = len(server.requests)
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout, match="problem [0-9a-f-]{36}"):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server))
    assert "cancel" in kinds(server, before)


def test_a_problem_that_is_given_up_is_cancelled_too(server, nothing_left_behind):
    server.faults.next("solve", delay=NO_TEST_TAKES_SO_LONG)
    server.faults.next("poll", status=401)
    before = len(server.requests)
    with nothing_left_behind(), pytest.raises(e.InvalidToken):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server))
    asked = kinds(server, before)
    assert asked[asked.index("poll") :] == ["poll", "cancel"]


def test_a_problem_that_was_asked_for_again_in_vain_is_cancelled_too(server, monkeypatch, nothing_left_behind):
    monkeypatch.setattr(dwave_waiting, "_PAUSES", (0.0,))
    server.faults.next("solve", delay=NO_TEST_TAKES_SO_LONG)
    for kind in ("poll", "load"):
        server.faults.next(kind, drop=True)
    before = len(server.requests)
    with nothing_left_behind(), pytest.raises(e.ServiceFailed, match="connection broke"):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server))
    asked = kinds(server, before)
    assert asked[asked.index("poll") :] == ["poll", "load", "cancel"]


def test_the_polling_time_out_is_its_own_limit(server, nothing_left_behind):
    server.faults.next("solve", delay=NO_TEST_TAKES_SO_LONG)
    before = len(server.requests)
    impatient = at(server, polling_timeout=0.2)
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout, match="polling time-out"):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, reserve=0.3, connection=impatient)
    assert "cancel" in kinds(server, before)


def test_cancelled_by_somebody_else(server, nothing_left_behind):
    server.faults.next("solve", delay=NO_TEST_TAKES_SO_LONG)

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
            solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server))
        thread.join()


def test_nobody_listens(nothing_left_behind):
    nobody = {"endpoint": "http://127.0.0.1:9/sapi/v2/", "token": "t", "reserve": 0.3}
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout, match="connection refused"):
        solve(PROBLEM, "leap-cqm", time_limit=NO_TEST_TAKES_SO_LONG, **nobody)


def test_tokens_and_names(server, monkeypatch, nothing_left_behind):
    with nothing_left_behind(), pytest.raises(e.InvalidToken) as raised:
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, endpoint=server.endpoint, token="not-the-token")
    assert "not-the-token" not in str(raised.value)
    with nothing_left_behind(), pytest.raises(e.SolverUnavailable, match="no_such_solver"):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server, service_solver="no_such_solver"))
    with nothing_left_behind(), pytest.raises(e.SolverUnavailable, match="wrong kind"):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, **options(server, service_solver="loopback_hybrid_bqm"))
    monkeypatch.delenv("DWAVE_API_TOKEN")
    with nothing_left_behind(), pytest.raises(e.MissingToken, match="DWAVE_API_TOKEN"):
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, endpoint=server.endpoint)


def test_configuration_files(server, tmp_path, monkeypatch):
    for name in ("DWAVE_API_TOKEN", "DWAVE_API_ENDPOINT"):
        monkeypatch.delenv(name)
    path = tmp_path / "dwave.conf"
    path.write_text(f"[here]\nendpoint = {server.endpoint}\ntoken = {server.token}\n")
    found = Connection(config_file=str(path), profile="here")
    assert solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, connection=found, reserve=0.3).work == 1
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


@contextmanager
def ctrl_c_after(server, submissions):
    """Presses it when so many problems have been submitted, unless what is in here ends before."""
    before, ended = len(server.requests), threading.Event()

    def press():
        while kinds(server, before).count("submit") < submissions and not ended.is_set():
            time.sleep(0.01)
        if not ended.wait(0.2):
            signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_interrupted_while_waiting(server, nothing_left_behind):
    server.faults.next("solve", delay=NO_TEST_TAKES_SO_LONG)
    before = len(server.requests)
    with nothing_left_behind(), ctrl_c_after(server, 1), pytest.raises(e.NoFeasibleFound, match="interrupted"):
        solve(PROBLEM, "leap-cqm", time_limit=NO_TEST_TAKES_SO_LONG, **options(server))
    assert "cancel" in kinds(server, before)


def test_interrupted_after_a_first_answer(server, monkeypatch, nothing_left_behind):
    fault_at(server, monkeypatch, "solve", 1, Fault(delay=NO_TEST_TAKES_SO_LONG))
    with nothing_left_behind(), ctrl_c_after(server, 2):
        solution = solve(PROBLEM, "leap-bqm", time_limit=NO_TEST_TAKES_SO_LONG, **options(server, submissions=2))
    assert solution.interrupted and solution.work == 1
    assert PROBLEM.is_feasible(solution.assignment)


# Their time limits are below what any service takes; all are tested above and below in another way.
OTHERWISE = {"interruption_returns_the_best", "time_limit_is_kept", "large_problems_keep_it_too"}
CHECKS = [check for check in conformance.CHECKS if check.__name__ not in OTHERWISE]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance_of_the_default(server, check):
    check(make_solver("leap-cqm", **options(server)), ENOUGH)


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
    check(make_solver(name, **options(server)), ENOUGH)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("leap-cqm", "sparse"), ("leap-nonlinear", "dense"), ("leap-nonlinear", "separable"), ("leap-dqm", "sparse")],
)
def test_structures_and_two_budgets(server, name, kind):
    problem = ChoiceProblem.random(kind=kind, groups=5, choices=4, seed=5, budgets=2)
    solution = solve(problem, name, time_limit=ENOUGH, **options(server))
    assert problem.is_feasible(solution.assignment)
    assert np.isclose(solution.energy, problem.energy(solution.assignment))


def test_the_time_limit_ends_large_problems_too(server, late, nothing_left_behind):
    problem = ChoiceProblem.random(kind="low-rank", groups=60, choices=12, seed=1)
    server.faults.next("solve", delay=NO_TEST_TAKES_SO_LONG)
    late("solve")
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout):
        solve(problem, "leap-cqm", time_limit=ENOUGH, **options(server))
    separable = ChoiceProblem.random(kind="separable", groups=200, choices=12, seed=1)
    assert solve(separable, "leap-cqm", time_limit=ENOUGH, **options(server)).work == 1
