"""Handles every request of Ocean's client: to one address only, bounded, and cut off on demand.

The client follows redirects with the API token in the header, sleeps for as long as a service asks, reads answers of
any length, and leaves threads in requests that never end. A :class:`Transport` between its sessions and the network
refuses other addresses, bounds reads and waits, and closes all connections at once.
"""

from __future__ import annotations

import re
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from qubo_compress.errors import (
    QuotaExceeded,
    RedirectRefused,
    RemoteCancelled,
    RemoteSolverError,
    RemoteTimeout,
    ServiceFailed,
)
from qubo_compress.solvers.dwave.answers import misshapen
from qubo_compress.solvers.dwave.deprecations import HEADER, Deprecations

LARGEST_ANSWER = 2**28
"""Default limit on the bytes of an answer to a problem."""

_LARGEST_REPLY = 2**25
"""Limit on the bytes of any other answer; solver lists with the graphs of about ten chips take a few million."""

_PIECE = 2**16
_LONGEST_CONNECT = 5.0
"""Seconds for one attempt to connect, the only step that cannot be cut off."""

_LONGEST_WAIT_DIGITS = 9
_WAITING_ASKED = (413, 429, 503)
_REPEATED = ("GET", "HEAD")
_LATE = "DELETE"
"""Cancellations may also be sent after the deadline."""

_ANSWER = re.compile(r"/problems/[^/?]+/")
_PORTS = {"http": 80, "https": 443}


class TransportFailed(Exception):
    """A request that the transport refused or cut off.

    Attributes:
        kind: class of the library's own exceptions.
        said: what happened.
        advice: what to do.
        passing: whether the same request may succeed later.
    """

    def __init__(self, kind: type[RemoteSolverError], said: str, advice: str, passing: bool = False) -> None:
        super().__init__(said)
        self.kind, self.said, self.advice, self.passing = kind, said, advice, passing


@dataclass(eq=False)
class Transport:
    """The layer between the sessions of one client and the network.

    Args:
        deadline: of ``time.perf_counter()``; no read or wait lasts longer.
        retries: how often a request is repeated if the service asks for it.
        largest_answer: most bytes of an answer to a problem.
        clock: returns seconds.

    Attributes:
        deprecations: what the answers said will be switched off.
    """

    deadline: float
    retries: int = 3
    largest_answer: int = LARGEST_ANSWER
    clock: Callable[[], float] = time.perf_counter
    deprecations: Deprecations = field(default_factory=Deprecations)
    _cut: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sockets: weakref.WeakSet[socket.socket] = field(default_factory=weakref.WeakSet)

    def guard(self, session: Any) -> Any:
        """Route the session's requests through this transport from now on.

        Args:
            session: of ``requests``, with a base URL, the only address it may use.
        """
        origin = origin_of(session.base_url)
        for prefix, adapter in list(session.adapters.items()):
            if not isinstance(adapter, _Adapter):
                session.mount(prefix, _Adapter(self, adapter, origin))
        return session

    @property
    def left(self) -> float:
        """Seconds left until the deadline."""
        return self.deadline - self.clock()

    def check(self, late: bool = False) -> None:
        """Raise if a request may not continue.

        Args:
            late: allowed after the deadline too, as for cancellations.

        Raises:
            TransportFailed: after the cut, or the deadline.
        """
        if self._cut.is_set():
            raise TransportFailed(RemoteCancelled, "the connection was closed before an answer came", "submit it again")
        if self.left <= 0 and not late:
            raise TransportFailed(
                RemoteTimeout, "the service did not answer within the time limit", "raise the time limit or try again"
            )

    def pause(self, seconds: float) -> None:
        """Wait, but only until the cut.

        Raises:
            TransportFailed: if the cut came meanwhile.
        """
        self._cut.wait(max(0.0, seconds))
        self.check()

    def watch(self, connection: Any) -> None:
        """Register a socket that the cut must close."""
        plain = connection if isinstance(connection, socket.socket) else connection.socket  # TLS within TLS
        with self._lock:
            self._sockets.add(plain)
        if self._cut.is_set():
            _shut(plain)

    def cut(self) -> None:
        """Close all connections, end all pauses, and refuse every further request; from any thread."""
        self._cut.set()
        with self._lock:
            watched = list(self._sockets)
        for one in watched:
            _shut(one)


