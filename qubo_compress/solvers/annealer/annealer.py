"""The categorical annealer: the library's own solver for coupled choices under budgets.

The state is one choice per group, so invalid groups need no penalty. Runs of doubling length
follow a small portfolio of schedules, in parallel; each ends with an exact fill of the budgets.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress._internal import compiling
from qubo_compress._internal.processors import usable_processors
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.problem.energy_scale import energy_scale
from qubo_compress.problem.generators import tiny_problem
from qubo_compress.solvers.annealer.jobs import (
    OPENING,
    PILOT,
    Job,
    JobResult,
    Relaxation,
    Scales,
    first_candidate,
    intensifies,
    raises_prices,
    round_start,
    run_length,
)
from qubo_compress.solvers.annealer.opening import Opening
from qubo_compress.solvers.annealer.polish import descend, improve_random_pairs
from qubo_compress.solvers.annealer.rising_price import RisingPrice
from qubo_compress.solvers.annealer.tables import DENSE, Tables, make_tables
from qubo_compress.solvers.exact.bounds import lower_bound
from qubo_compress.solvers.exact.bounds import warm_up as warm_up_bounds
from qubo_compress.solvers.pool import Pool
from qubo_compress.solvers.solver import Search, Solver, solvers

_RESERVE = 0.02
"""Share of the time reserved for the last polish; at least the time of the longest one so far is."""
_BOUND_SHARE = 0.1
"""Seconds for the bound, as a share of the time limit."""
_GAP_CLOSED = 1e-7
"""At this relative distance from the bound, the search ends."""
_SINGLE_PRECISION = 1e-5
"""Relative error of the walkers' energy sums: near the bound, the energy is recomputed."""
_ELITE = 6
"""Answers of earlier rounds from which a later run may continue."""

_POLL_SECONDS = 0.05

_PATIENT_SECONDS = 5.0
"""From this time limit on, a bound is computed for the report even if it cannot end the search."""


