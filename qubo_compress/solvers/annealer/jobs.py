"""One annealing run from start to polished answer, and the portfolio of schedules that the runs follow.

A run depends only on (problem, seed, number of the run), never on time or on other runs, so
the same amount of work gives the same answer on any number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.annealer import kernels, kicks, moves
from qubo_compress.solvers.annealer import polish as polishing
from qubo_compress.solvers.annealer.kernels import State
from qubo_compress.solvers.annealer.tables import FACTOR, SPARSE, Tables

OPENING, PILOT = 0, 1
"""Numbers of the first two runs; those of the portfolio follow."""

OPENING_UNITS = 96
"""Units of work of the opening run."""
PILOT_SWEEPS = 160
"""Sweeps of the pilot run."""
SHORTEST_RUN = 64
"""Units of work of the runs in the first round."""
_PILOT_STEP = 4  # sweeps between two checks of how much still moves
_PAIRS_PER_SWEEP = 8
"""A unit of work while kicking: this many pairs per group take about as long to try as a sweep."""

_KICKED_GROUPS = 100
"""With more groups a kick, which tries pairs with every group, is expensive, and annealing gains more."""

KICK_PRICE = 0.1
"""First prices for making room after a kick, relative to the measured ones."""

SECOND_KICK = 0.1
"""Chance of each further group in a kick."""

_INTENSIFYING = 3
"""The run of each round of the portfolio that starts from earlier results instead of a random state."""
_RAISING = 1
"""The run of each round that, for many groups, lets prices rise instead of following its schedule."""
_SLICE_SECONDS = 0.01
"""Work between two checks of the clock."""
_POLISH_SHARE = 0.15
"""Random pairs take about this share of the run's own multiplications."""


@dataclass(frozen=True)
class Schedule:
    """How one run treats the budgets, and its first and last temperature.

    Attributes:
        below: reward of a unit of room, as a multiple of the price; 0 makes the budget a wall.
        above: charge of a unit over the limit, as a multiple of the price.
        heating: first temperature, as a multiple of the one at which the pilot began to settle.
        cooling: final temperature, as a multiple of the one at which the pilot had settled.
    """

    below: float
    above: float
    heating: float
    cooling: float


# Chosen on 12 separable, sparse, dense, low-rank and planted problems, at equal sweeps, to complement
# each other: each is the best on some. Walls (below = 0) lose on large problems and win on small ones.
PORTFOLIO = (
    Schedule(0.8, 1.5, 0.5, 5.0),
    Schedule(0.95, 1.1, 0.3, 5.0),
    Schedule(0.5, 4.0, 0.5, 5.0),
    Schedule(0.0, 1.5, 0.5, 1.0),
)


WARM = Schedule(0.8, 1.5, 0.1, 5.0)
"""For a state drawn from the relaxation: not hot enough to forget it."""


@dataclass(frozen=True)
class Scales:
    """The measurements of the pilot run.

    Attributes:
        hot: temperature below which choices begin to settle.
        cold: temperature at which they are settled.
        prices: (B,) price of a unit of each budget at low temperature.
    """

    hot: float
    cold: float
    prices: FloatArray


@dataclass
class Relaxation:
    """An iterate of the convex relaxation of a problem with a factor.

    Attributes:
        shares: (V,) share of each choice in its group.
        total: (r,) sum of the factor rows, weighted by the shares.
        used: (B,) scaled cost.
        multipliers: (B,) prices of scaled cost.
        converged: whether further sweeps gain nothing.
    """

    shares: FloatArray
    total: FloatArray
    used: FloatArray
    multipliers: FloatArray
    converged: bool

    def copy(self) -> Relaxation:
        """An independent copy."""
        return Relaxation(
            self.shares.copy(), self.total.copy(), self.used.copy(), self.multipliers.copy(), self.converged
        )


@dataclass(frozen=True)
class JobResult:
    """The result of one run.

    Attributes:
        found: (energy, global choices) of states within the budgets, best first.
        sweeps: sweeps done.
        complete: whether the whole schedule was run.
        scales: measured by the pilot run, else None.
        relaxation: the relaxation's present iterate, from runs that round it, else None.
        bound: proven by the opening run, else None.
        improvements: (``time.perf_counter()``, energy, global choices) of each improvement of the run's best state.
    """

    found: tuple[tuple[float, IntArray], ...]
    sweeps: int
    complete: bool
    scales: Scales | None = None
    relaxation: Relaxation | None = None
    bound: float | None = None
    improvements: tuple[tuple[float, float, IntArray], ...] = ()


