"""A search in progress: a solver's input and its answer so far."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qubo_compress.errors import QuboCompressError
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.energy_scale import StandardProblem, standardise
from qubo_compress.solvers.pool import Pool
from qubo_compress.solvers.solution import RawSolution

if TYPE_CHECKING:
    from qubo_compress.solvers.solver import Solver

_LEAST_SECONDS = 1e-3
"""Seconds for a part that starts after the deadline: every solver must find some answer."""


@dataclass(frozen=True)
class SearchLimits:
    """When a solver must stop, whichever comes first.

    Attributes:
        seconds: wall clock for everything the solver does, including building and embedding.
        work: sweeps, iterations or nodes, in the solver's own unit; None for no limit.
    """

    seconds: float
    work: int | None = None


class SearchOver(Exception):
    """Raised by a solver to end its search from anywhere; the assignments kept so far are the answer."""


def _now() -> float:
    # Looked up at every call, so that `testing.clocks.under` can replace it.
    return time.perf_counter()


@dataclass(eq=False, repr=False)
class Search:
    """One search: the problem, the limits, the generator and all results so far.

    A solver keeps every good assignment, counts its work, and checks the limits before it continues. All attributes are
    valid at any moment, so Ctrl-C, which a solver does not catch, leaves an answer. The clock is ``time.perf_counter``.

    Attributes:
        problem: the problem to solve, without a constant.
        limits: of time and work.
        rng: the source of all randomness.
        pool: the distinct good assignments; ``pool.size`` of them are returned.
        work: done so far, in the solver's own unit.
        bound: the greatest proven lower bound on the energy of every feasible assignment, or None.
        infeasible: whether it is proven that no assignment is feasible.
        interrupted: whether Ctrl-C ended the search; a solver sets it only if it had to catch the exception itself.
        trace: (seconds, best energy, bound or None), as in the solution.
        notes: remarks as plain text.
        details: the solver's own figures by name.
        timing: seconds by stage.
        start: of the time limit, on ``time.perf_counter``.
        standard: the scale of ``problem`` if it is standardised: see :meth:`standardised`.

    Example:
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> search = Search(problem, SearchLimits(seconds=10.0, work=50), np.random.default_rng(0))
        >>> for _ in search.rounds():
        ...     search.work += 1
        ...     drawn = search.rng.integers(problem.group_sizes)
        ...     if problem.is_feasible(drawn):
        ...         _ = search.keep(drawn)
        >>> search.work, len(search.result().assignments) > 1
        (50, True)
    """

    problem: ChoiceProblem
    limits: SearchLimits
    rng: np.random.Generator
    pool: Pool = field(default_factory=Pool)
    work: int = 0
    bound: float | None = None
    infeasible: bool = False
    interrupted: bool = False
    trace: list[tuple[float, float, float | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=_now)
    standard: StandardProblem | None = None
    _parent: Search | None = None
    _longest: float = 0.0

    def run(self, solver: Solver) -> None:
        """Let a solver search until it returns, ends the search or is interrupted.

        Raises:
            UnsupportedProblem: when it cannot take the problem.
            QuboCompressError: when it returns an answer instead of keeping it.
        """
        solver.refuse(self.problem)
        answer: object = None
        try:
            answer = solver.run(self)  # type: ignore[func-returns-value]
        except SearchOver:
            pass
        except KeyboardInterrupt:
            self.interrupted = True
        if answer is not None:
            raise QuboCompressError(
                f"{type(solver).__name__}.run returned a {type(answer).__name__}: keep every good assignment with "
                "search.keep(assignment), and return nothing"
            )

    # Time and work.

    @property
    def elapsed(self) -> float:
        """Seconds since the start, without compiling."""
        return time.perf_counter() - self.start

    @property
    def deadline(self) -> float:
        """The end of the time limit, on ``time.perf_counter``."""
        return self.start + self.limits.seconds

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.perf_counter()

    def most_work(self, wanted: int) -> int:
        """The wanted work, or what the work limit still allows if that is less."""
        return wanted if self.limits.work is None else min(wanted, self.limits.work - self.work)

    def over(self, ahead: float = 0.0) -> bool:
        """Whether the work is used up, or the time will be ``ahead`` seconds from now."""
        return self.most_work(1) < 1 or self.elapsed + ahead >= self.limits.seconds

    def another_round(self) -> bool:
        """Whether work is left and, after the first round, time for one more as long as the longest."""
        late = self.elapsed + self._longest >= self.limits.seconds
        return self.most_work(1) > 0 and not (self.work and late)

    def rounds(self) -> Iterator[None]:
        """Rounds of at least one unit of work each, while there is time for another one of the same length.

        The first round always starts, so that there is an answer.
        """
        while self.another_round():
            begin = self.elapsed
            yield
            self._longest = max(0.9 * self._longest, self.elapsed - begin)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """A block for work done once per machine or process, which does not count as search time."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.exclude(time.perf_counter() - begin)

    def exclude(self, seconds: float) -> None:
        """Count these seconds as compiling, here and in the enclosing searches."""
        self.start += seconds
        self.spend("compile", seconds)
        if self._parent is not None:
            self._parent.exclude(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A block whose time counts under that name in the timing, and as search time."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.spend(name, time.perf_counter() - begin)

    def spend(self, name: str, seconds: float) -> None:
        """Add seconds to a stage of the timing."""
        self.timing[name] = self.timing.get(name, 0.0) + seconds

    # What is found.

    @property
    def energy(self) -> float:
        """The least energy kept; infinite at first."""
        return self.pool.energy

    @property
    def best(self) -> IntArray | None:
        """(G,) the assignment of that energy."""
        return self.pool.best

    def keep(self, assignment: IntArray, energy: float | None = None) -> bool:
        """Keep an assignment within the budgets; returns whether it is the best so far.

        Args:
            assignment: (G,) local choices; copied.
            energy: its energy, if already known.
        """
        better = self.add(assignment, energy)
        if better:
            self.trace.append((self.elapsed, self.energy, self.bound))
        return better

    def add(self, assignment: IntArray, energy: float | None = None) -> bool:
        """Like :meth:`keep`, but not recorded in the trace: for assignments found at another time."""
        return self.pool.add(assignment, self.problem.energy(assignment) if energy is None else float(energy))

    def settle(self, assignment: IntArray) -> None:
        """Make an assignment the only answer, whatever its energy: for searches with another objective."""
        self.pool = Pool(self.pool.size)
        self.add(assignment)

    def result(self) -> RawSolution:
        """The best assignments so far, with the work and figures of the search."""
        ranked = self.pool.ranked()
        return RawSolution(
            assignments=tuple(assignment for _, assignment in ranked),
            claimed_energy=ranked[0][0] if ranked and np.isfinite(ranked[0][0]) else None,
            bound=self.bound,
            timing={**self.timing, "solve": self.elapsed - self.timing.get("build", 0.0)},
            trace=tuple(self.trace),
            work=self.work,
            interrupted=self.interrupted,
            infeasible=self.infeasible and self.best is None,
            notes=tuple(dict.fromkeys(self.notes)),
            details=self.details,
        )

    # Parts.

    def left(self, seconds: float = np.inf, work: int | None = None) -> SearchLimits:
        """The remaining time and work, at most ``seconds`` and ``work``."""
        if self.limits.work is not None:
            work = self.most_work(self.limits.work if work is None else work)
        return SearchLimits(max(_LEAST_SECONDS, min(self.seconds_left, seconds)), work)

    def part(
        self,
        problem: ChoiceProblem | None = None,
        limits: SearchLimits | None = None,
        rng: np.random.Generator | None = None,
    ) -> Search:
        """A search within this one; :meth:`take` adds its results to this one.

        Args:
            problem: the problem to solve; None: the same.
            limits: of time and work; None: all that is left.
            rng: its generator; None: a new one, spawned from this search's.
        """
        return Search(
            self.problem if problem is None else problem,
            self.left() if limits is None else limits,
            self.rng.spawn(1)[0] if rng is None else rng,
            _parent=self,
        )

    @contextmanager
    def standardised(self) -> Iterator[Search]:
        """This search on the standardised problem; its results are in this problem's energies."""
        standard = standardise(self.problem)
        part = self.part(standard.problem, self.limits, self.rng)
        part.standard, part.start = standard, self.start
        try:
            yield part
        finally:
            self._merge(part)
        self._go_on(part)

    def take(self, part: Search) -> None:
        """Add everything that a part found, with its work and notes.

        Raises:
            KeyboardInterrupt: if Ctrl-C ended the part.
        """
        self._merge(part)
        self._go_on(part)

    def take_pool(self, part: Search) -> None:
        """Add the assignments that a part found, without its work and notes."""
        self.pool.join([(part._outside(energy), chosen) for energy, chosen in part.pool.ranked()])
        before = part.start - self.start
        self.trace += [
            (before + seconds, part._outside(energy), None if bound is None else part._outside(bound))
            for seconds, energy, bound in part.trace
        ]

    def _merge(self, part: Search) -> None:
        self.take_pool(part)
        self.work += part.work
        bounds = [self.bound, None if part.bound is None else part._outside(part.bound)]
        self.bound = max((bound for bound in bounds if bound is not None), default=None)
        self.infeasible = self.infeasible or part.infeasible
        self.notes += part.notes
        self.details = {**part.details, **self.details}
        for stage, seconds in part.timing.items():
            if stage != "compile":  # counted when it was done
                self.spend(stage, seconds)

    def _go_on(self, part: Search) -> None:
        if part.interrupted:
            raise KeyboardInterrupt

    def _outside(self, energy: float) -> float:
        """An energy of this part on the scale of the enclosing search."""
        return energy if self.standard is None else self.standard.energy(energy)
