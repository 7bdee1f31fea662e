"""Options of the directly used annealers, their checks, and the parameters for the chip."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.solvers.dwave.connection import Connection, connection_of
from qubo_compress.solvers.dwave.qpu_embedding import USER_CACHE
from qubo_compress.solvers.dwave.token import Token
from qubo_compress.solvers.solver import Solver, make_solver

_REVERSE_SCHEDULE = ((0.0, 1.0), (5.0, 0.45), (25.0, 0.45), (30.0, 1.0))

Schedule = tuple[tuple[float, float], ...]
"""(microseconds, s) points of an anneal."""


@dataclass(frozen=True)
class QpuOptions(Solver):
    """How to reach and use a quantum annealer.

    Args:
        sampler: a structured dimod sampler to use instead of a connection, such as Ocean's ``MockDWaveSampler``. One
            that the user connected makes requests in Ocean's way, without the bounds of a connection.
        connection: how to reach the service; default: Ocean's variables and configuration files.
        endpoint: shorthand for the connection's.
        token: shorthand for the connection's; never shown, logged or pickled.
        service_solver: shorthand for the connection's ``solver``: the name of a chip at the service.
        encoding: ``"domain-wall"`` or ``"one-hot"``.
        num_reads: samples per submission.
        submissions: most submissions; each is charged for.
        annealing_time: microseconds; None for the chip's own.
        chain_strength_factor: times uniform torque compensation, over spins.
        roof_duality: whether to fix spins with a proven value before each submission.
        cache: folder of known embeddings, ``"user"`` for the user's cache folder, None for none.
        reverse_from: a solver whose answer reverse annealing starts from, by name or as an object; later submissions
            start from the best so far.
        anneal_schedule: (microseconds, s) points; for reverse annealing it begins and ends with s = 1, and None means
            a pause of 20 microseconds at s = 0.45.
        label: shown beside the problems in Leap's dashboard.
        dry_run: submit nothing and raise :class:`~qubo_compress.errors.DryRun` with a :class:`Preview`.

    Raises:
        InvalidSolverOption: for an option out of range, or a connection and a shorthand for the same.
        UnknownName: for another encoding.
    """

    repeats: ClassVar[bool] = False
    remote: ClassVar[bool] = True
    accepts_pair_costs: ClassVar[bool] = True
    sampler: Any = None
    connection: Connection | None = None
    endpoint: str | None = None
    token: str | Token | None = field(default=None, repr=False)
    service_solver: str | None = None
    encoding: str = "domain-wall"
    num_reads: int = 100
    submissions: int = 8
    annealing_time: float | None = None
    chain_strength_factor: float = 1.414
    roof_duality: bool = True
    cache: str | None = USER_CACHE
    reverse_from: str | Solver | None = None
    anneal_schedule: Schedule | None = None
    label: str = "qubo_compress"
    dry_run: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", Token.of(self.token))
        encodings.get(self.encoding)
        connection_of(self.connection, self.endpoint, self.token, self.service_solver)
        if self.sampler is not None and (self.endpoint, self.token, self.service_solver) != (None, None, None):
            raise InvalidSolverOption("give a sampler, or how to connect to the service, and not both")
        if self.num_reads < 1 or self.submissions < 1:
            raise InvalidSolverOption(
                f"num_reads and submissions must be at least 1; got {self.num_reads} and {self.submissions}"
            )
        if not 0 < self.chain_strength_factor < np.inf:
            raise InvalidSolverOption(f"chain_strength_factor must be positive; got {self.chain_strength_factor}")
        if self.annealing_time is not None and self._schedule() is not None:
            raise InvalidSolverOption("annealing_time and an anneal schedule exclude each other; give one of them")
        if self.reverse_from is not None:
            make_solver(self.reverse_from)
        _check_schedule(self._schedule(), self.reverse_from is not None)

    def parameters(self) -> dict[str, Any]:
        """The parameters of every submission, except the initial state of reverse annealing."""
        schedule = self._schedule()
        given: Mapping[str, Any] = {
            "num_reads": self.num_reads,
            "annealing_time": self.annealing_time,
            "anneal_schedule": None if schedule is None else [list(point) for point in schedule],
            "reinitialize_state": True if self.reverse_from is not None else None,
            "answer_mode": "raw",
            "label": self.label,
        }
        return {name: value for name, value in given.items() if value is not None}

    def _schedule(self) -> Schedule | None:
        if self.anneal_schedule is None and self.reverse_from is not None:
            return _REVERSE_SCHEDULE
        return self.anneal_schedule


def _check_schedule(schedule: Schedule | None, reverse: bool) -> None:
    if schedule is None:
        return
    times, fractions = [point[0] for point in schedule], [point[1] for point in schedule]
    rising = all(a < b for a, b in itertools.pairwise(times))
    first = 1.0 if reverse else 0.0
    if len(schedule) < 2 or times[0] != 0 or not rising or fractions[0] != first or fractions[-1] != 1.0:
        raise InvalidSolverOption(
            f"anneal_schedule must rise in time from 0 and go from s = {first:.0f} to s = 1 "
            f"({'reverse' if reverse else 'forward'} annealing); got {schedule}"
        )
