"""Compiled exact fill: from any state to one within the budgets that no single or double change improves."""

from __future__ import annotations

import numpy as np

from qubo_compress._internal.compiling import NONE, compiled_in_place, compiled_inline, compiled_part
from qubo_compress.solvers.annealer.cost_rows import joint_cost
from qubo_compress.solvers.annealer.kernels import (
    State,
    begin_pair,
    budget_charge,
    change,
    coupling_row,
    energies_of,
    pair_energies,
    uniform,
    within_budgets,
)
from qubo_compress.solvers.annealer.tables import DENSE, FACTOR, Tables

_PRICE_RISE = 1.5
"""Factor by which the price of an exceeded budget rises after each round of a repair."""


@compiled_inline
def fits(tables: Tables, state: State, group: int, new: int) -> bool:
    """Whether a single change keeps every total within its limit."""
    old, totals, costs = state.chosen[group], state.totals, state.costs
    for b in range(totals.size):  # noqa: SIM110 (kernels know no generators)
        if totals[b] + costs[new, b] - costs[old, b] > tables.room[b]:
            return False
    return True


@compiled_inline
def fits_pair(tables: Tables, state: State, old_first: int, old_second: int, first: int, second: int) -> bool:
    """Whether changing two groups to the choices ``first`` and ``second`` keeps every total within its limit."""
    totals, costs = state.totals, state.costs
    paired = tables.cost_partners.size > 0
    for b in range(totals.size):
        total = totals[b] + costs[first, b] - costs[old_first, b]
        total += costs[second, b] - costs[old_second, b]
        if paired:
            total += joint_cost(tables, first, old_first, second, old_second, b)
        if total > tables.room[b]:
            return False
    return True


@compiled_in_place
def repair(tables: Tables, state: State, rounds: int) -> bool:
    """Bring every total within its limit by best responses at rising prices; returns whether that worked.

    It stops at the first change that fits, to give up as little as possible. Groups whose ``free`` is 0 stay
    fixed; groups that change become dirty.
    """
    offsets, chosen, totals, costs = tables.offsets, state.chosen, state.totals, state.costs
    groups = offsets.size - 1
    for _ in range(rounds):
        if within_budgets(tables, state):
            return True
        shift = int(uniform(state.random) * groups)
        for i in range(groups):
            group = (i + shift) % groups
            if state.free[group] == 0:
                continue
            start, old = offsets[group], chosen[group]
            energies = energies_of(tables, state, group)
            new, least = old, 0.0
            for v in range(start, offsets[group + 1]):
                value = energies[v - start] - energies[old - start]
                for b in range(totals.size):
                    total = totals[b] + costs[v, b] - costs[old, b]
                    value += budget_charge(tables, state, b, total, 0.0, 1.0) - budget_charge(
                        tables, state, b, totals[b], 0.0, 1.0
                    )
                if value < least:
                    new, least = v, value
            if new != old:
                change(tables, state, group, new, energies[new - start] - energies[old - start])
                state.dirty[group] = 1
                if within_budgets(tables, state):
                    return True
        for b in range(totals.size):
            if totals[b] > tables.room[b]:
                state.prices[b] *= _PRICE_RISE
    return within_budgets(tables, state)


@compiled_in_place
def descend(tables: Tables, state: State, tolerance: float) -> int:
    """One pass of best single changes that fit; returns how many were made.

    Groups whose ``free`` is 0 stay fixed; groups that change become dirty.
    """
    offsets, chosen, free, dirty = tables.offsets, state.chosen, state.free, state.dirty
    changes = 0
    for group in range(offsets.size - 1):
        if free[group] == 0:
            continue
        start, old = offsets[group], chosen[group]
        energies = energies_of(tables, state, group)
        new, least = old, energies[old - start] - tolerance
        for v in range(start, offsets[group + 1]):
            if energies[v - start] < least and fits(tables, state, group, v):
                new, least = v, energies[v - start]
        if new != old:
            change(tables, state, group, new, energies[new - start] - energies[old - start])
            dirty[group] = 1
            changes += 1
    return changes


@compiled_in_place
def improve_pairs(tables: Tables, state: State, first: int, begin: int, end: int, tolerance: float) -> int:
    """Make the best fitting joint change of a group with each of the groups ``begin`` to ``end``, if it improves.

    Returns how many were made.
    """
    if tables.form != FACTOR:
        return improve_partners(tables, state, first, begin, end, tolerance)
    improved = 0
    for second in range(begin, end):
        improved += improve_factor_pair(tables, state, first, second, tolerance)
    return improved