@solvers.register
@dataclass(frozen=True)
class Annealer(Solver):
    """Anneal one choice per group by heat-bath visits and budget-trading pair moves.

    Args:
        restarts: most runs, each with its own random start; None for as many as the time allows.
        threads: runs at a time; None for one per processor that this process may use.
        pool_size: how many distinct good assignments to return.

    Raises:
        InvalidSolverOption: when an option is not a positive number.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=8, choices=4, seed=0)
        >>> solution = solve(problem, Annealer(restarts=5), time_limit=5.0)
        >>> problem.is_feasible(solution.assignment)
        True
    """

    name: ClassVar[str] = "annealer"
    accepts_pair_costs: ClassVar[bool] = True
    restarts: int | None = None
    threads: int | None = None
    pool_size: int = 64

    def __post_init__(self) -> None:
        for option in ("restarts", "threads", "pool_size"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise InvalidSolverOption(f"{option} must be at least 1; got {value}")

    def run(self, search: Search) -> None:
        """Anneal until the time or the work is used up, or the bound is met."""
        with search.compiling():
            warm_up(search.problem.structure)
        with search.standardised() as standard:
            _Runs(self, standard).all()


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) every kernel that a structure needs, on a tiny problem."""
    warm_up_bounds(structure)
    problem = tiny_problem(structure)
    tables = make_tables(problem)
    first = Opening(problem, tables, OPENING, 0).run(_always, 60)
    pilot = Job(tables, PILOT, 0, None)
    pilot.length = 5
    scales = pilot.run(_always, 5).scales
    Opening(problem, tables, 0, 0, scales, first.relaxation).run(_always, 60)
    job = Job(tables, PILOT + 1, 0, scales)
    job.run(_always, 2)
    descend(tables, job.state, 0.0)  # not called for small problems
    improve_random_pairs(tables, job.state, 0.0, 1)


def _always(seconds: float) -> bool:
    return seconds >= 0.0


class _Runs:
    """Submits runs to threads and collects their results, both in order."""

    def __init__(self, options: Annealer, search: Search) -> None:
        self.search, self.problem = search, search.problem
        self.scale = energy_scale(search.problem)
        self.threads = options.threads or usable_processors()
        self.pool_size = options.pool_size
        self.most_runs = options.restarts
        self.seed = int(search.rng.integers(2**63))
        self.stop = threading.Event()
        self.bounder = ThreadPoolExecutor(max_workers=1)
        self.longest_polish = 0.0
        self.bound: float | None = None
        self.found = Pool(max(_ELITE, options.pool_size))
        """Keeps assignments as global choice numbers, with the walkers' energy sums."""
        self.improvements: list[tuple[float, float, IntArray]] = []
        self.bound_seconds = np.inf
        self.bound_deadline = -np.inf
        self.waiting: dict[int, JobResult] = {}
        self.taken = 0
        self.relaxations: list[Relaxation] = []
        self.elites: dict[int, tuple[tuple[float, IntArray], ...]] = {}
        self.running: dict[Future[JobResult], int] = {}

    def all(self) -> None:
        """Run until the search is over; the search gets the results however it ends."""
        executor = ThreadPoolExecutor(max_workers=self.threads)
        try:
            with self.search.stage("build"):
                tables = make_tables(self.problem)
            self._drive(tables, executor)
        finally:
            self.stop.set()
            # Do not wait for a late bound: it would break the time limit and change no answer.
            self.bounder.shutdown(wait=False, cancel_futures=True)
            executor.shutdown(wait=True, cancel_futures=True)
            for future, number in self.running.items():
                if not future.cancelled():
                    self.waiting[number] = future.result()
            self._take_in_order()
            self._tell()

    def _tell(self) -> None:
        search = self.search
        search.pool.size = self.pool_size
        for _, chosen in self.found.ranked()[: self.pool_size]:
            search.add(chosen - self.problem.group_offsets[:-1])
        search.bound = self.bound if self.bound is not None and np.isfinite(self.bound) else None
        search.infeasible = self.bound == np.inf
        search.trace += self._trace()

    def _drive(self, tables: Tables, executor: ThreadPoolExecutor) -> None:
        self._take(first_candidate(tables, self.seed))
        if tables.num_groups == 1:
            if self.found.best is not None:  # the descent has tried every choice
                self.bound = self._best_energy()
            return
        running = self.running
        factor, rounded = self.problem.factor is not None, 0
        running[executor.submit(self._open, tables, OPENING, None, None)] = OPENING
        if self._may_start(PILOT):
            running[executor.submit(self._run, tables, PILOT, None)] = PILOT
        bounding = self._start_bound(tables)
        scales: Scales | None = None
        opened = False
        submitted = PILOT + 1
        while running and not self._proven():
            finished, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
            for future in finished:
                number, result = running.pop(future), future.result()
                self.waiting[number] = result
                scales = scales or result.scales
                opened = opened or number == OPENING
                if result.relaxation is not None:
                    self.relaxations.append(result.relaxation)
            self._take_in_order()
            if self.search.limits.work is None or (opened and scales is not None):
                self._look_for(bounding)
            if self._proven():
                break
            while scales is not None and opened and len(running) < self.threads and self._may_start(submitted):
                if not intensifies(submitted):
                    future = executor.submit(self._run, tables, submitted, scales)
                elif round_start(submitted) in self.elites and (not factor or len(self.relaxations) > rounded):
                    before = self.relaxations[rounded] if factor else None
                    rounded += 1
                    future = executor.submit(self._open, tables, submitted, scales, before)
                else:
                    break  # its starting point is not ready yet
                running[future] = submitted
                submitted += 1
        self._look_for(bounding)

    def _start_bound(self, tables: Tables) -> Future[float | None] | None:
        if not self._worth_bounding(tables):
            return None
        seconds = _BOUND_SHARE * self.search.limits.seconds
        self.bound_deadline = time.perf_counter() + seconds
        return self.bounder.submit(lower_bound, self.problem, seconds)

    def _look_for(self, bounding: Future[float | None] | None) -> None:
        """Take the bound if it is there; under a work limit, wait for its share of the time.

        Otherwise it would depend on the speed of the threads whether the same work ends with a bound.
        """
        if bounding is None or self.bound is not None:
            return
        if self.search.limits.work is not None:
            while not bounding.done() and time.perf_counter() < self.bound_deadline:
                wait([bounding], timeout=_POLL_SECONDS)
        if bounding.done():
            self._take_bound(bounding.result())

    def _open(self, tables: Tables, number: int, scales: Scales | None, before: Relaxation | None) -> JobResult:
        elite = () if number == OPENING else self.elites[round_start(number)]
        return self._finish(Opening(self.problem, tables, number, self.seed, scales, before, elite), number)

    def _run(self, tables: Tables, number: int, scales: Scales | None) -> JobResult:
        if raises_prices(number, tables):
            rng = np.random.default_rng([self.seed, number])
            return self._finish(RisingPrice(tables, run_length(number), rng), number)
        return self._finish(Job(tables, number, self.seed, scales), number)

    def _finish(self, job: Job | Opening | RisingPrice, number: int) -> JobResult:
        result = job.run(self._keep_going, self._allowed(number))
        self.longest_polish = max(self.longest_polish, job.polish_seconds)
        return result

    def _keep_going(self, seconds: float) -> bool:
        search = self.search
        reserve = max(_RESERVE * search.limits.seconds, 1.5 * self.longest_polish)
        return not self.stop.is_set() and search.elapsed + seconds + reserve < search.limits.seconds

    def _may_start(self, number: int) -> bool:
        if self.most_runs is not None and number >= self.most_runs:
            return False
        return self._allowed(number) > 0 and self._keep_going(0.0)

    def _allowed(self, number: int) -> int:
        """Sweeps that the work limit leaves for a run once all earlier ones are complete."""
        length, most = run_length(number), self.search.limits.work
        if most is None:
            return length
        return min(length, most - sum(run_length(earlier) for earlier in range(number)))

    def _take_in_order(self) -> None:
        """Collect finished runs by number, up to the first incomplete one, and drop later ones.

        The answer then depends only on the seed and the work, not on the speed of the threads.
        """
        while self.taken in self.waiting:
            result = self.waiting.pop(self.taken)
            if result.sweeps:  # a repeat with the same work would not start a run without a single sweep
                self._take(result)
            self.search.work += result.sweeps
            if not result.complete:
                self.taken = -1
                break
            self.taken += 1
            if self.taken == round_start(self.taken):
                self.elites[self.taken] = tuple(self.found.ranked()[:_ELITE])

    def _take(self, result: JobResult) -> None:
        if result.bound is not None and (self.bound is None or result.bound > self.bound):
            self._take_bound(result.bound)
        for energy, chosen in result.found:
            self.found.add(chosen, energy)
        self.improvements += result.improvements

    def _worth_bounding(self, tables: Tables) -> bool:
        """False for dense pair energies of both signs: the bound needs an eigenvalue problem and is never met."""
        return self.problem.factor is not None or tables.form != DENSE or self.search.limits.seconds >= _PATIENT_SECONDS

    def _take_bound(self, bound: float | None) -> None:
        self.bound = -np.inf if bound is None else bound
        self.bound_seconds = self.search.elapsed

    def _trace(self) -> list[tuple[float, float, float | None]]:
        """Improvements of all runs and the arrival of the bound, in order of time.

        Walkers sum changes in single precision, so the trace's energies are recomputed.
        """
        trace: list[tuple[float, float, float | None]] = []
        known = self.bound is not None and np.isfinite(self.bound)
        best, bound = np.inf, None
        steps: list[tuple[float, float, IntArray]] = []
        for step in sorted(self.improvements, key=lambda entry: entry[0]):
            if not steps or step[1] < steps[-1][1]:
                steps.append(step)
        offsets = self.problem.group_offsets[:-1]
        energies = self.problem.energies(np.array([step[2] - offsets for step in steps])) if steps else np.zeros(0)
        events = [(step[0] - self.search.start, float(energy)) for step, energy in zip(steps, energies, strict=True)]
        if known:
            events = sorted([*events, (self.bound_seconds, np.inf)])
        for seconds, energy in events:
            if energy == np.inf:
                bound = self.bound
            elif energy >= best - self.scale.rounding:
                continue
            best = min(best, energy)
            if best < np.inf:
                trace.append((seconds, best, bound))
        return trace

    def _proven(self) -> bool:
        if self.bound is None or np.isneginf(self.bound):
            return False
        if np.isposinf(self.bound):
            return True  # the budgets exclude everything
        least = self.found.energy
        within = self.bound + self.scale.tolerance(least, _GAP_CLOSED)
        if least > within + self.scale.reach(least) * _SINGLE_PRECISION or self.found.best is None:
            return False
        # The recomputed energy decides whether to stop, not the walkers' single-precision sums.
        return self._best_energy() <= within

    def _best_energy(self) -> float:
        assert self.found.best is not None  # noqa: S101 - the callers looked
        return self.problem.energy(self.found.best - self.problem.group_offsets[:-1])
