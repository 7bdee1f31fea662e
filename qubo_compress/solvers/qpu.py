"""D-Wave's annealers, asked directly: what fits a chip goes there whole, and what does not is refused at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import InvalidSolverOption, NoFeasibleFound
from qubo_compress.problem import ChoiceProblem, IntArray
from qubo_compress.solvers.dwave_connection import SIMULATED_NOTE, Connection, opened
from qubo_compress.solvers.local_model import local_model
from qubo_compress.solvers.local_search import LocalSearch, warm_up
from qubo_compress.solvers.qpu_device import Device
from qubo_compress.solvers.qpu_embedding import USER_CACHE, longest
from qubo_compress.solvers.qpu_fit import Fit, fit, shrink
from qubo_compress.solvers.qpu_sampling import CONTROL_NOISE, Account, EmbeddedSampler
from qubo_compress.solvers.qubo_search import QuboSearch
from qubo_compress.solvers.solver import RawSolution, SearchLimits, Solver, make_solver, solvers

_RESERVE = 0.02
"""Share of the time that no submission gets, for reading what the last one brought."""
_START_SHARE = 0.1
"""Most of the time for the classical start of reverse annealing."""
_REVERSE_SCHEDULE = ((0.0, 1.0), (5.0, 0.45), (25.0, 0.45), (30.0, 1.0))
_PREVIEW_SECONDS = 30.0


@dataclass(frozen=True)
class Preview:
    """What a search would take, found out without submitting anything.

    Attributes:
        bits: of the encoded problem, dominated choices removed.
        largest_clique: the most bits of a dense problem on this chip.
        qubits: of the embedding.
        longest_chain: qubits of its longest chain.
        submissions: at most.
        seconds_per_submission: of chip time, by the solver's own model; None where it has none.
        simulated: whether the solver is a stand-in.
    """

    bits: int
    largest_clique: int
    qubits: int
    longest_chain: int
    submissions: int
    seconds_per_submission: float | None
    simulated: bool

    @property
    def seconds(self) -> float | None:
        """Chip time of all submissions together, which is what the account is charged."""
        return None if self.seconds_per_submission is None else self.submissions * self.seconds_per_submission


@solvers.register("qpu")
@dataclass(frozen=True)
class Qpu:
    """Sample the encoded problem on a quantum annealer, searching for the budgets' prices.

    Dominated choices and what roof duality proves go first. What is left must fit the chip's largest clique, or be
    sparse enough for another embedding; otherwise the problem is refused before anything is searched or sent. Each
    round of the price search is one submission. Samples over budget are repaired, and what is left of a budget
    is spent, classically; ``details`` says how good the samples were before that.

    Args:
        sampler: a structured dimod sampler to use instead of a connection, such as Ocean's ``MockDWaveSampler``.
        connection: how to reach the service.
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
        label: of the problems, as the service lists them.

    Raises:
        InvalidSolverOption: for an option out of range.
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
    connection: Connection = Connection()
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

    def __post_init__(self) -> None:
        encodings.get(self.encoding)
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
        """Submit until the submissions, which are the work, or the time are used up."""
        compiling = warm_up()
        start = time.perf_counter()
        try:
            with self.opened(limits.seconds) as ready:
                found = _Search(ready, problem, limits, rng, start).run()
        except KeyboardInterrupt:
            found = _interrupted(problem, rng)
        timing = {**found.timing, "compile": compiling + found.timing.get("compile", 0.0)}
        timing["solve"] = time.perf_counter() - start
        return replace(found, timing=timing)

    def preview(self, problem: ChoiceProblem) -> Preview:
        """Bits, embedding and chip time of a search, without submitting anything.

        Raises:
            ProblemTooLarge: as :meth:`search` would.
            InvalidSolverOption: for reads or times that the chip does not take.
            RemoteSolverError: when the service cannot be reached.
        """
        start = time.perf_counter()
        with self.opened(_PREVIEW_SECONDS) as ready:
            search = _Search(ready, problem, SearchLimits(_PREVIEW_SECONDS), np.random.default_rng(0), start)
            found, device = search.fit(), search.device
            chains = found.minor if found.minor is not None else device.clique(min(found.bits, device.largest_clique))
            qubits = sum(map(len, chains))
            device.check(qubits, search.parameters)
            seconds = device.access_seconds(qubits, search.parameters)
            return Preview(
                bits=found.bits,
                largest_clique=device.largest_clique,
                qubits=qubits,
                longest_chain=longest(chains),
                submissions=self.submissions,
                seconds_per_submission=seconds,
                simulated=device.simulated,
            )

    @contextmanager
    def opened(self, seconds: float) -> Iterator[Qpu]:
        """The same solver, its connection held open and its embeddings kept, for several searches.

        Args:
            seconds: most seconds that all of them take.
        """
        if isinstance(self.sampler, Device):
            yield self
        elif self.sampler is not None:
            yield replace(self, sampler=Device(self.sampler, self.cache))
        else:
            from dwave.system import DWaveSampler

            deadline = time.perf_counter() + seconds
            with opened(DWaveSampler, self.connection, deadline) as sampler:
                yield replace(self, sampler=Device(sampler, self.cache, self.connection.token))

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
    rising = all(a < b for a, b in zip(times, times[1:], strict=False))
    first = 1.0 if reverse else 0.0
    if len(schedule) < 2 or times[0] != 0 or not rising or fractions[0] != first or fractions[-1] != 1.0:
        raise InvalidSolverOption(
            f"anneal_schedule must rise in time from 0 and go from s = {first:.0f} to s = 1 "
            f"({'reverse' if reverse else 'forward'} annealing); got {schedule}"
        )


