"""Compiled moves of the categorical annealer: heat-bath visits, trades between two groups, cooling."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled, compiled_inline
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.solvers.annealer.kernels import (
    State,
    begin_pair,
    change,
    group_energies,
    pair_energies,
    toll,
    uniform,
    within_budgets,
)
from qubo_compress.solvers.annealer.tables import Tables

_NEGLIGIBLE_EXPONENT = 36.0  # exp(-36) is below the resolution of a float64 next to 1


@compiled_inline
def draw(words: npt.NDArray[np.uint64], values: FloatArray, count: int, temperature: float) -> int:
    """An index with probability proportional to exp(-value / temperature); ``values`` is overwritten."""
    least = 0
    for k in range(count):
        if values[k] < values[least]:
            least = k
    low, total = values[least], 0.0
    for k in range(count):
        exponent = (values[k] - low) / temperature
        if exponent < _NEGLIGIBLE_EXPONENT:
            total += math.exp(-exponent)
        values[k] = total
    mark = uniform(words) * total
    for k in range(count):
        if mark < values[k]:
            return k
    return least


@compiled
def visit(tables: Tables, state: State, group: int, temperature: float, below: float, above: float) -> int:
    """Draw a group's choice afresh given all others; returns 1 when it changed."""
    start = tables.offsets[group]
    count = tables.offsets[group + 1] - start
    values, old = state.values[0], state.chosen[group]
    group_energies(tables, state, group, values)
    raw = state.values[2]
    for k in range(count):
        raw[k] = values[k]
        for b in range(state.totals.size):
            total = state.totals[b] + tables.costs[start + k, b] - tables.costs[old, b]
            values[k] += toll(tables, state, b, total, below, above)
    new = start + draw(state.random, values, count, temperature)
    if new == old:
        return 0
    change(tables, state, group, new, raw[new - start] - raw[old - start])
    return 1


@compiled
def trade(tables: Tables, state: State, temperature: float, below: float, above: float) -> int:
    """Offer one group a random other choice while a second group answers freely.

    The pair is drawn from its exact joint distribution over {current, offered} x (all choices of the
    second group), so one can get cheaper and the other more expensive in one move that no single visit makes.
    """
    groups = tables.offsets.size - 1
    first = int(uniform(state.random) * groups)
    second = int(uniform(state.random) * (groups - 1))
    second += second >= first
    sizes = tables.offsets[first + 1] - tables.offsets[first]
    old_first, old_second = state.chosen[first], state.chosen[second]
    offered = tables.offsets[first] + int(uniform(state.random) * sizes)
    if offered == old_first:
        return 0
    start = tables.offsets[second]
    count = tables.offsets[second + 1] - start
    begin_pair(tables, state, first, second)
    pair_energies(tables, state, second, old_first, state.values[0])
    pair_energies(tables, state, second, offered, state.values[1])
    joined, raw = state.values[3], state.values[2]
    for side in range(2):
        v = offered if side else old_first
        for k in range(count):
            energy = state.values[side, k]
            raw[side * count + k] = energy
            for b in range(state.totals.size):
                total = state.totals[b] + tables.costs[v, b] - tables.costs[old_first, b]
                total += tables.costs[start + k, b] - tables.costs[old_second, b]
                energy += toll(tables, state, b, total, below, above)
            joined[side * count + k] = energy
    picked = draw(state.random, joined, 2 * count, temperature)
    here = raw[old_second - start]
    new_second = start + picked % count
    changed = 0
    if picked >= count:
        change(tables, state, first, offered, 0.0)
        changed += 1
    if new_second != old_second:
        change(tables, state, second, new_second, 0.0)
        changed += 1
    state.energies[0] += raw[picked] - here
    return changed


@compiled_inline
def keep_best(tables: Tables, state: State) -> None:
    """Remember the present choices if they are within the budgets and the best so far."""
    if state.energies[0] < state.energies[1] and within_budgets(tables, state):
        state.energies[1] = state.energies[0]
        state.best[:] = state.chosen


@compiled_inline
def adapt_prices(tables: Tables, state: State, rate: float, below: float) -> None:
    """Raise the price of a budget that is exceeded, lower it (only where it also rewards) where there is room."""
    for b in range(state.totals.size):
        step = float(state.totals[b] - tables.room[b]) / state.spans[b]
        if step > 0.0:
            state.prices[b] *= math.exp(rate * min(1.0, 0.2 + step))
        elif below > 0.0:
            state.prices[b] *= math.exp(rate * max(-1.0, step))


@compiled
def anneal(
    tables: Tables,
    state: State,
    begin: int,
    end: int,
    length: int,
    hot: float,
    cold: float,
    below: float,
    above: float,
    rate: float,
    trades: int,
) -> int:
    """Sweeps ``begin`` to ``end`` of a geometric cooling of ``length`` sweeps; returns the number of changes."""
    groups = tables.offsets.size - 1
    changes = 0
    for sweep in range(begin, end):
        temperature = hot * (cold / hot) ** (sweep / max(1, length - 1))
        shift = int(uniform(state.random) * groups)
        for i in range(groups):
            changes += visit(tables, state, (i + shift) % groups, temperature, below, above)
        for _ in range(trades):
            changes += trade(tables, state, temperature, below, above)
        keep_best(tables, state)
        adapt_prices(tables, state, rate, below)
    return changes
