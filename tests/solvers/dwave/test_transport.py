"""What lies between Ocean's client and the network: one address, bounded answers, and a cut that wakes everybody."""

from __future__ import annotations

import gzip
import io
import socket
import threading
from contextlib import contextmanager
from email.utils import formatdate
from time import time

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter

from qubo_compress import errors as e
from qubo_compress.solvers.dwave import transport as dwave_transport
from qubo_compress.solvers.dwave.transport import Transport, TransportFailed

HERE = "https://here.example/sapi/v2/"
PATIENT = 60.0


class Scripted(HTTPAdapter):
    """Answers from a list, without a network."""

    def __init__(self, answers):
        super().__init__()
        self.timeout, self.answers, self.sent = (1.0, 1.0), list(answers), []

    def send(self, request, **_):
        self.sent.append(request)
        status, headers, body = self.answers.pop(0)
        raw = urllib3.HTTPResponse(body=io.BytesIO(body), headers=headers, status=status, preload_content=False)
        return self.build_response(request, raw)


class Clock:
    """Stands still, but for the pauses."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by what is paused, and keeps the pauses."""
    made = Clock()

    def pause(transport, seconds):
        made.pauses.append(seconds)
        made.now += seconds

    monkeypatch.setattr(Transport, "pause", pause)
    return made


def guarded(answers, clock, base=HERE, **options):
    session = requests.Session()
    session.base_url, inner = base, Scripted(answers)
    session.mount("https://", inner)
    session.mount("http://", inner)
    session.headers["X-Auth-Token"] = "hidden-token"
    Transport(100.0, clock=clock, **options).guard(session)
    return session, inner


TARGETS = {
    "https://there.example/sapi/v2/": "https://there.example:443/sapi/v2/",
    "https://here.example:8443/sapi/v2/": "https://here.example:8443/sapi/v2/",
    "http://here.example/sapi/v2/": "http://here.example:80/sapi/v2/",
    "https://user:hidden-word@[::1]:9/x?token=hidden-token#hidden": "https://[::1]:9/x",
    "//there.example/y": "https://there.example:443/y",
    "../v3/": "https://here.example:443/sapi/v2/v3/",
    "https://[::1": "an address that cannot be read",
}


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_no_redirect_is_followed_and_the_target_is_named(clock, status, method):
    for target, shown in TARGETS.items():
        session, inner = guarded([(status, {"Location": target}, b"")], clock)
        with pytest.raises(TransportFailed) as raised:
            session.request(method, HERE + "problems/")
        assert raised.value.kind is e.RedirectRefused and len(inner.sent) == 1
        assert f"HTTP {status}) to {shown}, and" in raised.value.said and "hidden" not in raised.value.said


def test_a_redirect_to_nowhere_is_the_services_fault(clock):
    session, _ = guarded([(302, {}, b"")], clock)
    with pytest.raises(TransportFailed, match="to nowhere") as raised:
        session.get(HERE)
    assert raised.value.kind is e.ServiceFailed


@pytest.mark.parametrize(
    "url",
    ["https://there.example/a", "http://here.example/a", "https://here.example:444/a", "https://here.example@there/a"],
)
def test_the_token_goes_to_no_other_address_that_an_answer_names(clock, url):
    session, inner = guarded([], clock)
    with pytest.raises(TransportFailed, match="the API token is not sent there") as raised:
        session.get(url)
    assert raised.value.kind is e.RedirectRefused and not inner.sent


def test_the_same_address_may_be_written_in_another_way(clock):
    session, inner = guarded([(200, {}, b"yes")], clock)
    assert session.get("HTTPS://HERE.example:443/other/path").content == b"yes" and len(inner.sent) == 1


def asking(seconds, status=503):
    return (status, {"Retry-After": str(seconds)}, b"{}")


def test_a_wait_within_the_time_is_kept(clock):
    session, inner = guarded([asking(5), asking(7), (200, {}, b"yes")], clock)
    assert session.get(HERE).content == b"yes"
    assert clock.pauses == [5, 7] and len(inner.sent) == 3


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize(
    "asked", [100, 3600, 10**9, "9" * 5000, formatdate(time() + 7200, usegmt=True)], ids=lambda asked: str(asked)[:9]
)
def test_a_wait_beyond_the_time_is_not_begun(clock, method, asked):
    for status, kind in ((503, e.ServiceFailed), (429, e.QuotaExceeded)):
        session, inner = guarded([asking(asked, status)], clock)
        with pytest.raises(TransportFailed, match="asks to wait") as raised:
            session.request(method, HERE)
        assert raised.value.kind is kind and not clock.pauses and len(inner.sent) == 1


