"""The annealer's first run: answers before any temperature is known.

With a factor, it solves the convex relaxation, in which every group may hold a mixture of its choices, and rounds: the
slopes at its solution are the energies of single choices with all other groups averaged, and if the relaxation
is tight, their minimisers are the optimum. Otherwise it starts from the choices of least priced energy.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.annealer import kernels, kicks, moves
from qubo_compress.solvers.annealer.jobs import (
    KICK_PRICE,
    SECOND_KICK,
    WARM,
    JobResult,
    Relaxation,
    Scales,
    draw_from,
    first_guess,
    kicks_pay,
    make_state,
    pairs_per_unit,
    polish,
    prices_rise,
    run_length,
    trades_per_sweep,
)
from qubo_compress.solvers.annealer.rising_price import FIRST_CHANGING, FIRST_SHARE, RisingPrice
from qubo_compress.solvers.annealer.tables import FACTOR, Tables
from qubo_compress.solvers.exact import price_kernels, relaxation_kernels
from qubo_compress.solvers.exact.convex_relaxation import factor_form, scaled_costs
from qubo_compress.solvers.exact.dynamic_programming import solve_table
from qubo_compress.solvers.exact.relaxation_kernels import FactorForm

_SWEEPS_PER_UNIT = 12
"""Sweeps of the relaxation per unit of work."""
_RISING_SWEEPS = 4
"""Sweeps with rising prices per unit of work."""
_ROUNDINGS = 6
"""Assignments drawn from the shares; only one with inner products, which are slow."""
_PRICE_RATE = 0.02
"""How fast prices move while cooling from a good answer: slowly, because they are nearly right."""

_CONVERGED = 1e-7
"""Gain of a sweep, relative to the cold temperature, below which the relaxation counts as solved."""
_BEST_CHANCE = 0.5
"""Chance of starting from the best answer."""
_TABLE_STATES = 3_000_000
_STATES_KEPT = 50_000
"""For the dynamic programme without interactions: a few tenths of a second at most."""


class Opening:
    """Run 0 and the later intensifying runs, which continue from the relaxation and the best answers.

    Args:
        problem: the problem.
        tables: the problem for the kernels.
        number: of the run; determines its units of work.
        seed: common to all runs of a search.
        scales: from the pilot, for all except the first.
        before: the relaxation as the previous such run left it.
        elite: (energy, global choices) of answers of earlier rounds, best first.
    """

    def __init__(
        self,
        problem: ChoiceProblem,
        tables: Tables,
        number: int,
        seed: int,
        scales: Scales | None = None,
        before: Relaxation | None = None,
        elite: tuple[tuple[float, IntArray], ...] = (),
    ) -> None:
        self.problem, self.tables = problem, tables
        self.length = run_length(number)
        self.rng = np.random.default_rng([seed, number])
        self.offsets = problem.group_offsets.copy()
        self.priced = problem.without_pair_costs("typical")
        self.costs, self.room, self.cost_scales = scaled_costs(self.priced)
        self.state = make_state(tables, self.rng, np.zeros(tables.room.size))
        self.guess = first_guess(tables, self.state)
        self.scales = scales
        self.relaxation = before
        self.price = np.zeros(self.room.size) if before is None else before.multipliers.copy()
        self.polish_seconds = 0.0
        self.found: list[tuple[float, IntArray]] = []
        self.elite = elite
        self.improvements: list[tuple[float, float, IntArray]] = []

    def run(self, keep_going: Callable[[float], bool], most: int) -> JobResult:
        """Work for at most ``most`` units, while ``keep_going(seconds of the next step)``."""
        end = min(self.length, most)
        done, begin = 0, 0
        if self.scales is None and prices_rise(self.tables):
            begin = min(self.length // 2, end)
            done = self._raise_prices(keep_going, begin)
        slopes = self.problem.linear.copy()
        relaxing = begin
        if self.problem.factor is not None and done == begin:
            relaxing = min(begin + self.length // 2, end)
            done, slopes = self._relax(keep_going, begin, relaxing)
        start = time.perf_counter()
        if problem_has_more_to_round(self.problem, self.scales):
            self._round(slopes)
        bound = self._tabulate() if self.found and self.scales is None else None
        if self.elite:
            # Sometimes start from another answer: the kicks may be unable to leave the best one.
            rank = 0 if self.rng.random() < _BEST_CHANCE else int(self.rng.integers(len(self.elite)))
            self.found.insert(0, self.elite[rank])
            if rank == 0:
                self.found.sort(key=lambda pair: pair[0])
        self.polish_seconds = time.perf_counter() - start
        self._note_improvement()
        if done == relaxing:
            if self.tables.num_groups == 1 or not self.found:
                done = end  # no group to kick, or no state to start from
            elif kicks_pay(self.tables):
                done = self._kick(keep_going, done, end)
            else:
                done = end if self.scales is None else self._anneal(keep_going, done, end, self.scales)
        return JobResult(
            tuple(self.found), done, done >= self.length, relaxation=self.relaxation, bound=bound,
            improvements=tuple(self.improvements),
        )  # fmt: skip

    def _anneal(self, keep_going: Callable[[float], bool], begin: int, end: int, scales: Scales) -> int:
        """Cool from the best rounding, starting cold enough to remember it."""
        energy, chosen = self.found[0]
        self._place(chosen)
        self.state.energies[1] = energy
        self.state.best[:] = chosen
        self.state.prices[:] = self._prices()
        length = self.length - self.length // 2
        hot, cold = scales.hot * WARM.heating, scales.cold * WARM.cooling
        trades = trades_per_sweep(self.tables)
        cooling = moves.Cooling(length, hot, cold, WARM.below, WARM.above, _PRICE_RATE, trades)
        done, seconds = begin, 0.0
        while done < end and keep_going(seconds):
            start = time.perf_counter()
            at = done - begin
            moves.anneal(self.tables, self.state, cooling, at, at + 1)
            done += 1
            seconds = time.perf_counter() - start
        start = time.perf_counter()
        self._place(self.state.best)
        if polish(self.tables, self.state, Scales(hot, cold, 0.1 * self._prices()), done - begin):
            self.found.insert(0, (float(self.state.energies[0]), self.state.chosen.copy()))
            self.found.sort(key=lambda pair: pair[0])
            self._note_improvement()
        self.polish_seconds = max(self.polish_seconds, time.perf_counter() - start)
        return done

    def _kick(self, keep_going: Callable[[float], bool], begin: int, end: int) -> int:
        energy, chosen = self.found[0]
        self._place(chosen)
        self.state.energies[1] = energy
        self.state.best[:] = chosen
        prices, tolerance = KICK_PRICE * self._prices(), 1e-9 * self.guess.cold
        done, tried, seconds, kept = begin, 0, 0.0, len(self.found)
        while done < end and keep_going(seconds):
            start = time.perf_counter()
            done += 1
            until = (done - begin) * pairs_per_unit(self.tables)
            tried = kicks.kick(self.tables, self.state, prices, tried, until, SECOND_KICK, tolerance)
            if self.state.energies[1] < self.found[0][0]:
                better = float(self.state.energies[1]), self.state.best.copy()
                self.found[: len(self.found) - kept] = [better]  # replaces the result of earlier kicks
                self._note_improvement()
            seconds = time.perf_counter() - start
        return done

    def _note_improvement(self) -> None:
        if self.found:
            self.improvements.append((time.perf_counter(), *self.found[0]))

    def _tabulate(self) -> float | None:
        """Dynamic programming, without interactions and under one budget: keeps its answer, returns its bound."""
        problem = self.problem
        if problem.structure != "separable" or problem.num_budgets > 1 or problem.pair_costs is not None:
            return None
        starts = self.problem.group_offsets[:-1]
        answer = solve_table(self.problem, self.found[0][1] - starts, np.inf, _TABLE_STATES, _STATES_KEPT)
        energy = self.problem.energy(answer.assignment) - self.problem.constant
        if energy < self.found[0][0]:
            self.found.insert(0, (energy, answer.assignment + starts))
        return answer.bound

    def _raise_prices(self, keep_going: Callable[[float], bool], units: int) -> int:
        """Begin with the least energies and let the prices rise; returns the units of work done."""
        run = RisingPrice(self.tables, _RISING_SWEEPS * units, self.rng, FIRST_SHARE, FIRST_CHANGING)
        result = run.run(keep_going, run.length)
        self.found += result.found
        self.improvements += result.improvements
        return result.sweeps // _RISING_SWEEPS

    def _relax(self, keep_going: Callable[[float], bool], begin: int, end: int) -> tuple[int, FloatArray]:
        """Sweep by block descent on the augmented Lagrangian; returns the units of work done and the last slopes."""
        form = factor_form(self.priced, self.tables.factor if self.problem.factor is None else self.problem.factor)
        now = self._begin(form) if self.relaxation is None else self.relaxation.copy()
        prices, scratch = np.empty(self.room.size), np.empty(self.tables.largest_group)
        done, seconds = begin, 0.0
        while done < end and keep_going(seconds):
            start = time.perf_counter()
            for sweep in range(0 if now.converged else _SWEEPS_PER_UNIT):
                gain = relaxation_kernels.descend_factor(
                    form, now.shares, now.total, now.used, now.multipliers, prices, scratch
                )
                if sweep % 2:
                    relaxation_kernels.prices_of(now.multipliers, form.stiffness, now.used, self.room, now.multipliers)
                    now.converged = gain <= _CONVERGED * self.guess.cold
            done += 1
            seconds = time.perf_counter() - start
        self.relaxation = now
        self.price = now.multipliers.copy()
        slopes = np.empty(now.shares.size)
        relaxation_kernels.slopes_of(form, now.total, slopes)
        return done, slopes

    def _begin(self, form: FactorForm) -> Relaxation:
        vertex = _least(self.problem.linear, self.offsets)
        shares, slopes = np.zeros(form.diagonal.size), np.empty(form.diagonal.size)
        shares[vertex] = 1.0
        total = form.factor[vertex].sum(axis=0, dtype=np.float64)
        relaxation_kernels.slopes_of(form, total, slopes)
        self._price_of(slopes)
        return Relaxation(shares, total, self.costs[vertex].sum(axis=0), self.price.copy(), False)

    def _round(self, slopes: FloatArray) -> None:
        """Round to least priced slopes, to largest shares, and to draws from the shares; repair and polish each."""
        self._price_of(slopes)
        starts = [_least(slopes + self.costs @ self.price, self.offsets)]
        if self.relaxation is not None:
            starts.append(_least(-self.relaxation.shares, self.offsets))
            few = _ROUNDINGS if self.tables.form != FACTOR else 1
            starts += [draw_from(self.relaxation.shares, self.offsets, self.rng) for _ in range(few)]
        else:
            starts.append(_least(self.problem.linear, self.offsets))
        seen: set[bytes] = set()
        for chosen in starts:
            if chosen.tobytes() not in seen:
                seen.add(chosen.tobytes())
                self._place(chosen)
                low = Scales(self.guess.hot, self.guess.cold, 0.1 * self._prices())
                self.state.prices[:] = low.prices
                if polish(self.tables, self.state, low, 0):
                    self.found.append((float(self.state.energies[0]), self.state.chosen.copy()))
        self.found.sort(key=lambda pair: pair[0])

    def _price_of(self, slopes: FloatArray) -> None:
        choices = np.arange(slopes.size)
        price = self.price.copy()
        value = price_kernels.polish_prices(slopes, self.offsets, choices, self.costs, self.room, price, 4)
        if np.isfinite(value):
            self.price = price

    def _prices(self) -> FloatArray:
        """(B,) prices per unit of unscaled cost, never zero."""
        return np.maximum(self.price / self.cost_scales, 1e-3 * self.guess.prices)

    def _place(self, chosen: IntArray) -> None:
        self.state.chosen[:] = chosen
        kernels.start_state(self.tables, self.state)


def problem_has_more_to_round(problem: ChoiceProblem, scales: Scales | None) -> bool:
    """Whether rounding gives anything new: always in the first run, later only from the relaxation."""
    return scales is None or problem.factor is not None


def _least(values: FloatArray, offsets: IntArray) -> IntArray:
    """(G,) global number of the least value of each group."""
    return np.array(
        [start + int(np.argmin(values[start:stop])) for start, stop in itertools.pairwise(offsets)],
        dtype=np.int64,
    )
