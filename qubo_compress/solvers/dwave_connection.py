"""The way to D-Wave's service and back: how to connect, wait with a deadline, cancel, and close everything.

The Ocean client waits without end, retries ten times, leaves sixteen threads behind when a connection fails
half way, and reports microseconds. What is here bounds each wait, asks the service to cancel what nobody waits
for any more, closes every client, and counts seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qubo_compress.errors import InvalidSolverOption, RemoteSolverError, RemoteTimeout, ServiceFailed
from qubo_compress.solvers.dwave_errors import translate, translated

__all__ = [
    "Connection",
    "cancel",
    "cloud_future",
    "is_simulated",
    "opened",
    "outcome",
    "resolve",
    "seconds",
    "stages",
    "translate",
    "translated",
    "within",
]

Result = TypeVar("Result")
_logger = logging.getLogger(__name__)

SIMULATED_NOTE = "the solver that answered is a stand-in on a classical computer: no D-Wave machine was involved"
"""Goes with every answer of a solver that :func:`is_simulated`."""

_LONG_POLL_SECONDS = 2
"""How long the service may hold a status request; closing a client waits for the one that is open."""

_SHORTEST_REQUEST = 1.5
"""Least seconds for a request, so that a status request that the service holds for one second is not cut off."""

_PAUSES = (0.1, 0.3, 1.0)
"""Seconds before each further attempt to get an answer whose problem is known to the service."""

_PATIENCE = 0.3
"""Seconds that closing or cancelling may take beyond a deadline; what is left ends in a thread of its own."""


@dataclass(frozen=True)
class Connection:
    """How to reach the service; what is left out comes from Ocean's environment variables and files, in this order.

    Args:
        endpoint: URL of the solver API, such as ``https://na-west-1.cloud.dwavesys.com/sapi/v2/``.
        token: the API token; never shown in messages or by ``repr``.
        solver: name of one solver; None for the newest of the right kind.
        region: instead of an endpoint, such as ``"eu-central-1"``.
        profile: section of Ocean's configuration file.
        config_file: path of that file.
        request_timeout: most seconds for one request.
        polling_timeout: most seconds to wait for an answer; None leaves that to the time limit.
        proxy: URL of a proxy.
        retries: how often a request that can be repeated safely is repeated. Submissions are never repeated.

    Raises:
        InvalidSolverOption: for a time-out or a number of retries out of range.

    Example:
        >>> Connection(endpoint="https://example.com/sapi/v2/", token="secret")  # doctest: +ELLIPSIS
        Connection(endpoint='https://example.com/sapi/v2/', solver=None, region=None, ...)
    """

    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)
    solver: str | None = None
    region: str | None = None
    profile: str | None = None
    config_file: str | None = None
    request_timeout: float = 60.0
    polling_timeout: float | None = None
    proxy: str | None = field(default=None, repr=False)  # its URL may hold a password
    retries: int = 3

    def __post_init__(self) -> None:
        if not self.request_timeout > 0 or (self.polling_timeout is not None and not self.polling_timeout > 0):
            raise InvalidSolverOption(
                "request_timeout and polling_timeout must be positive numbers of seconds; "
                f"got {self.request_timeout} and {self.polling_timeout}"
            )
        if self.retries < 0:
            raise InvalidSolverOption(f"retries must not be negative; got {self.retries}")

    def arguments(self, time_left: float = float("inf")) -> dict[str, Any]:
        """Keyword arguments for any of Ocean's samplers.

        Args:
            time_left: seconds after which no request shall still be waiting.
        """
        longest = min(self.request_timeout, max(_SHORTEST_REQUEST, time_left))
        connecting = min(longest, max(1.0, longest / (self.retries + 1)))
        given = {
            name: getattr(self, name)
            for name in ("endpoint", "token", "solver", "region", "profile", "config_file", "polling_timeout", "proxy")
        }
        return {
            **{name: value for name, value in given.items() if value is not None},
            "request_timeout": (connecting, longest),
            "http_retry_total": self.retries,
            "poll_wait_time": max(1, min(_LONG_POLL_SECONDS, int(longest / 2))),
        }

    @property
    def place(self) -> str:
        """Endpoint, region or profile in words, for messages."""
        if self.endpoint:
            return self.endpoint
        return f"region {self.region}" if self.region else f"profile {self.profile}" if self.profile else "D-Wave"


def within(deadline: float, work: Callable[[], Result], where: str, late: Callable[[], None] | None = None) -> Result:
    """Do ``work`` in a thread and wait for it, but not beyond a deadline; Ctrl-C is answered at once.

    Args:
        deadline: of ``time.perf_counter()``.
        work: what to do; it cannot be stopped, only left alone.
        where: the solver and the service, for the message.
        late: called when work has ended after nobody waited for it any more.

    Raises:
        RemoteTimeout: when the deadline passed first.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="qubo_compress remote call", daemon=True).start()
    try:
        return outcome(done, deadline, where)
    except BaseException:
        if not done.done() and late is not None:
            done.add_done_callback(lambda _: late())
        raise


