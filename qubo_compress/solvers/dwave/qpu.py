"""D-Wave's annealers, asked directly: what fits a chip goes there whole, and what does not is refused at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import DryRun, InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.solvers.dwave.connection import Connection, opened
from qubo_compress.solvers.dwave.qpu_device import Device
from qubo_compress.solvers.dwave.qpu_embedding import USER_CACHE
from qubo_compress.solvers.dwave.qpu_search import Preview, QpuSearch, classical_start
from qubo_compress.solvers.dwave.token import Secrets, Token
from qubo_compress.solvers.solver import RawSolution, SearchLimits, Solver, make_solver, solvers

__all__ = ["Preview", "Qpu"]

_REVERSE_SCHEDULE = ((0.0, 1.0), (5.0, 0.45), (25.0, 0.45), (30.0, 1.0))
_PREVIEW_SECONDS = 30.0
_UNCONNECTED: Mapping[str, Any] = {"connection": None, "endpoint": None, "token": None, "service_solver": None}


@solvers.register
@dataclass(frozen=True)
class Qpu:
    """Sample the encoded problem on a quantum annealer, searching for the budgets' prices.

    Dominated choices and what roof duality proves go first. What is left must fit the chip's largest clique, or be
    sparse enough for another embedding; otherwise the problem is refused before anything is searched or sent. Each
    round of the price search is one submission. Samples over budget are repaired, and what is left of a budget
    is spent, classically; ``details`` says how good the samples were before that.

    Args:
        sampler: a structured dimod sampler to use instead of a connection, such as Ocean's ``MockDWaveSampler``. One
            that is connected makes its requests as Ocean does: nothing that a connection bounds holds for it.
        connection: how to reach the service; by default, Ocean's configuration files and variables say.
        endpoint: shorthand for the connection's.
        token: shorthand for the connection's; never shown, logged or pickled.
        service_solver: shorthand for the connection's ``solver``: the name of a chip at the service.
        encoding: ``"domain-wall"`` or ``"one-hot"``.
        num_reads: samples per submission.
        submissions: most submissions; each is charged for.
        annealing_time: microseconds; None for the chip's own.
        chain_strength_factor: times uniform torque compensation, over spins.
        roof_duality: whether spins that are proven are fixed before each submission.
        cache: folder of embeddings found before, ``"user"`` for the user's cache folder, None for none.
        reverse_from: a solver whose answer reverse annealing starts from, by name or as an object; later submissions
            start from the best so far.
        anneal_schedule: (microseconds, s) points; for reverse annealing it begins and ends with s = 1, and None stands
            for a pause of 20 microseconds at s = 0.45.
        label: shown beside the problems in Leap's dashboard.
        dry_run: submit nothing and raise :class:`~qubo_compress.errors.DryRun` with a :class:`Preview`.

    Raises:
        InvalidSolverOption: for an option out of range, or a connection and a shorthand for the same.
        UnknownName: for another encoding.

    Example:
        >>> from dwave.system.testing import MockDWaveSampler
        >>> from qubo_compress import ChoiceProblem, solve
        >>> chip = MockDWaveSampler(topology_type="zephyr", topology_shape=[3, 4])
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> solution = solve(problem, Qpu(sampler=chip, submissions=3, cache=None), time_limit=30.0)
        >>> problem.is_feasible(solution.assignment), solution.work <= 3, solution.details["simulated"]
        (True, True, True)
    """

    name: ClassVar[str] = "qpu"
    repeats: ClassVar[bool] = False
    remote: ClassVar[bool] = True
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
    anneal_schedule: tuple[tuple[float, float], ...] | None = None
    label: str = "qubo_compress"
    dry_run: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", Token.of(self.token))
        encodings.get(self.encoding)
        ways = [name for name in ("endpoint", "token", "service_solver") if getattr(self, name) is not None]
        if (self.connection is not None or self.sampler is not None) and ways:
            raise InvalidSolverOption(f"give {ways[0]} either by itself or within connection, and not beside sampler")
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

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Submit until the submissions, which are the work, or the time are used up.

        Raises:
            DryRun: with ``dry_run=True``.
            ProblemTooLarge: the chip has no room for the problem; nothing was submitted.
            RemoteSolverError: its subclass says what went wrong with the first submission; when a later one
                fails, what had come back is returned, and a note says why the search ended.
        """
        start = time.perf_counter()
        try:
            with self.opened(limits.seconds) as ready:
                search = QpuSearch(ready, problem, limits, rng, start)
                if self.dry_run:
                    preview = search.preview()
                    raise DryRun(f"dry run, nothing was submitted: {preview}", preview)
                found = search.run()
        except KeyboardInterrupt:
            found = _interrupted(problem, rng)
        seconds = time.perf_counter() - start - found.timing.get("compile", 0.0)
        return replace(found, timing={**found.timing, "solve": seconds})

    def preview(self, problem: ChoiceProblem) -> Preview:
        """Bits, embedding and chip time of a search, without submitting anything.

        Raises:
            ProblemTooLarge: as a search would.
            InvalidSolverOption: for reads or times that the chip does not take.
            RemoteSolverError: when the service cannot be reached.
        """
        start = time.perf_counter()
        with self.opened(_PREVIEW_SECONDS) as ready:
            return QpuSearch(ready, problem, SearchLimits(_PREVIEW_SECONDS), np.random.default_rng(0), start).preview()

    @contextmanager
    def opened(self, seconds: float) -> Iterator[Qpu]:
        """The same solver, its connection held open and its embeddings kept, for several searches.

        Args:
            seconds: most seconds that all of them take.
        """
        if isinstance(self.sampler, Device):
            yield self
        elif self.sampler is not None:
            yield replace(self, sampler=Device(self.sampler, self.cache, _secrets_of(self.sampler)))
        else:
            from dwave.system import DWaveSampler

            deadline = time.perf_counter() + seconds
            connection = self.connection or Connection(
                endpoint=self.endpoint, token=self.token, solver=self.service_solver
            )
            with opened(DWaveSampler, connection, deadline) as sampler:
                yield replace(self, sampler=Device(sampler, self.cache, sampler.client.secrets), **_UNCONNECTED)

    @property
    def largest_bits(self) -> int | None:
        """The most bits that surely fit; known while :meth:`opened`."""
        return self.sampler.largest_clique if isinstance(self.sampler, Device) else None

    def parameters(self) -> dict[str, Any]:
        """Of every submission, apart from the state that reverse annealing starts from."""
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

    def _schedule(self) -> tuple[tuple[float, float], ...] | None:
        if self.anneal_schedule is None and self.reverse_from is not None:
            return _REVERSE_SCHEDULE
        return self.anneal_schedule


def _check_schedule(schedule: tuple[tuple[float, float], ...] | None, reverse: bool) -> None:
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


def _secrets_of(sampler: Any) -> Secrets:
    """The token of a sampler that is connected by itself."""
    token = getattr(getattr(getattr(sampler, "client", None), "config", None), "token", None)
    return Secrets(token if isinstance(token, str) else None)


def _interrupted(problem: ChoiceProblem, rng: np.random.Generator) -> RawSolution:
    """Ctrl-C before the first submission: the classical start is all there is."""
    assignment = classical_start(problem, rng)
    note = "interrupted before anything was submitted; the answer is the classical start"
    return RawSolution(assignments=(assignment,), interrupted=True, notes=(note,), details={"submissions": 0})
