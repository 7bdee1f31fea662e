"""Compiled moves of the categorical annealer: heat-bath visits, trades between two groups, cooling."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled_in_place, compiled_inline, compiled_part
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.solvers.annealer.cost_rows import joint_cost
from qubo_compress.solvers.annealer.kernels import (
    State,
    begin_pair,
    budget_charge,
    change,
    energies_of,
    pair_energies,
    uniform,
    within_budgets,
)
from qubo_compress.solvers.annealer.tables import Tables

_NEGLIGIBLE_EXPONENT = 36.0  # exp(-36) is below the resolution of a float64 next to 1

_LEAST_STEP = 0.2
"""Added to every excess, as a share of a span: otherwise prices would approach their level too slowly."""


class Cooling(NamedTuple):
    """The cooling of a run and its charges for budgets.

    Attributes:
        length: sweeps of the whole run.
        hot: temperature of its first sweep.
        cold: temperature of its last sweep.
        below: reward of a unit of room, as a multiple of the price.
        above: charge of a unit over the limit, as a multiple of the price.
        rate: how fast prices move.
        trades: pair moves per sweep.
    """

    length: int
    hot: float
    cold: float
    below: float
    above: float
    rate: float
    trades: int


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


@compiled_part
def visit(tables: Tables, state: State, group: int, temperature: float, below: float, above: float) -> int:
    """Draw a group's choice again given all others; returns 1 if it changed."""
    start = tables.offsets[group]
    count = tables.offsets[group + 1] - start
    old, totals, costs = state.chosen[group], state.totals, state.costs
    energies, priced = energies_of(tables, state, group), state.values[2]
    for k in range(count):
        value = energies[k]
        for b in range(totals.size):
            total = totals[b] + costs[start + k, b] - costs[old, b]
            value += budget_charge(tables, state, b, total, below, above)
        priced[k] = value
    new = start + draw(state.random, priced, count, temperature)
    if new == old:
        return 0
    change(tables, state, group, new, energies[new - start] - energies[old - start])
    return 1


@compiled_part
def trade(tables: Tables, state: State, temperature: float, below: float, above: float) -> int:
    """Offer one group a random other choice while a second group is free to respond.

    The pair is drawn from its exact joint distribution over {current, offered} x (all choices of the
    second group). One group can thus get cheaper and the other more expensive in one move, which no single visit does.
    """
    offsets, costs, totals, values = tables.offsets, state.costs, state.totals, state.values
    groups = offsets.size - 1
    first = int(uniform(state.random) * groups)
    second = int(uniform(state.random) * (groups - 1))
    second += second >= first
    sizes = offsets[first + 1] - offsets[first]
    old_first, old_second = state.chosen[first], state.chosen[second]
    offered = offsets[first] + int(uniform(state.random) * sizes)
    if offered == old_first:
        return 0
    start = offsets[second]
    count = offsets[second + 1] - start
    begin_pair(tables, state, first, second)
    joined, raw = values[3], values[2]
    paired = tables.cost_partners.size > 0
    for side in range(2):
        v = offered if side else old_first
        pair_energies(tables, state, second, v, values[0])
        for k in range(count):
            energy = values[0, k]
            raw[side * count + k] = energy
            for b in range(totals.size):
                total = totals[b] + costs[v, b] - costs[old_first, b]
                total += costs[start + k, b] - costs[old_second, b]
                if side and paired:
                    total += joint_cost(tables, v, old_first, start + k, old_second, b)
                energy += budget_charge(tables, state, b, total, below, above)
            joined[side * count + k] = energy
    picked = draw(state.random, joined, 2 * count, temperature)
    here = raw[old_second - start]
    new_second = start + picked % count
    changed = 0
    # The joint gain is added once, with the second change.
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
    """Store the present choices if they are feasible and the best so far."""
    energies, chosen, best = state.energies, state.chosen, state.best
    if energies[0] < energies[1] and within_budgets(tables, state):
        energies[1] = energies[0]
        for g in range(chosen.size):
            best[g] = chosen[g]


@compiled_inline
def adapt_prices(tables: Tables, state: State, rate: float, below: float) -> None:
    """Raise the prices of exceeded budgets; lower the others, but only if room is rewarded."""
    for b in range(state.totals.size):
        step = float(state.totals[b] - tables.room[b]) / state.spans[b]
        if step > 0.0:
            state.prices[b] *= math.exp(rate * (_LEAST_STEP + step if _LEAST_STEP + step < 1.0 else 1.0))
        elif below > 0.0:
            state.prices[b] *= math.exp(rate * (step if step > -1.0 else -1.0))


@compiled_in_place
def anneal(tables: Tables, state: State, cooling: Cooling, begin: int, end: int) -> int:
    """Sweeps ``begin`` to ``end`` of a geometric cooling; returns the number of changes."""
    groups = tables.offsets.size - 1
    below, above = cooling.below, cooling.above
    changes = 0
    for sweep in range(begin, end):
        last = cooling.length - 1 if cooling.length > 1 else 1
        temperature = cooling.hot * (cooling.cold / cooling.hot) ** (sweep / last)
        # Start at a random group: otherwise the order of visits would favour the first groups.
        shift = int(uniform(state.random) * groups)
        for i in range(groups):
            changes += visit(tables, state, (i + shift) % groups, temperature, below, above)
        for _ in range(cooling.trades):
            changes += trade(tables, state, temperature, below, above)
        keep_best(tables, state)
        adapt_prices(tables, state, cooling.rate, below)
    return changes