class _Search:
    """One search on an opened device."""

    def __init__(
        self, options: Qpu, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator, start: float
    ) -> None:
        self.options, self.limits, self.rng, self.start = options, limits, rng, start
        self.device: Device = options.sampler
        self.parameters = self.device.supported(options.parameters())
        self.deadline = start + (1.0 - _RESERVE) * limits.seconds
        self.encoding = encodings.get(options.encoding)()
        self.reduction = shrink(problem, self.encoding, self.device)
        self.problem = self.reduction.problem
        self._first: IntArray | None = None

    def fit(self) -> Fit:
        """See :func:`qubo_compress.solvers.qpu_fit.fit`."""
        return fit(
            self.reduction,
            self.encoding,
            self.device,
            lambda: local_model(self.problem, self.first()).prices,
            reduce=self.options.roof_duality,
            deadline=self.deadline,
            stop=lambda: time.perf_counter() >= self.deadline,
        )

    def first(self) -> IntArray:
        """A classical assignment, near which prices are estimated and reverse annealing begins."""
        if self._first is None:
            self._first = _repaired(self.problem, self.rng.spawn(1)[0])
        return self._first

    def run(self) -> RawSolution:
        """Fit, sample, and tell."""
        found = self.fit()
        fitted = time.perf_counter()
        if self.options.reverse_from is not None:
            self._first = self._classical_start(self.options.reverse_from)
        reached = self.problem.energy(self.first()) if self.problem.is_feasible(self.first()) else None
        sampler = EmbeddedSampler(
            self.device,
            self.problem,
            self.encoding,
            parameters=self.parameters,
            factor=self.options.chain_strength_factor,
            reduce=self.options.roof_duality,
            minor=found.minor,
            most=self.options.submissions,
            deadline=self.deadline,
            state=(lambda: self._best(loop)) if self.options.reverse_from is not None else None,
        )
        left = SearchLimits(max(1e-3, self.start + self.limits.seconds - time.perf_counter()), self.limits.work)
        prices = local_model(self.problem, self.first()).prices
        loop = QuboSearch(self.problem, self.options.encoding, sampler, left, self.rng, first_prices=prices)
        raw = loop.run()
        return self._told(raw, sampler.account, found, reached, fitted - self.start)

    def _classical_start(self, solver: str | Solver) -> IntArray:
        chosen = make_solver(solver)
        raw = chosen.search(self.problem, SearchLimits(_START_SHARE * self.limits.seconds), self.rng.spawn(1)[0])
        feasible = [assignment for assignment in raw.assignments if self.problem.is_feasible(assignment)]
        if not feasible:
            raise NoFeasibleFound(
                f"{chosen.name} found nothing within the budget for reverse annealing to start from in "
                f"{_START_SHARE * self.limits.seconds:.2g} s; give more time or another solver"
            )
        return min(feasible, key=self.problem.energy)

    def _best(self, loop: QuboSearch) -> IntArray:
        """The least energy so far, the start included."""
        candidates = [*loop.found.values(), (self.problem.energy(self.first()), self.first())]
        return min(candidates, key=lambda pair: pair[0])[1]

    def _told(
        self, raw: RawSolution, account: Account, found: Fit, reached: float | None, fitting: float
    ) -> RawSolution:
        assignments = raw.assignments if reached is None else (*raw.assignments, self.first())
        before = [energy for energy in (reached, raw.trace[0][1] if raw.trace else None) if energy is not None]
        stages = dict(account.stages)
        stages["embed"] += fitting
        return replace(
            raw,
            assignments=tuple(self.reduction.lift(a) for a in sorted(assignments, key=self.problem.energy)),
            timing={**raw.timing, **stages},
            notes=(*_notes(self.device, account), *raw.notes),
            details={
                "simulated": self.device.simulated,
                "graph": self.device.identity,
                "bits": found.bits,
                "largest_clique": self.device.largest_clique,
                "energy_before_sampling": min(before, default=None),
                **_figures(account),
            },
        )