def run_length(job: int) -> int:
    """Units of work of a run: after the first two runs, each round of the portfolio is twice as long as the last."""
    if job <= PILOT:
        return PILOT_SWEEPS if job == PILOT else OPENING_UNITS
    return int(SHORTEST_RUN * 2 ** ((job - PILOT - 1) // len(PORTFOLIO)))


def intensifies(job: int) -> bool:
    """Whether a run starts from the relaxation and from answers of earlier rounds."""
    return job > PILOT and (job - PILOT - 1) % len(PORTFOLIO) == _INTENSIFYING


def raises_prices(job: int, tables: Tables) -> bool:
    """Whether a run of the portfolio begins with the least energies and lets the prices rise."""
    return job > PILOT and prices_rise(tables) and (job - PILOT - 1) % len(PORTFOLIO) == _RAISING


def round_start(job: int) -> int:
    """Number of the first run in the same round."""
    return job - (job - PILOT - 1) % len(PORTFOLIO)


def make_state(tables: Tables, rng: np.random.Generator, prices: FloatArray) -> State:
    """A random walker."""
    groups, budgets = tables.num_groups, tables.room.size
    sizes = np.diff(tables.offsets)
    chosen = tables.offsets[:-1] + (rng.random(groups) * sizes).astype(np.int64)
    rank, widest = tables.factor.shape[1], tables.largest_group
    state = State(
        chosen=chosen,
        fields=np.zeros(0 if tables.form == FACTOR else tables.linear.size),
        sums=np.zeros(rank),
        totals=np.zeros(budgets, dtype=np.int64),
        costs=tables.costs.copy() if tables.cost_partners.size else tables.costs,
        prices=np.array(prices, dtype=np.float64),
        spans=np.ones(budgets),
        energies=np.array([0.0, np.inf]),
        best=chosen.copy(),
        random=rng.integers(1, 2**63, size=4).astype(np.uint64),
        values=np.zeros((4, 2 * widest)),
        couplings=np.zeros((2, widest)),
        rest=np.zeros((2, rank), dtype=np.float32),
        free=np.ones(groups, dtype=np.uint8),
        dirty=np.zeros(groups, dtype=np.uint8),
    )
    kernels.start_state(tables, state)
    state.spans[:] = np.maximum(1.0, np.sqrt((_ranges(tables, state) ** 2).sum(axis=0)))
    return state


def _ranges(tables: Tables, state: State) -> FloatArray:
    """(G, B) how much each group can change each total."""
    if tables.room.size == 0:
        return np.zeros((tables.num_groups, 0))
    starts = tables.offsets[:-1]
    highest = np.maximum.reduceat(state.costs, starts, axis=0)
    return np.asarray(highest - np.minimum.reduceat(state.costs, starts, axis=0), dtype=np.float64)


def trades_per_sweep(tables: Tables) -> int:
    """Pair moves per sweep: useless without a budget, and expensive if each takes inner products."""
    if tables.room.size == 0 or tables.num_groups == 1:
        return 0
    return max(1, tables.num_groups // (10 if tables.form == FACTOR else 2))


class Job:
    """One run: annealing, repair and descent, then kicks if they pay.

    Args:
        tables: the problem.
        number: ``PILOT``, which measures the scales, or a higher one, which follows the portfolio.
        seed: common to all runs of a search.
        scales: from the pilot, for all other runs.
    """

    def __init__(self, tables: Tables, number: int, seed: int, scales: Scales | None) -> None:
        self.tables = tables
        self.number = number
        self.length = run_length(number)
        self.rng = np.random.default_rng([seed, number])
        self.trades = trades_per_sweep(tables)
        self.sweeps = 0
        self.pairs_tried = 0
        self.seconds_per_sweep = 0.0
        self.polish_seconds = 0.0
        if scales is None:
            self.schedule = Schedule(1.0, 1.0, 1.0, 1.0)
            self.rate = 0.1
            self.state = make_state(tables, self.rng, np.zeros(tables.room.size))
            self.scales = first_guess(tables, self.state)
            self.state.prices[:] = self.scales.prices
        else:
            self.schedule = PORTFOLIO[(number - PILOT - 1) % len(PORTFOLIO)]
            self.rate = min(0.1, 10.0 / self.length)
            self.scales = scales
            self.state = make_state(tables, self.rng, scales.prices)
        self.improvements: list[tuple[float, float, IntArray]] = []
        self._changed = 0
        self._changes: list[tuple[float, float]] = []
        self._prices: list[FloatArray] = []

    @property
    def annealing(self) -> int:
        """Sweeps that anneal; the remaining units of work kick."""
        if not kicks_pay(self.tables):
            return self.length
        return self.length * 3 // 5 if self.number == PILOT else self.length // 2

    def run(self, keep_going: Callable[[float], bool], most: int) -> JobResult:
        """Work for at most ``most`` sweeps, while ``keep_going(seconds of the next slice)``."""
        end, annealing = min(self.length, most), self.annealing
        self._go_on(keep_going, min(annealing, end), self._anneal)
        start = time.perf_counter()
        scales = self._measure_scales() if self.number == PILOT else None
        found = self._settle()
        self.polish_seconds = time.perf_counter() - start
        if found:
            self.improvements.append((time.perf_counter(), *found[0]))
        if found and self.sweeps == annealing < end:
            self.seconds_per_sweep = 0.0
            self._go_on(keep_going, end, self._kick)
            if self.state.energies[1] < found[0][0]:
                found.insert(0, (float(self.state.energies[1]), self.state.best.copy()))
        elif not found and self.sweeps == annealing:
            self.sweeps = end  # nothing to kick from
        return JobResult(
            tuple(found), self.sweeps, self.sweeps >= self.length, scales, improvements=tuple(self.improvements)
        )

    def _go_on(self, keep_going: Callable[[float], bool], end: int, advance: Callable[[int], None]) -> None:
        while self.sweeps < end:
            step = 1
            if self.seconds_per_sweep > 0.0:
                step = max(1, int(_SLICE_SECONDS / self.seconds_per_sweep))
            if self.number == PILOT and self.sweeps < self.annealing:
                step = min(step, _PILOT_STEP - self.sweeps % _PILOT_STEP)
            step = min(step, end - self.sweeps)
            if not keep_going(step * self.seconds_per_sweep):
                break
            start = time.perf_counter()
            advance(step)
            self.sweeps += step
            self.seconds_per_sweep = (time.perf_counter() - start) / step

    def _kick(self, count: int) -> None:
        """Kick for some units of work; they end at fixed numbers of pairs, so clock checks change no result."""
        until = (self.sweeps + count - self.annealing) * pairs_per_unit(self.tables)
        self.pairs_tried = kicks.kick(
            self.tables, self.state, KICK_PRICE * self.scales.prices, self.pairs_tried, until, SECOND_KICK,
            1e-9 * self.scales.cold,
        )  # fmt: skip
        if self.state.energies[1] < self.improvements[-1][1]:
            self.improvements.append((time.perf_counter(), float(self.state.energies[1]), self.state.best.copy()))

    def _anneal(self, count: int) -> None:
        hot, cold = self.scales.hot * self.schedule.heating, self.scales.cold * self.schedule.cooling
        schedule = self.schedule
        cooling = moves.Cooling(self.annealing, hot, cold, schedule.below, schedule.above, self.rate, self.trades)
        changes = moves.anneal(self.tables, self.state, cooling, self.sweeps, self.sweeps + count)
        if self.number == PILOT:
            self._changed += changes
            if (self.sweeps + count) % _PILOT_STEP == 0:
                temperature = hot * (cold / hot) ** ((self.sweeps + count) / self.annealing)
                offered = _PILOT_STEP * (self.tables.num_groups + 1.5 * self.trades)
                self._changes.append((temperature, self._changed / offered))
                self._prices.append(self.state.prices.copy())
                self._changed = 0

    def _settle(self) -> list[tuple[float, IntArray]]:
        """The best feasible state visited, and the results of repair and descent."""
        state, tables = self.state, self.tables
        found: list[tuple[float, IntArray]] = []
        if np.isfinite(state.energies[1]):
            found.append((float(state.energies[1]), state.best.copy()))
            state.chosen[:] = state.best
            kernels.start_state(tables, state)
        if polish(tables, state, self.scales, self.sweeps):
            found.insert(0, (float(state.energies[0]), state.chosen.copy()))
            state.energies[1] = state.energies[0]
            state.best[:] = state.chosen
        return found

    def _measure_scales(self) -> Scales:
        """The temperatures at which choices begin to settle and are settled, and the price at low temperature."""
        if not self._changes:
            return self.scales
        temperatures, rates = np.array(self._changes).T
        settled = rates <= 0.003
        cold = temperatures[settled].max() if settled.any() else temperatures[-1]
        free = rates >= 0.8 * rates[0]
        hot = temperatures[free].min() if free.any() else temperatures[0]
        late = np.array(self._prices[len(self._prices) // 2 :])
        prices = np.exp(np.log(np.maximum(late, 1e-300)).mean(axis=0))
        return Scales(float(max(hot, 40.0 * cold)), float(cold), np.maximum(prices, 1e-6 * self.scales.prices))


def first_guess(tables: Tables, state: State) -> Scales:
    """Temperatures that are safely too high and too low, and prices, from the spread of single changes."""
    spreads = np.zeros(tables.num_groups)
    for group in range(tables.num_groups):
        start, stop = tables.offsets[group], tables.offsets[group + 1]
        spreads[group] = np.ptp(kernels.energies_of(tables, state, group)[: stop - start])
    typical = float(np.sqrt((spreads**2).mean()))
    if typical == 0.0:
        typical = 1.0
    ranges = _ranges(tables, state)
    costs = np.maximum(1e-9, np.sqrt((ranges**2).mean(axis=0)))
    return Scales(hot=2.0 * max(typical, float(spreads.max())), cold=1e-4 * typical, prices=typical / costs)


def pairs_per_unit(tables: Tables) -> int:
    """Pairs of groups tried per unit of work."""
    return _PAIRS_PER_SWEEP * tables.num_groups


def kicks_pay(tables: Tables) -> bool:
    """Whether kicks pay: they need fields and a moderate number of partners."""
    return tables.form != FACTOR and 1 < tables.num_groups <= _KICKED_GROUPS


def prices_rise(tables: Tables) -> bool:
    """Whether some runs let prices rise: with a budget, and too many groups, all coupled, for kicks."""
    return tables.form != SPARSE and tables.room.size > 0 and tables.num_groups > _KICKED_GROUPS


def draw_from(mixture: FloatArray, offsets: IntArray, rng: np.random.Generator) -> IntArray:
    """(G,) global choices, each drawn with the probability of its share in its group's mixture."""
    cumulative = np.cumsum(mixture)
    base = np.concatenate([[0.0], cumulative])[offsets]
    marks = base[:-1] + rng.random(offsets.size - 1) * (base[1:] - base[:-1])
    picks = np.searchsorted(cumulative, marks, side="right")
    return np.asarray(np.clip(picks, offsets[:-1], offsets[1:] - 1), dtype=np.int64)


def first_candidate(tables: Tables, seed: int) -> JobResult:
    """The choices of least linear energy, brought within the budgets: an answer before any annealing."""
    job = Job(tables, PILOT, seed, None)
    starts, stops = tables.offsets[:-1], tables.offsets[1:]
    job.state.chosen[:] = [
        start + np.argmin(tables.linear[start:stop]) for start, stop in zip(starts, stops, strict=True)
    ]
    kernels.start_state(tables, job.state)
    low = replace(job.scales, prices=1e-3 * job.scales.prices)  # a repair raises them as far as needed
    job.state.prices[:] = low.prices
    if not polish(tables, job.state, low, 0):
        return JobResult((), 0, True)
    energy = float(job.state.energies[0])
    chosen = job.state.chosen.copy()
    return JobResult(((energy, chosen),), 0, True, improvements=((time.perf_counter(), energy, chosen),))


def polish(tables: Tables, state: State, scales: Scales, sweeps: int) -> bool:
    """Repair to the budgets, then descend by single and double changes; False when the repair failed."""
    state.prices[:] = np.maximum(state.prices, scales.prices)
    if not polishing.repair(tables, state, 100):
        return False
    groups = tables.num_groups
    tolerance = 1e-9 * scales.cold
    # With fields, bounds skip most combinations of a pair.
    cheap = (0.5 if groups <= _KICKED_GROUPS else 0.1) * groups * (sweeps + 4)
    if tables.form != FACTOR and groups * (groups - 1) / 2 <= max(500.0, cheap):
        state.dirty[:] = 1
        kicks.settle(tables, state, tolerance)
        return True
    width = tables.linear.size / groups
    allowance = _POLISH_SHARE * (sweeps + 4) * groups * width * (tables.row_cost + 8) / (width**2 * tables.row_cost)
    if tables.form != FACTOR:
        allowance = cheap
    for _ in range(50):
        while polishing.descend(tables, state, tolerance):
            pass
        if groups == 1:
            break
        if groups * (groups - 1) / 2 <= max(allowance, 500.0):
            improved = sum(
                polishing.improve_pairs(tables, state, first, first + 1, groups, tolerance) for first in range(groups)
            )
            allowance *= 0.9
        else:
            improved = polishing.improve_random_pairs(tables, state, tolerance, int(allowance) + groups // 10)
            allowance *= 0.3
        if not improved:
            break
    return True