def _shut(one: socket.socket) -> None:
    """Shut down both directions, which wakes a reading or writing thread; that thread closes the socket."""
    with suppress(OSError):  # already closed, or never connected
        socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Adapter:
    """Replaces a transport adapter of ``requests``, and forwards allowed requests to it."""

    def __init__(self, transport: Transport, inner: Any, origin: tuple[str, str, int]) -> None:
        self.transport, self.inner, self.origin = transport, inner, origin
        inner.max_retries = inner.max_retries.new(respect_retry_after_header=False)
        if isinstance(inner.timeout, tuple):
            connecting, reading = inner.timeout
            inner.timeout = (min(connecting, _LONGEST_CONNECT), reading)
        self.watched: dict[type, type] = {}

    def close(self) -> None:
        self.inner.close()

    def send(self, request: Any, **options: Any) -> Any:
        self._check_address(request.url)
        for repetition in range(self.transport.retries + 1):
            response = self._sent(request, {**options, "stream": True})
            try:
                wait = self._wait_asked(response, request.method)
                if wait is None or repetition == self.transport.retries or request.method not in _REPEATED:
                    return self._read(request, response)
            except BaseException:
                response.close()
                raise
            response.close()
            self.transport.pause(wait)
        raise AssertionError("the last repetition returns or raises")

    def _sent(self, request: Any, options: dict[str, Any]) -> Any:
        late = request.method == _LATE
        self.transport.check(late)
        self._watch_pool(request, options)
        try:
            response = self.inner.send(request, **options)
        except Exception:
            self.transport.check(late)  # cut off here, which the libraries mistake for a network error
            raise
        self.transport.deprecations.read(response.headers.pop(HEADER, ""))
        if 300 <= response.status_code < 400 and response.status_code != 304:
            response.close()
            target = response.headers.get("Location")
            if target:
                self._refuse_redirect(request.url, target, response.status_code)
            raise TransportFailed(
                ServiceFailed, f"the service redirects (HTTP {response.status_code}) to nowhere", "check the endpoint"
            )
        return response

    def _watch_pool(self, request: Any, options: dict[str, Any]) -> None:
        """Make the request's pool create connections that the cut can close."""
        pool = self.inner.get_connection_with_tls_context(
            request, options.get("verify", True), proxies=options.get("proxies"), cert=options.get("cert")
        )
        kind = pool.ConnectionCls
        if not issubclass(kind, _Watched):
            pool.ConnectionCls = self.watched.setdefault(
                kind, type(f"Watched{kind.__name__}", (_Watched, kind), {"transport": self.transport})
            )

    def _check_address(self, url: str) -> None:
        if not self._is_here(url):
            raise TransportFailed(
                RedirectRefused,
                f"the service refers to {_shown(url)}, and the API token is not sent there",
                "if that address is right, give it as the endpoint",
            )

    def _is_here(self, url: str) -> bool:
        try:
            return origin_of(url) == self.origin
        except ValueError:
            return False

    def _refuse_redirect(self, url: str, target: str, status: int) -> None:
        raise TransportFailed(
            RedirectRefused,
            f"the service redirects (HTTP {status}) to {_shown(target, url)}, and the API token is not sent there",
            "if that address is right, give it as the endpoint",
        )

    def _wait_asked(self, response: Any, method: str) -> float | None:
        """Seconds that the service asks to wait before the next attempt; None if it does not ask."""
        asked = response.headers.get("Retry-After")
        if response.status_code not in _WAITING_ASKED or asked is None:
            return None
        seconds = self._seconds(asked)
        if seconds is None or (seconds < self.transport.left and method in _REPEATED):
            return seconds
        kind = QuotaExceeded if response.status_code == 429 else ServiceFailed
        raise TransportFailed(
            kind,
            f"the service asks to wait {seconds:.0f} s (HTTP {response.status_code}, Retry-After)",
            "try again after that time",
        )

    def _seconds(self, asked: str) -> float | None:
        """Seconds from a ``Retry-After`` header, a number or a date; None if it cannot be parsed."""
        from urllib3.exceptions import InvalidHeader

        if asked.isdecimal() and len(asked) > _LONGEST_WAIT_DIGITS:
            return float("inf")
        try:
            return float(self.inner.max_retries.parse_retry_after(asked))
        except (InvalidHeader, ValueError, TypeError):
            return None

    def _read(self, request: Any, response: Any) -> Any:
        """The response with its body read, if it is within bounds and has the expected shape."""
        answers = request.method == "GET" and _ANSWER.search(request.url) is not None
        most = self.transport.largest_answer if answers else _LARGEST_REPLY
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and len(announced) < 20 and int(announced) > most:
            raise _too_long(most, answers)
        body, late = bytearray(), request.method == _LATE
        try:
            for piece in response.iter_content(_PIECE):
                body += piece
                if len(body) > most:
                    raise _too_long(most, answers)
                self.transport.check(late)
        except TransportFailed:
            raise
        except Exception:
            self.transport.check(late)
            raise
        self.transport.check(late)  # a body without a length looks complete even when cut off
        response._content, response._content_consumed = bytes(body), True
        if response.status_code == 200:
            wrong = misshapen(request.method, request.url, response.content)
            if wrong is not None:
                raise TransportFailed(ServiceFailed, wrong, "check the endpoint, or report it to the service", True)
        return response


class _Watched:
    """Mixin for a connection class of urllib3 whose sockets the cut closes, even during a handshake."""

    transport: Transport
    sock: Any

    def connect(self) -> None:
        self.transport.check(late=True)
        self._handshake: socket.socket | None = None
        try:
            super().connect()  # type: ignore[misc]
        finally:
            if self._handshake is not None:
                self._handshake.close()
        self.transport.watch(self.sock)

    def request(self, *given: Any, **named: Any) -> None:
        self._unless_cut(super().request, *given, **named)  # type: ignore[misc]

    def getresponse(self) -> Any:
        return self._unless_cut(super().getresponse)  # type: ignore[misc]

    def _unless_cut(self, step: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Report failures from the cut as such; urllib3 would take them for network errors, warn, and retry."""
        try:
            return step(*given, **named)
        except Exception:
            self.transport.check(late=True)
            raise

    def _new_conn(self) -> Any:
        made = super()._new_conn()  # type: ignore[misc]
        self._handshake = made.dup()  # TLS detaches the socket
        self.transport.watch(self._handshake)
        return made


def _too_long(most: int, answers: bool) -> TransportFailed:
    advice = "raise largest_answer of the connection if the answer should be so long" if answers else "report it"
    return TransportFailed(ServiceFailed, f"the service's answer is longer than {most:,} bytes", advice)


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port, which identify a service."""
    parts = urlsplit(url)
    port = parts.port
    return parts.scheme, (parts.hostname or "").rstrip("."), _PORTS.get(parts.scheme, 0) if port is None else port


def _shown(url: str, base: str = "") -> str:
    """An address without its possibly secret parts: no user, password, query or fragment."""
    try:
        whole = urljoin(base, url)
        scheme, host, port = origin_of(whole)
    except ValueError:
        return "an address that cannot be read"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{urlsplit(whole).path}"
