"""Compiled exact fill: from any state to one within the budgets that no single or double change improves."""

from __future__ import annotations

import numpy as np

from qubo_compress._internal.compiling import NONE, compiled, compiled_inline
from qubo_compress.solvers.annealer.kernels import (
    State,
    begin_pair,
    change,
    coupling_row,
    group_energies,
    pair_energies,
    toll,
    uniform,
    within_budgets,
)
from qubo_compress.solvers.annealer.tables import DENSE, FACTOR, Tables


@compiled_inline
def fits(tables: Tables, state: State, group: int, new: int) -> bool:
    """Whether a single change keeps every total within its limit."""
    old = state.chosen[group]
    for b in range(state.totals.size):
        if state.totals[b] + tables.costs[new, b] - tables.costs[old, b] > tables.room[b]:
            return False
    return True


@compiled_inline
def fits_pair(tables: Tables, state: State, olds: tuple[int, int], news: tuple[int, int]) -> bool:
    """Whether a double change keeps every total within its limit."""
    for b in range(state.totals.size):
        total = state.totals[b] + tables.costs[news[0], b] - tables.costs[olds[0], b]
        if total + tables.costs[news[1], b] - tables.costs[olds[1], b] > tables.room[b]:
            return False
    return True


@compiled
def repair(tables: Tables, state: State, rounds: int) -> bool:
    """Bring every total within its limit by best responses at ever higher prices; says whether that worked.

    It stops at the first change that fits, so that as little as possible is given up.
    """
    groups = tables.offsets.size - 1
    values = state.values[0]
    for _ in range(rounds):
        if within_budgets(tables, state):
            return True
        shift = int(uniform(state.random) * groups)
        for i in range(groups):
            group = (i + shift) % groups
            start, stop = tables.offsets[group], tables.offsets[group + 1]
            old = state.chosen[group]
            group_energies(tables, state, group, values)
            new, least = old, 0.0
            for v in range(start, stop):
                value = values[v - start] - values[old - start]
                for b in range(state.totals.size):
                    total = state.totals[b] + tables.costs[v, b] - tables.costs[old, b]
                    value += toll(tables, state, b, total, 0.0, 1.0) - toll(tables, state, b, state.totals[b], 0.0, 1.0)
                if value < least:
                    new, least = v, value
            if new != old:
                change(tables, state, group, new, values[new - start] - values[old - start])
                if within_budgets(tables, state):
                    return True
        for b in range(state.totals.size):
            if state.totals[b] > tables.room[b]:
                state.prices[b] *= 1.5
    return within_budgets(tables, state)


@compiled
def descend(tables: Tables, state: State, tolerance: float) -> int:
    """One pass of best single changes that fit; returns how many were made."""
    changes = 0
    values = state.values[0]
    for group in range(tables.offsets.size - 1):
        start, stop = tables.offsets[group], tables.offsets[group + 1]
        old = state.chosen[group]
        group_energies(tables, state, group, values)
        new, least = old, values[old - start] - tolerance
        for v in range(start, stop):
            if values[v - start] < least and fits(tables, state, group, v):
                new, least = v, values[v - start]
        if new != old:
            change(tables, state, group, new, values[new - start] - values[old - start])
            changes += 1
    return changes


@compiled
def improve_pair(tables: Tables, state: State, first: int, second: int, tolerance: float) -> int:
    """The best joint change of two groups that fits, if it improves; returns 1 when made."""
    if tables.form == FACTOR:
        return improve_factor_pair(tables, state, first, second, tolerance)
    return improve_partners(tables, state, first, second, second + 1, tolerance)


@compiled
def improve_factor_pair(tables: Tables, state: State, first: int, second: int, tolerance: float) -> int:
    """As :func:`improve_pair`, from inner products: every combination is evaluated."""
    olds = (state.chosen[first], state.chosen[second])
    start = tables.offsets[second]
    count = tables.offsets[second + 1] - start
    values = state.values[0]
    begin_pair(tables, state, first, second)
    pair_energies(tables, state, second, olds[0], values)
    here = values[olds[1] - start]
    least, news = here - tolerance, olds
    for v in range(tables.offsets[first], tables.offsets[first + 1]):
        pair_energies(tables, state, second, v, values)
        for k in range(count):
            if values[k] < least and fits_pair(tables, state, olds, (v, start + k)):
                least, news = values[k], (v, start + k)
    if news == olds:
        return 0
    change(tables, state, first, news[0], 0.0)
    change(tables, state, second, news[1], least - here)
    return 1


@compiled
def improve_partners(tables: Tables, state: State, first: int, begin: int, end: int, tolerance: float) -> int:
    """The best joint change that fits of a group and each of the groups ``begin`` to ``end``, made where it improves.

    From fields, and most choices are passed over unseen: with the choices of the second group in order of
    cost, the least energy among those that leave room for a choice of the first is a running minimum, and
    adding the least pair energy that there can be gives a bound. Groups whose ``free`` is 0 stay as they are.
    """
    fields, order, offsets, chosen, costs = state.fields, tables.order, tables.offsets, state.chosen, tables.costs
    partner, lows, row, back = state.values[0], state.values[1], state.couplings[0], state.couplings[1]
    budgets = state.totals.size
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
        base = -fields[old_second]
        if dense:
            near = tables.dense[old_first]
            base += near[old_second]
        elif coupled:
            coupling_row(tables, old_first, start, start + count, row)
            coupling_row(tables, old_second, first_start, first_stop, back)
            base += row[old_second - start]
        low = np.inf
        for i in range(count):
            w = order[start + i]
            value = fields[w] + base
            if dense:
                value -= near[w]
            elif coupled:
                value -= row[w - start]
            partner[i] = value
            low = min(low, value)
            lows[i] = low
        slack = 0
        if budgets > 0:
            slack = tables.room[0] - state.totals[0] + costs[old_first, 0] + costs[old_second, 0]
        last = count - 1
        least, new_first, new_second = -tolerance, NONE, NONE
        here = fields[old_first]
        for j in range(first_start, first_stop):
            v = order[j]
            if budgets > 0:
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
            if own + lows[last] + floor >= least:
                continue
            moved = state.values[2]
            if coupled and not dense:
                coupling_row(tables, v, start, start + count, moved)
            for i in range(last + 1):
                w = order[start + i]
                value = own + partner[i]
                if dense:
                    value += tables.dense[v, w]
                elif coupled:
                    value += moved[w - start]
                if value < least and (budgets < 2 or fits_pair(tables, state, (old_first, old_second), (v, w))):
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


@compiled
def improve_all_pairs(tables: Tables, state: State, tolerance: float) -> int:
    """One pass over every pair of groups; returns how many double changes were made."""
    groups = tables.offsets.size - 1
    changes = 0
    for first in range(groups):
        for second in range(first + 1, groups):
            changes += improve_pair(tables, state, first, second, tolerance)
    return changes


@compiled
def improve_random_pairs(tables: Tables, state: State, tolerance: float, count: int) -> int:
    """Joint changes of ``count`` random pairs of groups; returns how many were made."""
    groups = tables.offsets.size - 1
    changes = 0
    for _ in range(count):
        first = int(uniform(state.random) * groups)
        second = int(uniform(state.random) * (groups - 1))
        second += second >= first
        changes += improve_pair(tables, state, first, second, tolerance)
    return changes
