"""Connections to D-Wave's service: connect, wait with a deadline, cancel, and close everything.

The Ocean client waits forever, retries ten times, leaves sixteen threads behind when a connection fails half way, and
reports microseconds. This module bounds each wait, asks the service to cancel abandoned problems, ends every client
whatever it is doing, and uses seconds.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qubo_compress.errors import InvalidSolverOption, RemoteTimeout, ServiceDeprecation
from qubo_compress.solvers.dwave.client import connect
from qubo_compress.solvers.dwave.errors import described, translate, translated
from qubo_compress.solvers.dwave.token import Secrets, Token
from qubo_compress.solvers.dwave.transport import LARGEST_ANSWER, Transport, origin_of
from qubo_compress.solvers.dwave.waiting import PATIENCE, cancel, cloud_future, outcome, resolve, within

__all__ = [
    "SIMULATED_NOTE",
    "Connection",
    "Secrets",
    "cancel",
    "cloud_future",
    "connection_of",
    "described",
    "is_simulated",
    "opened",
    "outcome",
    "resolve",
    "seconds",
    "stages",
    "translate",
    "translated",
    "uploaded",
    "within",
]

SIMULATED_NOTE = "the solver that answered is a stand-in on a classical computer: no D-Wave machine was involved"
"""The note on every answer of a solver that :func:`is_simulated`."""

_LONG_POLL_SECONDS = 2
"""Seconds that the service may hold a status request; closing a client waits for the open one."""

_SHORTEST_REQUEST = 1.5
"""Least seconds for a request, so that a status request held for one second is not cut off."""


@dataclass(frozen=True)
class Connection:
    """How to reach the service; defaults come from Ocean's environment variables, then its files.

    Args:
        endpoint: URL of the solver API, such as ``https://na-west-1.cloud.dwavesys.com/sapi/v2/``.
        token: the API token; white space around it is removed, and it is never shown, logged or pickled.
        solver: name of one solver; None for the newest of the right kind.
        region: instead of an endpoint, such as ``"eu-central-1"``.
        profile: section of Ocean's configuration file.
        config_file: path of that file.
        request_timeout: most seconds without a byte during a request; the time limit bounds the whole request.
        polling_timeout: most seconds to wait for an answer; None: only the time limit counts.
        proxy: URL of a proxy.
        retries: how often to repeat a request that is safe to repeat. Submissions are never repeated.
        largest_answer: most bytes of an answer to a problem.

    Raises:
        InvalidSolverOption: for a time-out, a size or a number of retries out of range, or a password in the endpoint.
        InvalidToken: for a malformed token.

    Example:
        >>> Connection(endpoint="https://example.com/sapi/v2/", token="secret")  # doctest: +ELLIPSIS
        Connection(endpoint='https://example.com/sapi/v2/', solver=None, region=None, ...)
    """

    endpoint: str | None = None
    token: str | Token | None = field(default=None, repr=False)
    solver: str | None = None
    region: str | None = None
    profile: str | None = None
    config_file: str | None = None
    request_timeout: float = 60.0
    polling_timeout: float | None = None
    proxy: str | None = field(default=None, repr=False)  # its URL may hold a password
    retries: int = 3
    largest_answer: int = LARGEST_ANSWER

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", Token.of(self.token))
        if not self.request_timeout > 0 or (self.polling_timeout is not None and not self.polling_timeout > 0):
            raise InvalidSolverOption(
                "request_timeout and polling_timeout must be positive numbers of seconds; "
                f"got {self.request_timeout} and {self.polling_timeout}"
            )
        if self.retries < 0:
            raise InvalidSolverOption(f"retries must not be negative; got {self.retries}")
        if self.largest_answer < 1:
            raise InvalidSolverOption(f"largest_answer must be a positive number of bytes; got {self.largest_answer}")
        if self.endpoint:
            _check_endpoint(self.endpoint)

    def arguments(self, time_left: float = float("inf")) -> dict[str, Any]:
        """Keyword arguments for any of Ocean's samplers, except the token.

        Args:
            time_left: seconds after which no request may still be waiting.
        """
        longest = min(self.request_timeout, max(_SHORTEST_REQUEST, time_left))
        connecting = min(longest, max(1.0, longest / (self.retries + 1)))
        given = {
            name: getattr(self, name)
            for name in ("endpoint", "solver", "region", "profile", "config_file", "polling_timeout", "proxy")
        }
        return {
            **{name: value for name, value in given.items() if value is not None},
            "request_timeout": (connecting, longest),
            "http_retry_total": self.retries,
            "poll_wait_time": max(1, min(_LONG_POLL_SECONDS, int(longest / 2))),
        }

    @property
    def place(self) -> str:
        """The endpoint, region or profile as text for messages."""
        if self.endpoint:
            return self.endpoint
        return f"region {self.region}" if self.region else f"profile {self.profile}" if self.profile else "D-Wave"


def connection_of(
    connection: Connection | None, endpoint: str | None, token: str | Token | None, service_solver: str | None
) -> Connection:
    """A connection from the object given or from its shorthands.

    Raises:
        InvalidSolverOption: when both are given.
    """
    shorthands = {"endpoint": endpoint, "token": token, "service_solver": service_solver}
    given = [name for name, value in shorthands.items() if value is not None]
    if connection is not None and given:
        raise InvalidSolverOption(f"give {given[0]} either by itself or within connection, not both")
    return connection or Connection(endpoint=endpoint, token=token, solver=service_solver)


def _check_endpoint(endpoint: str) -> None:
    try:
        origin_of(endpoint)
    except ValueError as cause:
        raise InvalidSolverOption(f"endpoint must be a URL, https:// included; got {endpoint!r} ({cause})") from cause
    if "@" in urlsplit(endpoint).netloc:
        raise InvalidSolverOption("endpoint must not hold a user name or a password; give token, or a proxy")


@contextmanager
def opened(kind: Callable[..., Any], connection: Connection, deadline: float, **options: Any) -> Iterator[Any]:
    """One of Ocean's samplers, connected in time and closed whatever happens.

    Nothing is left behind: requests that are pending when an exception leaves the block are cut off seconds later, once
    the service has had time to receive cancellations.

    Args:
        kind: the sampler's class, such as ``LeapHybridCQMSampler`` or ``DWaveSampler``.
        connection: how to reach the service.
        deadline: of ``time.perf_counter()``, for everything done with the sampler.
        options: further keyword arguments of the client.

    Yields:
        The sampler; ``sampler.client.secrets`` masks secrets in texts.

    Raises:
        RemoteSolverError: the subclass that says what went wrong with the connection.

    Warns:
        ServiceDeprecation: of what the service says will be switched off, once for each id.
    """
    where = f"{getattr(kind, '__name__', kind)} at {connection.place}"
    sampler = object.__new__(kind)  # type: ignore[arg-type]
    arguments = {**connection.arguments(deadline - time.perf_counter()), **options}
    token = Token.of(connection.token)
    secrets = Secrets(token)
    transport = Transport(deadline + PATIENCE, connection.retries, connection.largest_answer)

    def begin() -> None:
        try:
            connect(sampler, arguments, token, transport, secrets)
        except BaseException:  # the client starts its threads before it fails
            _end(sampler)
            raise

    try:
        with translated(where, secrets):
            within(deadline, begin, where, late=lambda: _end(sampler))
    except BaseException:
        transport.cut()
        _warn(transport, secrets, where)
        raise
    try:
        yield sampler
    except Exception as failure:  # such as one of ours that quotes the service
        secrets.clean(failure)
        raise
    finally:
        closing = threading.Thread(target=_end, args=(sampler,), name="qubo_compress closing", daemon=True)
        closing.start()
        closing.join(max(PATIENCE, min(2.0, deadline - time.perf_counter())))
        _warn(transport, secrets, where)


def _warn(transport: Transport, secrets: Secrets, where: str) -> None:
    """Warn of what the service said will be switched off; Python shows the same text from here once."""
    for text in transport.deprecations.texts():
        warnings.warn(f"{where} says: {secrets.mask(text)}", ServiceDeprecation, stacklevel=1)


def uploaded(sampler: Any, handle: Any, deadline: float, where: str) -> str:
    """Upload a problem in time and return its identifier.

    Args:
        sampler: from :func:`opened`.
        handle: a file.
        deadline: of ``time.perf_counter()``.
        where: the solver and the service, for messages.

    Raises:
        UploadFailed: when the service failed, also if the last try was still running at the deadline.
        RemoteTimeout: when the deadline passed before any try had ended.
        RemoteSolverError: another subclass, if the service refused it.
    """
    from dwave.cloud.exceptions import ProblemUploadError

    client = sampler.client
    with translated(where, client.secrets):
        uploading = sampler.solver.upload_problem(handle)
        try:
            return str(outcome(uploading, deadline, where))
        except RemoteTimeout:
            if client.upload_failure is None:
                raise RemoteTimeout(
                    f"{where}: the problem was not uploaded within the time limit, and nothing was submitted; raise "
                    "the time limit or try again"
                ) from None
            raise ProblemUploadError("no try succeeded within the time limit") from client.upload_failure


def _end(sampler: Any) -> None:
    client = getattr(sampler, "client", None)
    if client is not None:
        client.end()


def is_simulated(solver: Any) -> bool:
    """Whether a solver of dwave-cloud-client calls itself a mock or a loopback, by name or description."""
    data = getattr(solver, "data", None)
    texts = [
        str(getattr(solver, "name", "")),
        str(getattr(solver, "properties", {}).get("description", "")),
        str(data.get("description", "")) if data is not None and hasattr(data, "get") else "",
    ]
    return any(word in text.lower() for text in texts for word in ("loopback", "mock"))


def seconds(timing: Mapping[str, Any]) -> dict[str, float]:
    """The numeric timing fields of the service, converted from microseconds to seconds.

    Example:
        >>> seconds({"qpu_access_time": 32_000, "run_time": 5_000_000, "warnings": []})
        {'qpu_access_time': 0.032, 'run_time': 5.0}
    """
    return {name: value / 1e6 for name, value in timing.items() if isinstance(value, (int, float))}


def stages(job: Any, wall: float, timing: Mapping[str, float]) -> dict[str, float]:
    """The wall clock of one problem by stage, in seconds.

    ``run`` is the solver's own figure, ``queue`` the rest of the service's time between receipt and solution, and
    ``network`` the rest of the wall clock. If the service reports no such times, everything but ``run`` counts as
    ``network``.

    Args:
        job: the resolved future.
        wall: seconds from submission to result.
        timing: the service's timing fields, in seconds.
    """
    run = timing.get("run_time", timing.get("qpu_access_time", 0.0))
    received, solved = getattr(job, "time_received", None), getattr(job, "time_solved", None)
    at_service = run
    if received is not None and solved is not None:
        at_service = min(wall, max(run, (solved - received).total_seconds()))
    return {"run": run, "queue": at_service - run, "network": max(0.0, wall - at_service)}
