"""The inputs and outputs of the classical solvers."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NOTE = "loopback, classical: answered on this machine, no annealer was involved; timings are made up"
"""Part of every description, and of every answer whose format has room for it."""

EAGER_SECONDS = 0.1
"""Most CPU seconds for a hybrid problem on an eager server."""


class ProblemRejected(Exception):
    """The problem ends as FAILED with this message; the client raises ``SolverFailureError``."""


@dataclass(frozen=True)
class ServerSettings:
    """How the solvers behave.

    Args:
        eager: let hybrid solvers end after a tenth of a second, whatever the time limit.
        infeasible_first: let the constrained solver return a sample that breaks constraints and has less
            energy than all others, as the real one sometimes does.
        chip_temperature: None: as cold as the problem needs. A number: in units of the largest coupling of
            the chip; small biases then drown, as on real chips.
        sweeps_per_microsecond: of simulated annealing, for every microsecond of annealing time.
    """

    eager: bool = False
    infeasible_first: bool = False
    chip_temperature: float | None = None
    sweeps_per_microsecond: float = 10.0


@dataclass(frozen=True)
class Task:
    """One problem for a solver.

    Args:
        type: ``"ising"``, ``"qubo"``, ``"bqm"``, ``"cqm"``, ``"dqm"`` or ``"nl"``.
        data: the qp encoding of a problem for a chip, or the uploaded bytes of a hybrid one.
        params: sent along by the client.
        properties: of the solver.
        rng: the only source of randomness.
        settings: of the server.
        stopped: set when the problem is cancelled or the server closes.
    """

    type: str
    data: Any
    params: Mapping[str, Any]
    properties: Mapping[str, Any]
    rng: np.random.Generator
    settings: ServerSettings = field(default_factory=ServerSettings)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def seed(self) -> int:
        """A fresh 31-bit seed for a sampler."""
        return int(self.rng.integers(2**31))

    def file(self) -> io.BytesIO:
        """The uploaded bytes as an open file."""
        return io.BytesIO(self.data)

    def time_limit(self) -> float:
        """The time limit that the client requested, in seconds.

        Raises:
            ProblemRejected: when it is not a positive number, or when there are unknown parameters.
        """
        unknown = sorted(set(self.params) - set(self.properties["parameters"]))
        if unknown:
            raise ProblemRejected(f"unknown parameters {unknown}; known are {sorted(self.properties['parameters'])}")
        limit = self.params.get("time_limit")
        longest = 3600 * self.properties["maximum_time_limit_hrs"]
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= longest:
            raise ProblemRejected(f"time_limit must be a number of seconds in (0, {longest:g}]; got {limit!r}")
        return float(limit)


@dataclass(frozen=True)
class Answer:
    """An answer in the wire format: JSON, and for nonlinear problems the bytes of the states."""

    message: dict[str, Any]
    data: bytes | None = None


class Clock:
    """Counts the seconds of a hybrid solve and decides when to end it.

    An eager server also counts CPU seconds, so that its answers are as good on a loaded machine.
    """

    def __init__(self, task: Task) -> None:
        self.limit = task.time_limit()
        self.work = EAGER_SECONDS if task.settings.eager else math.inf
        self.start = time.perf_counter()
        self.worked = time.process_time()
        self._stopped = task.stopped

    def left(self) -> float:
        """Seconds left; zero if the time is over or the problem was cancelled."""
        if self._stopped.is_set():
            return 0.0
        waited, worked = time.perf_counter() - self.start, time.process_time() - self.worked
        return max(0.0, min(self.limit - waited, self.work - worked))

    def over(self) -> bool:
        """Whether the time is over or the problem cancelled."""
        return self.left() <= 0

    def info(self) -> dict[str, Any]:
        """Times as a hybrid solver reports them, in microseconds; no chip was accessed."""
        return {
            "qpu_access_time": 0,
            "charge_time": round(1e6 * self.limit),
            "run_time": round(1e6 * (time.perf_counter() - self.start)),
        }


Solve = Callable[[Task], Answer]
