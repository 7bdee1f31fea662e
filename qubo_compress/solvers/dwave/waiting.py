"""Waiting for D-Wave's service: never beyond a deadline, and abandoned problems are cancelled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as WaitTimeout
from contextlib import suppress
from typing import Any, TypeVar

from qubo_compress.errors import QuotaExceeded, RemoteSolverError, RemoteTimeout, ServiceFailed
from qubo_compress.solvers.dwave.errors import translated
from qubo_compress.solvers.dwave.token import Secrets
from qubo_compress.solvers.dwave.transport import TransportFailed

Result = TypeVar("Result")
_logger = logging.getLogger(__name__)

_PAUSES = (0.1, 0.3, 1.0)
"""Seconds before each retry to get the answer to a problem that the service has accepted."""

_LOOK = 0.5
"""Seconds between two looks at the clock."""

_UNDER_WAY = ("PENDING", "IN_PROGRESS")

PATIENCE = 0.3
"""Seconds that closing or cancelling may take beyond a deadline; the rest ends in a separate thread."""


def within(deadline: float, work: Callable[[], Result], where: str, late: Callable[[], None] | None = None) -> Result:
    """Run ``work`` in a thread and wait for it, but not beyond a deadline; Ctrl-C takes effect at once.

    Args:
        deadline: of ``time.perf_counter()``.
        work: the function to run; it cannot be stopped, only abandoned.
        where: the solver and the service, for the message.
        late: called when abandoned work has ended.

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
    """The result of work that has already started, such as an upload.

    Raises:
        RemoteTimeout: when the deadline passed first.
    """
    while not future.done() and time.perf_counter() < deadline:
        wait((future,), _until_next_look(deadline))
    if not future.done():
        raise RemoteTimeout(
            f"{where}: the service did not answer within the time limit; raise the time limit or try again"
        )
    return future.result()


def resolve(future: Any, deadline: float, where: str, secrets: Secrets | None = None) -> Any:
    """Wait for the answer to a submitted problem.

    If the deadline passes, Ctrl-C is pressed or the wait fails, the service is asked to cancel the problem. If the
    connection breaks or the service fails after the problem has its identifier, the answer is first requested again,
    because it may have been paid for.

    Args:
        future: of dwave-cloud-client, or a sample set that waits for one.
        deadline: of ``time.perf_counter()``.
        where: the solver and the service, for messages.
        secrets: removed from messages and from the client's exceptions.

    Returns:
        The future that holds the answer: the one given, or one from another request for the same problem.

    Raises:
        RemoteTimeout: when the deadline passed first.
        RemoteSolverError: another subclass, for a failure of the service or the connection.
        KeyboardInterrupt: after the cancellation.
    """
    job = cloud_future(future)
    for pause in (*_PAUSES, None):
        try:
            _wait(job, deadline, where)
            with translated(where, secrets):
                within(deadline + PATIENCE, job.result, where)
            return job
        except KeyboardInterrupt:
            cancel(job)
            raise
        except RemoteSolverError as failure:
            last = pause is None or time.perf_counter() + pause >= deadline
            if last or job.id is None or not _passing(failure):
                cancel(job)
                raise
            _logger.warning("asking again for problem %s: %s", (secrets or Secrets()).mask(str(job.id)), failure)
        job = _ask_again(job, pause or 0.0)
    raise AssertionError("the last attempt returns or raises")


def _until_next_look(deadline: float) -> float:
    """Seconds to wait before reading the clock again: it need not be the clock that the wait itself counts on."""
    return max(0.0, min(_LOOK, deadline - time.perf_counter()))


def _wait(job: Any, deadline: float, where: str) -> None:
    while not job.wait(_until_next_look(deadline)):
        if time.perf_counter() >= deadline:
            raise RemoteTimeout(
                f"{where}: no answer to problem {job.id or '(not yet numbered)'} within the time limit; the "
                "service was asked to cancel it. Raise the time limit, or the reserve for the queue, and try again"
            )


def _passing(failure: RemoteSolverError) -> bool:
    """Whether a failure is due to the connection or the service's front end, and not to the problem."""
    from dwave.cloud.exceptions import SolverFailureError
    from requests.exceptions import RequestException

    cause = failure.__cause__
    if isinstance(cause, TransportFailed):
        return cause.passing
    kind = isinstance(failure, (ServiceFailed, RemoteTimeout, QuotaExceeded))  # HTTP 429: too many requests
    return kind and isinstance(cause, RequestException) and not isinstance(cause, SolverFailureError)


def _ask_again(job: Any, pause: float) -> Any:
    try:
        time.sleep(pause)
    except KeyboardInterrupt:
        cancel(job)
        raise
    return _retrieved(job)


def _retrieved(job: Any) -> Any:
    again = job.solver.client.retrieve_answer(job.id)
    again.solver, again.remote_status = job.solver, job.remote_status  # what is known, if no answer comes
    return again


def cancel(job: Any, patience: float = PATIENCE) -> None:
    """Ask the service to cancel a problem, which it does for those still in its queue.

    A problem whose submission hangs so long that it has no identifier cannot be cancelled: it may still run.

    Args:
        job: a future of dwave-cloud-client, or a sample set that waits for one.
        patience: seconds to wait for the problem's identifier, without which it cannot be cancelled.
    """
    job = cloud_future(job)
    if job.id is None and not job.done():
        with suppress(WaitTimeout):
            job.wait_id(patience)
    if job.done() and job.id is not None and job.remote_status in _UNDER_WAY:
        # Only abandoned here, and a future that is done cancels nothing. The client is told the identifier alone: with
        # a future of the answer, it would go on asking a service that has just failed.
        job.solver.client._cancel(job.id, None)
    else:
        job.cancel()


def cloud_future(waiting: Any) -> Any:
    """The dwave-cloud-client future behind a sample set that is not yet resolved, or the future itself."""
    while hasattr(waiting, "_future"):
        waiting = waiting._future
    return waiting
