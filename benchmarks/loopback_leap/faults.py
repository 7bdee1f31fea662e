"""Faults to inject: what goes wrong with the next requests, or with the next problems."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass

KINDS = ("list", "submit", "poll", "load", "download", "cancel", "upload", "solve")
"""Requests of a client, and ``"solve"``: the work on a problem, between them."""

QUOTA_MESSAGE = "Problem not accepted because user has insufficient remaining solver access time in project LOOPBACK"
"""As Leap is remembered to put it; not checked against the real service."""

MESSAGES = {
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
    """One thing that goes wrong.

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
    """

    status: int | None = None
    message: str | None = None
    delay: float = 0.0
    drop: bool = False
    item_error: tuple[int, str] | None = None
    retry_after: int | None = None


class Faults:
    """The faults still to come, by kind of request, in the order in which they were put in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Fault]] = defaultdict(deque)

    def next(
        self,
        kind: str,
        *,
        times: int = 1,
        status: int | None = None,
        message: str | None = None,
        delay: float = 0.0,
        drop: bool = False,
        item_error: tuple[int, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Let the next ``times`` requests of a kind meet a fault; see :class:`Fault`.

        Raises:
            ValueError: for an unknown kind, a fault that does nothing, or one that the kind cannot have.
        """
        fault = Fault(status, message, delay, drop, item_error, retry_after)
        _check(kind, fault, times)
        with self._lock:
            self._waiting[kind].extend([fault] * times)

    def quota_exceeded(self, *, as_item: bool = True, times: int = 1) -> None:
        """Let the next submissions fail for lack of solver time: each problem on its own, or as status 429."""
        if as_item:
            self.next("submit", item_error=(400, QUOTA_MESSAGE), times=times)
        else:
            self.next("submit", status=429, message=QUOTA_MESSAGE, times=times)

    def take(self, kind: str) -> Fault | None:
        """The next fault of a kind, which is then used up."""
        with self._lock:
            waiting = self._waiting[kind]
            return waiting.popleft() if waiting else None

    def clear(self) -> None:
        """Forget all faults still to come."""
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
    if fault.delay < 0:
        raise ValueError(f"delay must not be negative; got {fault.delay}")
    if fault.status is not None and not 400 <= fault.status <= 599:
        raise ValueError(f"status must be an HTTP error, 400 to 599; got {fault.status}")
    if fault.status is not None and (fault.drop or fault.item_error):
        raise ValueError("a status replaces the answer: it goes with neither drop nor item_error")
    if fault.item_error is not None and kind not in ("submit", "cancel"):
        raise ValueError(f"only submit and cancel have one answer per problem, not {kind}")
    if kind == "solve":
        if fault.status is not None or fault.drop:
            raise ValueError("solve is no request: it takes a message (the problem fails with it) and a delay")
        harmless = fault.message is None and not fault.delay
    else:
        harmless = fault.status is None and not fault.drop and fault.item_error is None and not fault.delay
    if harmless:
        raise ValueError(f"this fault of {kind} does nothing; give a status, a delay, drop=True or an error")
