"""A run that begins with the choices of least energy, far over the budgets, and lets the prices rise.

Couplings of hundreds of groups act together: a random state, or one annealed from it in a few hundred sweeps, has an
energy many times that of the choices that change the network least. This run stays near those. It begins below the
prices that the budgets need, cold, and gives up room little by little, while groups that are
already compressed may still respond to each other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.annealer import kernels, moves
from qubo_compress.solvers.annealer.jobs import JobResult, Scales, first_guess, make_state, polish, trades_per_sweep
from qubo_compress.solvers.annealer.kernels import State
from qubo_compress.solvers.annealer.tables import Tables

_SHARES = (0.1, 0.3, 1.0)
"""First prices, as shares of those at a state that fits the budgets: a run draws one of them."""
_CHANGING = (0.003, 0.3)
"""Least and largest share of the groups that would change at the first temperature; a run draws between them."""
FIRST_SHARE, FIRST_CHANGING = 0.3, 0.03
"""Those of a search's first run: within 2 % of the best found on three networks' filters and low-rank problems."""

_COOLING = 0.02
"""Last temperature, relative to the first."""
_BELOW, _ABOVE = 0.8, 1.5
"""Reward of a unit of room, and charge of one too many, as multiples of the price: the annealer's first schedule."""
_FASTEST, _TURNS = 0.1, 10.0
"""The prices move at this rate at most, and by this many factors of e in a whole run."""
_LARGEST_EXPONENT = 700.0
"""exp(-700) is just above the least float64."""


class RisingPrice:
    """One such run.

    Args:
        tables: the problem; it has a budget.
        length: sweeps.
        rng: draws the settings that are not given, and the moves.
        share: first prices, as a share of those at a state that fits; None to draw it.
        changing: share of the groups that would change at the first temperature; None to draw it.
    """

    def __init__(
        self,
        tables: Tables,
        length: int,
        rng: np.random.Generator,
        share: float | None = None,
        changing: float | None = None,
    ) -> None:
        self.tables, self.length = tables, length
        self.share = float(rng.choice(_SHARES)) if share is None else share
        low, high = np.log(_CHANGING)
        self.changing = float(np.exp(rng.uniform(low, high))) if changing is None else changing
        self.state = make_state(tables, rng, np.zeros(tables.room.size))
        self.guess = first_guess(tables, self.state)
        self.polish_seconds = 0.0

    def run(self, keep_going: Callable[[float], bool], most: int) -> JobResult:
        """Work for at most ``most`` sweeps, while ``keep_going(seconds of the next sweep)``."""
        tables, state = self.tables, self.state
        least = _least(tables)
        _place(tables, state, least)
        prices, hot = self._prices_and_temperature()
        _place(tables, state, least)
        state.energies[1] = np.inf
        state.prices[:] = self.share * prices
        rate = min(_FASTEST, _TURNS / self.length)
        trades = trades_per_sweep(tables)
        cooling = moves.Cooling(self.length, hot, _COOLING * hot, _BELOW, _ABOVE, rate, trades)
        end, done, seconds = min(self.length, most), 0, 0.0
        while done < end and keep_going(seconds):
            start = time.perf_counter()
            moves.anneal(tables, state, cooling, done, done + 1)
            done += 1
            seconds = time.perf_counter() - start
        found, seen = self._settle(Scales(hot, _COOLING * hot, 0.1 * state.prices), done)
        return JobResult(tuple(found), done, done >= self.length, improvements=tuple(seen))

    def _settle(
        self, scales: Scales, sweeps: int
    ) -> tuple[list[tuple[float, IntArray]], list[tuple[float, float, IntArray]]]:
        """The best feasible state visited and the polished last one, best first, and their times."""
        tables, state = self.tables, self.state
        found: list[tuple[float, IntArray]] = []
        seen: list[tuple[float, float, IntArray]] = []
        start = time.perf_counter()
        if np.isfinite(state.energies[1]):
            found.append((float(state.energies[1]), state.best.copy()))
            seen.append((start, *found[0]))
        if polish(tables, state, scales, sweeps):
            found.append((float(state.energies[0]), state.chosen.copy()))
            seen.append((time.perf_counter(), *found[-1]))
        self.polish_seconds = time.perf_counter() - start
        return sorted(found, key=lambda pair: pair[0]), seen

    def _prices_and_temperature(self) -> tuple[FloatArray, float]:
        """Prices at which a state that fits would hardly change, and the first temperature there."""
        tables, state, guess = self.tables, self.state, self.guess
        state.prices[:] = 1e-3 * guess.prices  # a repair raises them as far as needed
        polish(tables, state, Scales(guess.hot, guess.cold, 1e-3 * guess.prices), 0)
        group = np.repeat(np.arange(tables.num_groups), np.diff(tables.offsets))
        energies = _single_energies(tables, state)
        now = state.chosen[group]
        rise = energies - energies[now]
        charge = (state.costs - state.costs[now]) @ guess.prices
        price = _marginal_price(rise, charge)
        values = rise + price * charge
        values -= np.minimum.reduceat(values, tables.offsets[:-1])[group]
        return price * guess.prices, _temperature(values, tables.offsets, self.changing, guess)


def _least(tables: Tables) -> IntArray:
    """(G,) global choice of least linear energy of each group."""
    pairs = itertools.pairwise(tables.offsets)
    return np.array([start + int(np.argmin(tables.linear[start:stop])) for start, stop in pairs], dtype=np.int64)


def _place(tables: Tables, state: State, chosen: IntArray) -> None:
    state.chosen[:] = chosen
    kernels.start_state(tables, state)


def _single_energies(tables: Tables, state: State) -> FloatArray:
    """(V,) energy of each choice with all other groups as they are, up to a constant of the group."""
    energies = np.empty(tables.linear.size)
    for group, (start, stop) in enumerate(itertools.pairwise(tables.offsets)):
        energies[start:stop] = kernels.energies_of(tables, state, group)[: stop - start]
    return energies


def _marginal_price(rise: FloatArray, charge: FloatArray) -> float:
    """Price between what the best single step up gains and what the best one down costs, per unit of charge."""
    up = (charge > 0.0) & (rise < 0.0)
    down = (charge < 0.0) & (rise > 0.0)
    gain = float((rise[up] / -charge[up]).max()) if up.any() else 0.0
    loss = float((rise[down] / -charge[down]).min()) if down.any() else 0.0
    if gain > 0.0 and loss > 0.0:
        return float(np.sqrt(gain * loss))
    return max(gain, loss) or 1.0


def _temperature(values: FloatArray, offsets: IntArray, changing: float, guess: Scales) -> float:
    """Temperature at which this share of the groups would leave their least value, by bisection of its logarithm."""
    low, high = 1e-6 * guess.cold, guess.hot
    for _ in range(40):
        middle = float(np.sqrt(low * high))
        weights = np.exp(-np.minimum(values / middle, _LARGEST_EXPONENT))
        if float(np.mean(1.0 - 1.0 / np.add.reduceat(weights, offsets[:-1]))) > changing:
            high = middle
        else:
            low = middle
    return float(np.sqrt(low * high))