def outcome(future: Future[Result], deadline: float, where: str) -> Result:
    """The result of work that is already under way, such as an upload.

    Raises:
        RemoteTimeout: when the deadline passed first.
    """
    try:
        return future.result(max(0.0, deadline - time.perf_counter()))
    except WaitTimeout:
        if future.done():
            raise
        raise RemoteTimeout(
            f"{where}: the service did not answer within the time limit; raise the time limit or try again"
        ) from None


@contextmanager
def opened(kind: Callable[..., Any], connection: Connection, deadline: float, **options: Any) -> Iterator[Any]:
    """One of Ocean's samplers, connected in time and closed whatever happens.

    Args:
        kind: the sampler's class, such as ``LeapHybridCQMSampler`` or ``DWaveSampler``.
        connection: how to reach the service.
        deadline: of ``time.perf_counter()``, for all that is done with the sampler.
        options: further keyword arguments of the class.

    Raises:
        RemoteSolverError: the subclass that says what went wrong with the connection.
    """
    where = f"{getattr(kind, '__name__', kind)} at {connection.place}"
    sampler = object.__new__(kind)  # type: ignore[arg-type]
    arguments = {**connection.arguments(deadline - time.perf_counter()), **options}

    def connect() -> None:
        try:
            sampler.__init__(**arguments)
        except BaseException:  # the client has started its threads before it fails
            _close(sampler, waiting=False)
            raise

    with translated(where, connection.token):
        within(deadline, connect, where, late=lambda: _close(sampler, waiting=False))
    waiting = True
    try:
        yield sampler
    except (RemoteTimeout, KeyboardInterrupt):
        waiting = False  # what is still under way is not waited for
        raise
    finally:
        closing = threading.Thread(target=_close, args=(sampler, waiting), name="qubo_compress closing", daemon=True)
        closing.start()
        closing.join(max(_PATIENCE, min(2.0, deadline - time.perf_counter())))


def _close(sampler: Any, waiting: bool) -> None:
    client = getattr(sampler, "client", None)
    if client is not None:
        client.close(wait=waiting)


