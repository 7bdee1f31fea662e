"""Faults to inject into the next requests or problems."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

KINDS = ("list", "submit", "poll", "load", "download", "cancel", "upload", "regions", "solve")
"""Requests of a client, and ``"solve"``: the work on a problem, between them."""

QUOTA_MESSAGE = "Problem not accepted because user has insufficient remaining solver access time in project LOOPBACK"
"""Leap's wording from memory; not checked against the real service."""

MESSAGES = {
    301: "Moved permanently",
    302: "Found",
    303: "See other",
    307: "Temporary redirect",
    308: "Permanent redirect",
    400: "Bad request",
    401: "Invalid token or access denied",
    403: "Forbidden",
    404: "Not found",
    429: "Too many requests",
    500: "Internal server error",
    502: "Bad gateway",
    503: "Service unavailable",
}


@dataclass(frozen=True)
class Fault:
    """One fault of a request or a problem.

    Args:
        status: HTTP status to answer with instead of doing what was asked.
        message: ``error_msg`` of the answer; a usual one when left out. With ``kind="solve"``: the
            ``error_message`` of the problem, which ends as FAILED.
        delay: seconds to wait first; the close of the server cuts it short. With ``kind="solve"`` the
            problem stays PENDING for so long.
        drop: do what was asked, then close the connection in the middle of the answer.
        item_error: (code, message) for each problem of a submission or cancellation, within an answer of
            status 200.
        retry_after: seconds for a ``Retry-After`` header; clients repeat GET requests after them.
        location: where a status from 300 to 399 sends the client.
        body: do what was asked, then answer this instead, in place of the JSON or the bytes that were due.
        deprecation: do what was asked, with this value of the header ``X-Deprecation``.
        drip: the answer never ends: after what was due comes a space every so many seconds; 0 for a flood, as fast as
            it is taken.
    """

    status: int | None = None
    message: str | None = None
    delay: float = 0.0
    drop: bool = False
    item_error: tuple[int, str] | None = None
    retry_after: int | None = None
    location: str | None = None
    body: bytes | None = None
    drip: float | None = None
    deprecation: str | None = None


class Faults:
    """The pending faults, by kind of request, in the order of their addition."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Fault]] = defaultdict(deque)

    def next(self, kind: str, *, times: int = 1, **fault: Any) -> None:
        """Let the next ``times`` requests of a kind meet a fault.

        Args:
            kind: one of :data:`KINDS`.
            times: how many requests.
            fault: the fields of a :class:`Fault`.

        Raises:
            ValueError: for an unknown kind, a fault that does nothing, or one that the kind cannot have.
        """
        met = Fault(**fault)
        _check(kind, met, times)
        with self._lock:
            self._waiting[kind].extend([met] * times)

    def quota_exceeded(self, *, as_item: bool = True, times: int = 1) -> None:
        """Let the next submissions fail for lack of solver time: each problem on its own, or as status 429."""
        if as_item:
            self.next("submit", item_error=(400, QUOTA_MESSAGE), times=times)
        else:
            self.next("submit", status=429, message=QUOTA_MESSAGE, times=times)

    def take(self, kind: str) -> Fault | None:
        """Remove and return the next fault of a kind."""
        with self._lock:
            waiting = self._waiting[kind]
            return waiting.popleft() if waiting else None

    def clear(self) -> None:
        """Drop all pending faults of every kind."""
        with self._lock:
            self._waiting.clear()

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._waiting.values()))


def _check(kind: str, fault: Fault, times: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"there is no kind of request {kind!r}; there are {', '.join(KINDS)}")
    if times < 1:
        raise ValueError(f"times must be at least 1; got {times}")
    if fault.delay < 0 or (fault.drip or 0.0) < 0:
        raise ValueError(f"delay and drip must not be negative; got {fault.delay} and {fault.drip}")
    if fault == Fault():
        raise ValueError(f"this fault of {kind} does nothing; give a status, a delay, drop=True or an error")
    if kind != "solve":
        _check_status(fault)
    if fault.item_error is not None and kind not in ("submit", "cancel"):
        raise ValueError(f"only submit and cancel have one answer per problem, not {kind}")
    if kind == "solve" and fault != Fault(message=fault.message, delay=fault.delay):
        raise ValueError("solve is no request: it takes a message (the problem fails with it) and a delay")


def _check_status(fault: Fault) -> None:
    """Check which options go with a status, and which without."""
    if fault.status is None:
        if fault == Fault(message=fault.message, retry_after=fault.retry_after, location=fault.location):
            raise ValueError("message, retry_after and location belong to a status; give one")
        return
    if not 300 <= fault.status <= 599:
        raise ValueError(f"status must be an HTTP redirect or error, 300 to 599; got {fault.status}")
    if (fault.location is not None) != (fault.status < 400):
        raise ValueError("a location goes with a status from 300 to 399, and such a status with a location")
    if fault.drop or fault.item_error or fault.body is not None:
        raise ValueError("a status replaces the answer: it goes with none of drop, item_error and body")