def test_the_wait_is_kept_so_many_times_only_and_submissions_are_not_repeated(clock):
    session, inner = guarded([asking(1)] * 9, clock, retries=3)
    assert session.get(HERE).status_code == 503
    assert clock.pauses == [1, 1, 1] and len(inner.sent) == 4
    with pytest.raises(TransportFailed, match="asks to wait 1 s"):
        session.post(HERE)
    assert len(inner.sent) == 5


@pytest.mark.parametrize("unreadable", ["soon", "-3", ""])
def test_a_wait_that_cannot_be_read_is_none(clock, unreadable):
    session, inner = guarded([asking(unreadable)], clock)
    assert session.get(HERE).status_code == 503 and len(inner.sent) == 1 and not clock.pauses


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Length": "2001"}, b""),
        ({"Content-Length": "9" * 19}, b""),
        ({}, b" " * 2001),
        ({"Content-Encoding": "gzip"}, gzip.compress(bytes(10**8))),
    ],
    ids=["announced", "far more", "unannounced", "packed"],
)
def test_answers_are_bounded(clock, monkeypatch, headers, body):
    monkeypatch.setattr(dwave_transport, "_LARGEST_REPLY", 2000)
    for path, largest in (("problems/", 10**9), ("problems/12-34/", 2000), ("problems/12-34/answer/data/", 2000)):
        session, _ = guarded([(200, headers, body)], clock, largest_answer=largest)
        with pytest.raises(TransportFailed, match="longer than 2,000 bytes") as raised:
            session.get(HERE + path)
        assert raised.value.kind is e.ServiceFailed


def test_nothing_is_read_beyond_the_deadline_but_cancellations_are_sent(clock):
    class Slow(io.BytesIO):
        def read(self, size=-1):
            clock.now += 40
            return super().read(min(size, 1))

    session, inner = guarded([], clock)
    inner.answers.append((200, {}, b""))
    inner.build_response = lambda request, raw: HTTPAdapter.build_response(
        inner, request, urllib3.HTTPResponse(body=Slow(b"x" * 9), status=200, preload_content=False)
    )
    with pytest.raises(TransportFailed) as raised:
        session.get(HERE)
    assert raised.value.kind is e.RemoteTimeout
    del inner.build_response
    inner.answers = [(200, {}, b"cancelled")]
    assert session.delete(HERE).content == b"cancelled"
    with pytest.raises(TransportFailed):
        session.get(HERE)
    assert len(inner.sent) == 2


@contextmanager
def silent_server():
    """Accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        accepted, ended = [], threading.Event()

        def accept():
            while not ended.is_set():
                accepted.append(listening.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1], accepted
        ended.set()
        socket.create_connection(listening.getsockname()).close()
        thread.join(PATIENT)
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_cut_wakes_who_waits_also_in_the_middle_of_a_handshake(scheme, nothing_left_behind):
    raised = []

    def ask():
        try:
            session.get(session.base_url, timeout=3600)
        except TransportFailed as failure:
            raised.append(failure)

    with nothing_left_behind(), silent_server() as (port, accepted):
        session = requests.Session()
        session.base_url = f"{scheme}://127.0.0.1:{port}/sapi/v2/"
        for adapter in session.adapters.values():
            adapter.timeout = (3600, 3600)
        transport = Transport(float("inf"))
        transport.guard(session)
        thread = threading.Thread(target=ask)
        thread.start()
        while not accepted or (scheme == "https" and not accepted[0].recv(1)):
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)
        transport.cut()
        thread.join(PATIENT)
        assert not thread.is_alive() and raised[0].kind is e.RemoteCancelled
        with pytest.raises(TransportFailed):
            session.get(session.base_url)
        session.close()


def test_the_cut_ends_pauses():
    transport = Transport(float("inf"))
    threading.Timer(0.05, transport.cut).start()
    with pytest.raises(TransportFailed) as raised:
        transport.pause(3600)
    assert raised.value.kind is e.RemoteCancelled


def test_a_socket_that_is_opened_after_the_cut_is_shut_at_once():
    transport = Transport(float("inf"))
    transport.cut()
    one, other = socket.socketpair()
    with one, other:
        transport.watch(one)
        assert other.recv(1) == b""
