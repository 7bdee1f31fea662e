"""The server: HTTP on 127.0.0.1, with a clean shutdown."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from qubo_compress.testing.loopback_leap.api import Api
from qubo_compress.testing.loopback_leap.faults import Faults
from qubo_compress.testing.loopback_leap.jobs import Jobs
from qubo_compress.testing.loopback_leap.protocol import BASE_PATH, Request, Response
from qubo_compress.testing.loopback_leap.solvers import SHORT_MINIMUM, offered_solvers
from qubo_compress.testing.loopback_leap.tasks import ServerSettings
from qubo_compress.testing.loopback_leap.topology import Chip

ADDRESS = "127.0.0.1"
_BACKLOG = 64
_FLOOD = 2**16
"""Bytes per write of an endless answer."""


@dataclass(frozen=True)
class Logged:
    """A request that was answered.

    Args:
        method: HTTP method.
        path: below the base path, with the query.
        kind: as faults know it; None for calls that do not exist.
        status: HTTP status of the answer.
        received: seconds since the server was started.
        seconds: until the answer was ready.
        bytes: length of the request's body, as sent.
        token: whether an API token came with it, right or wrong.
    """

    method: str
    path: str
    kind: str | None
    status: int
    received: float
    seconds: float
    bytes: int
    token: bool


class LoopbackLeap:
    """A stand-in for Leap on 127.0.0.1, answered by classical solvers.

    Args:
        chips: simulated annealing chips to offer; see :class:`~qubo_compress.testing.loopback_leap.Chip`.
        minimum_time: least time limit of the hybrid solvers, in seconds.
        documented_times: take the documented least times instead, which grow with the problem.
        workers: problems solved at a time.
        seed: of all answers; the same problems in the same order get the same answers, except for times.
        token: the only accepted one; default: a random one.
        settings: how the solvers behave; see :class:`~qubo_compress.testing.loopback_leap.tasks.ServerSettings`.

    Example:
        >>> from dwave.cloud import Client
        >>> with LoopbackLeap(chips=[Chip("zephyr", 1)]) as server, server.environment():
        ...     with Client(endpoint=server.endpoint, token=server.token) as client:
        ...         sorted(solver.name for solver in client.get_solvers(hybrid=True))
        ['loopback_hybrid_bqm', 'loopback_hybrid_cqm', 'loopback_hybrid_dqm', 'loopback_hybrid_nl']
    """

    faults: Faults
    """Faults to inject."""

    def __init__(
        self,
        chips: Sequence[Chip] = (Chip("zephyr", 4), Chip("pegasus", 4)),
        *,
        minimum_time: float = SHORT_MINIMUM,
        documented_times: bool = False,
        workers: int = 2,
        seed: int = 0,
        token: str | None = None,
        **settings: Any,
    ) -> None:
        if not minimum_time > 0 or workers < 1:
            raise ValueError(f"minimum_time and workers must be positive; got {minimum_time} and {workers}")
        self.token = secrets.token_hex(16) if token is None else token
        self.faults = Faults()
        self._solvers = offered_solvers(chips, minimum_time, documented_times)
        self._settings = ServerSettings(**settings)
        self._workers, self._seed = workers, seed
        self._http: _HttpServer | None = None
        self._log: list[Logged] = []

    @property
    def endpoint(self) -> str:
        """The address to pass to the client as ``endpoint``.

        Raises:
            RuntimeError: before the server was started and after it was closed.
        """
        return f"http://{ADDRESS}:{self._running().server_address[1]}{BASE_PATH}"

    @property
    def requests(self) -> list[Logged]:
        """Requests answered so far, in the order of their answers; also after the close."""
        return list(self._log)

    @property
    def solver_names(self) -> list[str]:
        """The names of all offered solvers."""
        return list(self._solvers)

    @property
    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for every client and sampler of Ocean."""
        return {"endpoint": self.endpoint, "token": self.token}

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """An environment in which samplers without arguments find this server.

        All ``DWAVE_*`` variables are removed and restored at the end; solver lists are not cached on disk, and no proxy
        is used. A configuration file, if there is one, is ignored.
        """
        before = dict(os.environ)
        for name in [name for name in os.environ if name.startswith("DWAVE_")]:
            del os.environ[name]
        os.environ.update(
            DWAVE_API_ENDPOINT=self.endpoint, DWAVE_API_TOKEN=self.token, DWAVE_CONFIG_FILE=os.devnull,
            DWAVE_CACHE_ENABLED="false", NO_PROXY=ADDRESS, no_proxy=ADDRESS,
        )  # fmt: skip
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start(self) -> None:
        """Begin to listen on a free port."""
        if self._http is not None:
            raise RuntimeError("the server is running already")
        self._log = []
        self._closing = threading.Event()
        self._jobs = Jobs(self._workers, self.faults, self._settings, self._seed)
        api = Api(self.token, self._solvers, self._jobs, self.faults, self._closing)
        self._http = _HttpServer(api, self._log)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="loopback-leap")
        self._thread.start()

    def close(self) -> None:
        """Cancel problems, release waiting requests, close all connections and join all threads."""
        if self._http is None:
            return
        http, self._http = self._http, None
        self._closing.set()
        http.shutdown()
        self._jobs.close()
        http.close_connections()
        http.server_close()
        self._thread.join()

    def __enter__(self) -> LoopbackLeap:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _running(self) -> _HttpServer:
        if self._http is None:
            raise RuntimeError("the server is not running; use it in a with block, or call start")
        return self._http


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close
    request_queue_size = _BACKLOG

    def __init__(self, api: Api, log: list[Logged]) -> None:
        super().__init__((ADDRESS, 0), _Handler)
        self.api, self.log, self.started = api, log, time.perf_counter()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """No further requests: threads that wait for one end, those that answer one finish first."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):  # the other side closed first
                connection.shutdown(socket.SHUT_RD)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect; show any other error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HttpServer

    def _answer(self) -> None:
        start = time.perf_counter()
        request = Request(self.command, self.path, self.headers, self._read_body())
        response = self.server.api.respond(request)
        end = time.perf_counter()
        self.server.log.append(
            Logged(
                self.command, self.path.removeprefix(BASE_PATH), self.server.api.kind(request), response.status,
                start - self.server.started, end - start, len(request.body), "X-Auth-Token" in request.headers,
            )
        )  # fmt: skip
        self._send(response)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return b"".join(chunks)

    def _send(self, response: Response) -> None:
        endless = response.drip is not None
        self.close_connection = self.close_connection or endless
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        if not endless:
            self.send_header("Content-Length", str(len(response.body)))
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            # Otherwise the client would reuse the connection, and its next POST might meet the close.
            self.send_header("Connection", "close")
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if response.drop:
            self.wfile.write(response.body[: len(response.body) // 2])
            self.close_connection = True
            return
        self.wfile.write(response.body)
        if response.drip is not None:
            self._drip(response.drip)

    def _drip(self, seconds: float) -> None:
        """Send spaces until the client disconnects or the server closes."""
        piece = b" " * (1 if seconds else _FLOOD)
        while not self.server.api.closing.wait(seconds):
            self.wfile.write(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in ``LoopbackLeap.requests``, not printed."""
