"""What our solvers make of a service that redirects, never ends, asks to wait, echoes the token or answers nonsense."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import Future
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from qubo_compress import ChoiceProblem, solve
from qubo_compress import errors as e
from qubo_compress.solvers.dwave import client as dwave_client
from qubo_compress.solvers.dwave import transport as dwave_transport
from qubo_compress.solvers.dwave import waiting as dwave_waiting
from qubo_compress.solvers.dwave.connection import Connection, uploaded
from qubo_compress.solvers.dwave.token import MASK, Secrets, Token
from qubo_compress.solvers.dwave.transport import TransportFailed
from qubo_compress.testing.loopback_leap import Chip, LoopbackLeap
from qubo_compress.testing.loopback_leap.faults import Fault
from qubo_compress.testing.loopback_leap.jobs import LeapJob

# The loopback server ends early, whatever the limit: enough for any machine, however busy.
ENOUGH = 120.0
NO_TEST_TAKES_SO_LONG = 3600.0
PROBLEM = ChoiceProblem.random(kind="low-rank", groups=5, choices=3, seed=0)
KINDS = ("list", "submit", "poll", "load", "upload")
CHIPS = (Chip("zephyr", 2),)
WARMED_UP = ("leap-cqm",)

pytestmark = pytest.mark.usefixtures("no_faults")


def ask(server, solver="leap-cqm", time_limit=ENOUGH, **more):
    more = {"reserve": 0.3, **server.client_options, **more} if solver != "qpu" else {**server.client_options, **more}
    return solve(PROBLEM, solver, time_limit=time_limit, **more)


def everything_said(error):
    """The exception and all that stands behind it."""
    said, waiting = [], [error]
    while waiting:
        one = waiting.pop()
        said += [str(one), repr(one), str(vars(one))]
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(said)


# --- redirects -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(server):
    with LoopbackLeap(chips=(), eager=True, token=server.token) as running:
        yield running


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_token_follows_no_redirect(server, elsewhere, status, nothing_left_behind):
    for kind in KINDS:
        server.faults.next(kind, status=status, location=f"{elsewhere.endpoint}x?token={server.token}")
        with nothing_left_behind(), pytest.raises(e.RedirectRefused, match=f"HTTP {status}") as raised:
            ask(server)
        assert elsewhere.endpoint in str(raised.value) and server.token not in everything_said(raised.value)
    assert elsewhere.requests == []


def test_a_chip_redirects_no_better(server, elsewhere, nothing_left_behind):
    server.faults.next("submit", status=307, location=elsewhere.endpoint)
    with nothing_left_behind(), pytest.raises(e.RedirectRefused, match="not sent there"):
        ask(server, "qpu", cache=None, roof_duality=False)
    assert elsewhere.requests == []


def test_an_answer_that_lies_elsewhere_is_not_fetched_with_the_token(server, elsewhere, monkeypatch):
    message = LeapJob.message

    def sending_away(job, with_answer=False):
        told = message(job, with_answer)
        if "url" in told.get("answer", {}):
            told["answer"]["url"] = elsewhere.endpoint + told["answer"]["url"]
        return told

    monkeypatch.setattr(LeapJob, "message", sending_away)
    with pytest.raises(e.RedirectRefused, match="refers to"):
        ask(server, "leap-nonlinear")
    assert elsewhere.requests == []


# --- regions -------------------------------------------------------------------------------------


@pytest.fixture
def by_region(server, monkeypatch):
    """Only the metadata API is configured; it is asked for the address."""
    monkeypatch.delenv("DWAVE_API_ENDPOINT")
    monkeypatch.setenv("DWAVE_METADATA_API_ENDPOINT", server.endpoint)
    return lambda region="loopback": solve(
        PROBLEM, "leap-cqm", time_limit=ENOUGH, reserve=0.3, connection=Connection(region=region, token=server.token)
    )


def test_the_address_of_a_region_is_asked_for_without_the_token(server, by_region, nothing_left_behind):
    before = len(server.requests)
    with nothing_left_behind():
        assert by_region().work == 1
    asked = server.requests[before:]
    assert [request.token for request in asked if request.kind == "regions"] == [False]
    assert all(request.token for request in asked if request.kind != "regions")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 307, "location": "http://127.0.0.1:9/"}, e.RedirectRefused),
        ({"status": 500}, e.ServiceFailed),
        ({"status": 503, "retry_after": 3600}, e.ServiceFailed),
        ({"drip": 0.0}, e.ServiceFailed),
        ({"body": b"{}"}, e.ServiceFailed),
    ],
    ids=str,
)
def test_no_other_region_stands_in_for_one_that_cannot_be_found(
    server, by_region, fault, expected, nothing_left_behind
):
    before = len(server.requests)
    server.faults.next("regions", **fault)
    with nothing_left_behind(), pytest.raises(expected):
        by_region()
    assert [request.kind for request in server.requests[before:]] == ["regions"]


def test_an_unknown_region_is_refused_by_name(by_region):
    with pytest.raises(e.RequestRejected, match=r"no region 'mars'; name one of loopback"):
        by_region("mars")


# --- answers without end, and waits without end --------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_is_cut_off_at_a_size(server, kind, nothing_left_behind, monkeypatch):
    monkeypatch.setattr(dwave_transport, "_LARGEST_REPLY", 10**6)  # or much time goes into filling the usual one
    server.faults.next(kind, drip=0.0, times=9)
    connection = Connection(largest_answer=10**6, **server.client_options)
    expected = e.UploadFailed if kind == "upload" else e.ServiceFailed
    with nothing_left_behind(), pytest.raises(expected, match="longer than [0-9,]+ bytes") as raised:
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, reserve=0.3, connection=connection)
    assert type(raised.value) is expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_drips_is_cut_off_at_the_deadline(server, late, kind, nothing_left_behind):
    server.faults.next(kind, times=9, drip=0.1)
    late(kind)
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout, match="time limit"):
        ask(server)


def test_a_refusal_without_end_is_cut_off_too(server, nothing_left_behind, monkeypatch):
    monkeypatch.setattr(dwave_transport, "_LARGEST_REPLY", 10**6)
    server.faults.next("list", status=500, drip=0.0)
    with nothing_left_behind(), pytest.raises(e.ServiceFailed, match="longer than"):
        ask(server)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "expected"), [(503, e.ServiceFailed), (429, e.QuotaExceeded)])
def test_an_hour_is_not_waited_for(server, kind, status, expected, nothing_left_behind):
    server.faults.next(kind, status=status, retry_after=3600)
    before = len(server.requests)
    with nothing_left_behind(), pytest.raises(expected, match=r"asks to wait 3600 s \(HTTP [0-9]+, Retry-After\)"):
        ask(server)
    asked = [request.kind for request in server.requests[before:]]
    assert asked.count(kind) == 1
    assert set(asked[asked.index(kind) + 1 :]) <= {"cancel"}  # who asks to wait is asked for nothing more


def test_a_cancellation_that_is_to_wait_an_hour_is_given_up(server, late, nothing_left_behind):
    server.faults.next("solve", delay=NO_TEST_TAKES_SO_LONG)
    server.faults.next("cancel", status=503, retry_after=3600)
    late("solve")
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout):
        ask(server)


def test_a_short_wait_is_kept_and_the_answer_comes(server, nothing_left_behind):
    before = len(server.requests)
    for kind in ("list", "poll", "load"):
        server.faults.next(kind, status=503, retry_after=0, times=2)
    with nothing_left_behind():
        assert ask(server).work == 1
    asked = [(request.kind, request.status) for request in server.requests[before:]]
    assert all(asked.count((kind, 503)) == 2 for kind in ("list", "poll", "load"))


# --- uploads -------------------------------------------------------------------------------------

UPLOADS = [
    ({"status": 503}, e.UploadFailed),
    ({"status": 500}, e.UploadFailed),
    ({"drop": True}, e.UploadFailed),
    ({"body": b"[]"}, e.UploadFailed),
    ({"body": b"{"}, e.UploadFailed),
    ({"status": 401}, e.InvalidToken),
    ({"status": 400}, e.RequestRejected),
    ({"status": 429}, e.QuotaExceeded),
]


@pytest.mark.parametrize("pauses", [(0.0, 0.0), (NO_TEST_TAKES_SO_LONG,) * 2], ids=["ample time", "no time to retry"])
@pytest.mark.parametrize(("fault", "expected"), UPLOADS, ids=str)
def test_a_fault_of_an_upload_has_its_class_at_any_time_limit(
    server, monkeypatch, fault, expected, pauses, nothing_left_behind
):
    monkeypatch.setattr(dwave_client, "_UPLOAD_PAUSES", pauses)
    server.faults.next("upload", times=50, **fault)
    before = len(server.requests)
    with nothing_left_behind(), pytest.raises(expected, match="uploading the problem failed") as raised:
        ask(server)
    assert type(raised.value) is expected
    tries = [request.kind for request in server.requests[before:]].count("upload")
    passing = fault.get("status", 500) not in (400, 401) and "body" not in fault
    assert tries == (3 if passing and pauses[0] == 0 else 1)


def test_an_upload_that_recovers_is_submitted(server, monkeypatch):
    monkeypatch.setattr(dwave_client, "_UPLOAD_PAUSES", (0.0, 0.0))
    server.faults.next("upload", status=503, times=2)
    assert ask(server).work == 1


def uploading(failure):
    client = SimpleNamespace(secrets=Secrets(), upload_failure=failure)
    solver = SimpleNamespace(upload_problem=lambda handle: Future())
    return SimpleNamespace(client=client, solver=solver)


def test_the_deadline_does_not_hide_why_the_tries_before_failed():
    failure = TransportFailed(e.ServiceFailed, "the service failed (HTTP 503)", "later")
    with pytest.raises(e.UploadFailed, match="HTTP 503"):
        uploaded(uploading(failure), None, time.perf_counter(), "here")
    with pytest.raises(e.RemoteTimeout, match="not uploaded within the time limit, and nothing was submitted"):
        uploaded(uploading(None), None, time.perf_counter(), "here")


def test_an_upload_in_many_parts_is_cut_off_with_all_that_wait(server, late, monkeypatch, nothing_left_behind):
    from dwave.cloud import Client

    monkeypatch.setattr(Client, "_UPLOAD_PART_SIZE_BYTES", 100)  # more parts than the client has threads for them
    monkeypatch.setattr(Client, "_UPLOAD_PART_THREAD_COUNT", 2)
    kind = server.faults.take
    asked = itertools.count()
    monkeypatch.setattr(
        server.faults, "take", lambda of: Fault(drip=0.1) if of == "upload" and next(asked) >= 3 else kind(of)
    )
    late("upload")
    with nothing_left_behind(), pytest.raises(e.RemoteTimeout):
        ask(server)
    assert next(asked) >= 4


def test_a_download_is_bounded_as_everything_is(server, nothing_left_behind):
    for fault, expected in (({"drip": 0.0}, e.ServiceFailed), ({"status": 503, "retry_after": 3600}, e.ServiceFailed)):
        server.faults.next("download", times=9, **fault)
        connection = Connection(largest_answer=10**6, **server.client_options)
        with nothing_left_behind(), pytest.raises(expected):
            solve(PROBLEM, "leap-nonlinear", time_limit=ENOUGH, reserve=0.3, connection=connection)
        server.faults.clear()


def test_a_sampler_of_the_users_has_its_token_masked_too(server):
    from dwave.system import DWaveSampler

    with DWaveSampler(solver="loopback_zephyr2") as sampler:
        server.faults.next("submit", status=400, message=f"no {server.token}")
        with pytest.raises(e.RequestRejected) as raised:
            solve(PROBLEM, "qpu", sampler=sampler, time_limit=ENOUGH, cache=None, roof_duality=False)
    assert server.token not in everything_said(raised.value)


# --- answers that are none -----------------------------------------------------------------------

LISTS = {
    b"{}": "list of solvers is not a list: {}",
    b"null": "is not a list: null",
    b'"x"': "is not a list",
    b"[1]": "does not describe a solver",
    b"[{}]": "has a solver without a name",
    b'[{"identity": {"name": 3}}]': "has a solver without a name",
    b"": "is not JSON",
    b"[" * 5000: "is not JSON",
    b"\xff": "is not JSON",
    b'[{"identity":{"name":"x","version":null},"status":"ONLINE","properties":7,"avg_load":0}]': "without properties",
    b'[{"identity":{"name":"x","version":7},"status":"ONLINE","properties":{},"avg_load":"z"}]': "answer is not valid",
}


@pytest.mark.parametrize("body", LISTS, ids=lambda body: str(body[:30]))
def test_a_list_of_solvers_that_is_none_is_the_services_fault(server, body, nothing_left_behind):
    server.faults.next("list", body=body, times=2)
    with nothing_left_behind(), pytest.raises(e.ServiceFailed, match="the service's") as raised:
        ask(server)
    assert LISTS[body] in str(raised.value) and "nothing was sent" not in str(raised.value)


@pytest.mark.parametrize("kind", ["submit", "poll", "load"])
@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"3", b"[1]", b'[{"id": "x", "status": "COMPLETED"}]', b"{"])
def test_answers_of_another_shape_are_the_services_fault_or_asked_for_again(server, kind, body, nothing_left_behind):
    server.faults.next(kind, body=body)
    with nothing_left_behind():
        if kind == "submit":
            with pytest.raises((e.ServiceFailed, e.SolverUnavailable)):
                ask(server)
        else:
            assert ask(server).work == 1


PROPERTIES = [
    ("leap-cqm", {"minimum_time_limit_s": None}),
    ("leap-cqm", {"minimum_time_limit_s": "soon"}),
    ("leap-cqm", {"maximum_number_of_variables": "many"}),
    ("leap-cqm", {"maximum_time_limit_hrs": []}),
    ("leap-bqm", {"minimum_time_limit": 5}),
    ("qpu", {"topology": None}),
    ("qpu", {"topology": {"type": "zephyr", "shape": [10**6, 4]}}),
    ("qpu", {"topology": {"type": "moebius", "shape": [2, 4]}}),
]


@pytest.mark.parametrize(("solver", "changed"), PROPERTIES, ids=str)
def test_a_solver_described_wrongly_is_the_services_fault(server, monkeypatch, solver, changed):
    name = {"qpu": "loopback_zephyr2"}.get(solver, f"loopback_hybrid_{solver[-3:]}")
    properties = server._solvers[name].record["properties"]
    for key, value in changed.items():
        monkeypatch.setitem(properties, key, value)
        if value is None:
            monkeypatch.delitem(properties, key)
    before = len(server.requests)
    with pytest.raises(e.ServiceFailed, match="the service describes the .* in a way that cannot be used"):
        ask(server, solver)
    assert {request.kind for request in server.requests[before:]} == {"list"}


# --- tokens --------------------------------------------------------------------------------------


@pytest.fixture(params=["argument", "environment", "file"])
def asked_by(server, request, monkeypatch, tmp_path):
    """The token comes this way."""
    if request.param == "argument":
        return lambda **more: ask(server, **more)
    if request.param == "environment":
        return lambda **more: solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, reserve=0.3, **more)
    path = tmp_path / "dwave.conf"
    path.write_text(f"[defaults]\nendpoint = {server.endpoint}\ntoken = {server.token}\n")
    for name in ("DWAVE_API_TOKEN", "DWAVE_API_ENDPOINT"):
        monkeypatch.delenv(name)
    found = Connection(config_file=str(path))
    return lambda **more: solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, reserve=0.3, connection=found, **more)


@pytest.mark.parametrize(
    "written", [str, quote, lambda token: token[:-3], str.upper], ids=["it", "quoted", "cut", "up"]
)
def test_a_token_that_is_echoed_is_shown_nowhere(server, asked_by, written, caplog, monkeypatch):
    monkeypatch.setattr(dwave_waiting, "_PAUSES", (0.0,))
    caplog.set_level("DEBUG", logger="qubo_compress")
    echo = written(server.token)
    for kind, fault in [
        ("list", {"status": 400}), ("submit", {"status": 500}), ("load", {"status": 429, "times": 9}),
        ("upload", {"status": 400}), ("submit", {"item_error": (400, f"not {echo}")}),
        ("solve", {}),
    ]:  # fmt: skip
        if "item_error" not in fault:
            fault = {"message": f"{'x' * 250} no, {echo}, {echo}", **fault}
        server.faults.next(kind, **fault)
        with pytest.raises(e.RemoteSolverError) as raised:
            asked_by()
        said = everything_said(raised.value) + "".join(r.getMessage() for r in caplog.records if "dwave" not in r.name)
        assert echo not in said and server.token not in said and MASK in said


def test_a_token_that_comes_back_as_a_name_or_a_number_is_shown_nowhere(server, late, monkeypatch):
    server.faults.next("submit", body=f'[{{"id": "{server.token}", "status": "PENDING"}}]'.encode())
    server.faults.next("poll", delay=NO_TEST_TAKES_SO_LONG, times=9)
    late("poll")
    with pytest.raises(e.RemoteTimeout, match=f"no answer to problem {MASK}") as raised:
        ask(server)
    server.faults.clear()
    assert server.token not in everything_said(raised.value)
    name = server._solvers["loopback_hybrid_cqm"].record["identity"]
    monkeypatch.setitem(name, "name", f"x{server.token}")
    monkeypatch.setitem(server._solvers, f"x{server.token}", server._solvers["loopback_hybrid_cqm"])
    solution = ask(server)
    assert solution.details["service_solver"] == f"x{MASK}" and server.token not in f"{solution.details}{solution}"


@pytest.mark.parametrize("around", ["\n", " ", "\r\n"], ids=repr)
def test_white_space_around_a_token_does_no_harm_and_is_said(server, monkeypatch, caplog, around):
    assert ask(server, token=server.token + around).work == 1
    assert "had white space around it" in caplog.text
    monkeypatch.setenv("DWAVE_API_TOKEN", around + server.token + around)
    assert ask(server, token=None).work == 1
    with pytest.raises(e.InvalidToken, match="without the white space around it") as raised:
        ask(server, token="not-the-token" + around)
    assert "not-the-token" not in everything_said(raised.value)


@pytest.mark.parametrize("wrong", ["\x7f", "é", "\t"], ids=repr)
def test_a_token_that_cannot_be_one_is_refused_wherever_it_came_from(server, monkeypatch, tmp_path, wrong):
    broken = server.token[:9] + wrong + server.token[9:]
    path = tmp_path / "dwave.conf"
    path.write_text(f"[defaults]\nendpoint = {server.endpoint}\ntoken = {broken}\n", encoding="utf-8")
    before = len(server.requests)
    for more in ({"token": broken}, {"token": None}, {"token": None, "connection": Connection(config_file=str(path))}):
        if "connection" in more:
            monkeypatch.delenv("DWAVE_API_TOKEN")
            more["endpoint"] = None
        elif more["token"] is None:
            monkeypatch.setenv("DWAVE_API_TOKEN", broken)
        with pytest.raises(e.InvalidToken, match="at place 10 of 33") as raised:
            ask(server, **more)
        assert server.token[:9] not in everything_said(raised.value)
    assert len(server.requests) == before


def test_a_proxys_password_is_shown_nowhere(server, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    proxied = Connection(proxy="http://me:hidden-word@127.0.0.1:9/", **server.client_options)
    with pytest.raises(e.RemoteSolverError) as raised:
        solve(PROBLEM, "leap-cqm", time_limit=ENOUGH, reserve=0.3, connection=proxied)
    assert "hidden-word" not in everything_said(raised.value)


@pytest.mark.parametrize("endpoint", ["http://[::1", "http://x:port/"])
def test_an_endpoint_that_is_no_address_is_refused(server, monkeypatch, endpoint, nothing_left_behind):
    with pytest.raises(e.InvalidSolverOption, match="endpoint must be a URL"):
        Connection(endpoint=endpoint)
    monkeypatch.setenv("DWAVE_API_ENDPOINT", endpoint)
    with nothing_left_behind(), pytest.raises(e.RequestRejected, match="the endpoint is not a URL"):
        ask(server, endpoint=None, token=Token(server.token))