def resolve(future: Any, deadline: float, where: str, token: str | None = None) -> Any:
    """Wait for a problem that was submitted, until its answer is here.

    When the deadline passes or Ctrl-C is pressed, the service is asked to cancel the problem. When the connection
    breaks or the service stumbles after the problem has got its number, the answer is asked for again: it may
    have been paid for.

    Args:
        future: of dwave-cloud-client, or a sample set that waits for one.
        deadline: of ``time.perf_counter()``.
        where: the solver and the service, for messages.
        token: removed from messages.

    Returns:
        The future that holds the answer: the one given, or one that asked again for the same problem.

    Raises:
        RemoteTimeout: when the deadline passed first.
        RemoteSolverError: another subclass, for what the service or the connection did.
        KeyboardInterrupt: after the cancellation.
    """
    job = cloud_future(future)
    for pause in (*_PAUSES, None):
        try:
            _wait(job, deadline, where)
            with translated(where, token):
                within(deadline + _PATIENCE, job.result, where)
            return job
        except KeyboardInterrupt:
            cancel(job)
            raise
        except RemoteSolverError as failure:
            last = pause is None or time.perf_counter() + pause >= deadline
            if last or job.id is None or not _passing(failure):
                if isinstance(failure, RemoteTimeout):
                    cancel(job)
                raise
            _logger.warning("asking again for problem %s: %s", job.id, failure)
        job = _ask_again(job, pause or 0.0)
    raise AssertionError("the last attempt returns or raises")


def _wait(job: Any, deadline: float, where: str) -> None:
    while not job.wait(max(0.0, min(0.5, deadline - time.perf_counter()))):
        if time.perf_counter() >= deadline:
            raise RemoteTimeout(
                f"{where}: no answer to problem {job.id or '(not yet numbered)'} within the time limit; the "
                "service was asked to cancel it. Raise the time limit, or the reserve for the queue, and try again"
            )


def _passing(failure: RemoteSolverError) -> bool:
    """Whether it lies with the connection or the service's front, and not with the problem."""
    from dwave.cloud.exceptions import SolverFailureError
    from requests.exceptions import RequestException

    cause = failure.__cause__
    wrong_side = isinstance(failure, (ServiceFailed, RemoteTimeout))
    return wrong_side and isinstance(cause, RequestException) and not isinstance(cause, SolverFailureError)


def _ask_again(job: Any, pause: float) -> Any:
    try:
        time.sleep(pause)
    except KeyboardInterrupt:
        cancel(job)
        raise
    again = job.solver.client.retrieve_answer(job.id)
    again.solver = job.solver
    return again


def cancel(job: Any, patience: float = _PATIENCE) -> None:
    """Ask the service to cancel a problem, which it does for those still in its queue.

    A problem whose submission hangs so long that it has no number cannot be cancelled: it may still run.

    Args:
        job: a future of dwave-cloud-client, or a sample set that waits for one.
        patience: seconds to wait for the problem's number, without which it cannot be cancelled.
    """
    job = cloud_future(job)
    if job.id is None and not job.done():
        with suppress(WaitTimeout):
            job.wait_id(patience)
    job.cancel()


def cloud_future(waiting: Any) -> Any:
    """The dwave-cloud-client future behind a sample set that is not yet resolved, or the future itself."""
    while hasattr(waiting, "_future"):
        waiting = waiting._future
    return waiting


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
    """The service's timing fields, all of them that are numbers, from microseconds to seconds.

    Example:
        >>> seconds({"qpu_access_time": 32_000, "run_time": 5_000_000, "warnings": []})
        {'qpu_access_time': 0.032, 'run_time': 5.0}
    """
    return {name: value / 1e6 for name, value in timing.items() if isinstance(value, (int, float))}


def stages(job: Any, wall: float, timing: Mapping[str, float]) -> dict[str, float]:
    """Where the wall clock of one problem went, in seconds.

    ``run`` is the solver's own figure, ``queue`` the rest of what passed at the service between receipt and
    solution, ``network`` what is left of the wall clock. Where the service gives no such times, all that
    is not ``run`` counts as ``network``.

    Args:
        job: the resolved future.
        wall: seconds from submission to result.
        timing: the service's own fields, in seconds.
    """
    run = timing.get("run_time", timing.get("qpu_access_time", 0.0))
    received, solved = getattr(job, "time_received", None), getattr(job, "time_solved", None)
    at_service = run
    if received is not None and solved is not None:
        at_service = min(wall, max(run, (solved - received).total_seconds()))
    return {"run": run, "queue": at_service - run, "network": max(0.0, wall - at_service)}