def _figures(account: Account) -> dict[str, Any]:
    """What is worth knowing of the submissions; medians and means over them."""

    def middle(values: list[float]) -> float | None:
        return float(np.median(values)) if values else None

    return {
        "submissions": account.submissions,
        "samples": account.samples,
        "samples_valid": account.valid,
        "energy_of_best_sample": account.best if np.isfinite(account.best) else None,
        "qubits": account.qubits,
        "longest_chain": account.longest_chain,
        "bits_fixed_by_roof_duality": middle([float(count) for count in account.fixed]),
        "chain_strength": middle(account.strengths),
        "chain_break_fraction": float(np.mean(account.broken)) if account.broken else None,
        "dynamic_range_coupling": middle([measured.coupling for measured in account.ranges]),
        "dynamic_range_field": middle([measured.field for measured in account.ranges]),
        "qpu_access_seconds": account.access,
    }


def _notes(device: Device, account: Account) -> tuple[str, ...]:
    """In words: what was simulated, what the chip cannot resolve, and what went wrong."""
    notes = []
    if device.simulated:
        notes.append(f"{SIMULATED_NOTE}; times of programming, annealing and readout are the stand-in's own figures")
    if account.submissions == 0 and account.failure is None:
        notes.append("nothing was submitted: roof duality fixed every bit, or there was no time")
    weak = [measured.coupling for measured in account.ranges]
    if weak and 0.0 < np.median(weak) < CONTROL_NOISE:
        notes.append(
            f"the median pair energy is {np.median(weak):.2%} of the chip's range, below its control noise of about "
            f"{CONTROL_NOISE:.1%}: such differences are lost. Fewer bits, shorter chains or a smaller "
            "chain_strength_factor help"
        )
    if account.failure is not None:
        failure = f"{type(account.failure).__name__}: {account.failure}"
        notes.append(f"stopped early, after {account.submissions} submissions: {failure}")
    return tuple(notes)


def _repaired(problem: ChoiceProblem, rng: np.random.Generator) -> IntArray:
    """The choices of least linear energy, repaired and improved by single changes; may be over budget."""
    local = LocalSearch(problem, rng)
    starts, stops = problem.group_offsets[:-1], problem.group_offsets[1:]
    local.place([int(np.argmin(problem.linear[a:b])) for a, b in zip(starts, stops, strict=True)])
    if local.repair():
        local.descend(np.inf, pairs=False)
    return local.assignment.copy()


def _interrupted(problem: ChoiceProblem, rng: np.random.Generator) -> RawSolution:
    """Ctrl-C before the first submission: the classical start is all there is."""
    assignment = _repaired(problem, rng)
    note = "interrupted before anything was submitted; the answer is the classical start"
    return RawSolution(assignments=(assignment,), interrupted=True, notes=(note,), details={"submissions": 0})