@compiled_part
def improve_factor_pair(tables: Tables, state: State, first: int, second: int, tolerance: float) -> int:
    """Make the best joint change of two groups; evaluates every combination by inner products."""
    offsets = tables.offsets
    old_first, old_second = state.chosen[first], state.chosen[second]
    start = offsets[second]
    values = state.values[0]
    begin_pair(tables, state, first, second)
    pair_energies(tables, state, second, old_first, values)
    here = values[old_second - start]
    least, new_first, new_second = here - tolerance, old_first, old_second
    for v in range(offsets[first], offsets[first + 1]):
        pair_energies(tables, state, second, v, values)
        for w in range(start, offsets[second + 1]):
            if values[w - start] < least and fits_pair(tables, state, old_first, old_second, v, w):
                least, new_first, new_second = values[w - start], v, w
    if new_first == old_first and new_second == old_second:
        return 0
    change(tables, state, first, new_first, 0.0)
    change(tables, state, second, new_second, least - here)
    return 1


@compiled_part
def improve_partners(tables: Tables, state: State, first: int, begin: int, end: int, tolerance: float) -> int:
    """Make the best joint change of a group with each of others, from fields; a bound skips most combinations.

    With the choices of the second group in order of cost, the least energy among those that leave room for a choice
    of the first is a running minimum; adding the least possible pair energy gives a bound. Groups whose
    ``free`` is 0 stay fixed; partners that change become dirty.
    """
    fields, order, offsets, chosen, costs = state.fields, tables.order, tables.offsets, state.chosen, state.costs
    partner, lows, moved = state.values[0], state.values[1], state.values[2]
    row, back = state.couplings[0], state.couplings[1]
    budgets = state.totals.size
    # The order is by the choices' own costs, to which pair costs are added: then every combination is checked.
    paired = tables.cost_partners.size > 0
    ordered = budgets > 0 and not paired
    dense = tables.form == DENSE
    bounded = tables.floors.size > 0
    first_start, first_stop = offsets[first], offsets[first + 1]
    improved = 0
    for second in range(begin, end):
        if second == first or state.free[second] == 0:
            continue
        old_first, old_second = chosen[first], chosen[second]
        start = offsets[second]
        count = offsets[second + 1] - start
        coupled = dense or tables.near.size == 0 or tables.near[first, second]
        # A field includes a choice's pair energy with the other group's present choice, which no longer applies when
        # both change: ``row`` and ``back`` hold it. Energies are relative to the present, so both old choices give 0.
        base = -fields[old_second]
        if dense:
            near = tables.dense[old_first]
            base += near[old_second]
        elif coupled:
            coupling_row(tables, old_first, start, start + count, row)
            coupling_row(tables, old_second, first_start, first_stop, back)
            base += row[old_second - start]
        # The second group's side, cheapest choice first: its energy, and the least energy at that cost or below.
        low = np.inf
        for i in range(count):
            w = order[start + i]
            value = fields[w] + base
            if dense:
                value -= near[w]
            elif coupled:
                value -= row[w - start]
            partner[i] = value
            if value < low:
                low = value
            lows[i] = low
        # The joint cost allowed by the first budget. Further budgets are checked only for the remaining combinations.
        slack = 0
        if ordered:
            slack = tables.room[0] - state.totals[0] + costs[old_first, 0] + costs[old_second, 0]
        last = count - 1
        least, new_first, new_second = -tolerance, NONE, NONE
        here = fields[old_first]
        for j in range(first_start, first_stop):
            v = order[j]
            # The first group's choices get more expensive, so fewer of the second's fit: ``last`` only decreases, and
            # each order is traversed once.
            if ordered:
                while last >= 0 and costs[order[start + last], 0] + costs[v, 0] > slack:
                    last -= 1
                if last < 0:
                    break
            own = fields[v] - here
            floor = 0.0
            if dense:
                own -= tables.dense[old_second, v]
            elif coupled:
                own -= back[v - first_start]
            if coupled:
                floor = tables.floors[second, v] if bounded else -np.inf
            # A bound on everything that fits beside ``v``: most choices end here, without evaluating pairs.
            if own + lows[last] + floor >= least:
                continue
            if coupled and not dense:
                coupling_row(tables, v, start, start + count, moved)
            for i in range(last + 1):
                w = order[start + i]
                value = own + partner[i]
                if dense:
                    value += tables.dense[v, w]
                elif coupled:
                    value += moved[w - start]
                if value >= least:
                    continue
                if (budgets < 2 and not paired) or fits_pair(tables, state, old_first, old_second, v, w):
                    least, new_first, new_second = value, v, w
        if new_first >= 0:
            improved += 1
            if new_first != old_first:
                change(tables, state, first, new_first, 0.0)
            if new_second != old_second:
                change(tables, state, second, new_second, 0.0)
                state.dirty[second] = 1
            state.energies[0] += least
    return improved


@compiled_in_place
def improve_random_pairs(tables: Tables, state: State, tolerance: float, count: int) -> int:
    """Try joint changes of ``count`` random pairs of groups; returns how many were made."""
    groups = tables.offsets.size - 1
    changes = 0
    for _ in range(count):
        first = int(uniform(state.random) * groups)
        second = int(uniform(state.random) * (groups - 1))
        second += second >= first
        changes += improve_pairs(tables, state, first, second, second + 1, tolerance)
    return changes
