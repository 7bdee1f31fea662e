"""Compiled iterated local search: kick a few groups, hold them, let the others make room, keep what is better.

Near the optimum of a tight budget one expensive choice must often give way to many cheap ones at once. A walk of single
and double changes has to pass through worse states for that, at any temperature; here the expensive choice is imposed
and the rest answers by repair and by best single and double changes.
"""

from __future__ import annotations

from qubo_compress._internal.compiling import FIRST, compiled
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.solvers.annealer.kernels import State, change, group_energies, toll, uniform, within_budgets
from qubo_compress.solvers.annealer.polish import fits, improve_partners
from qubo_compress.solvers.annealer.tables import Tables


@compiled
def move_to(tables: Tables, state: State, group: int, new: int) -> None:
    """Make a single change, the gain computed on the way."""
    values = state.values[0]
    group_energies(tables, state, group, values)
    start = tables.offsets[group]
    change(tables, state, group, new, values[new - start] - values[state.chosen[group] - start])


@compiled
def make_room(tables: Tables, state: State, rounds: int) -> bool:
    """Bring the totals within their limits by best responses of the groups not held, at ever higher prices."""
    groups = tables.offsets.size - 1
    values = state.values[0]
    for _ in range(rounds):
        if within_budgets(tables, state):
            return True
        shift = int(uniform(state.random) * groups)
        for i in range(groups):
            group = (i + shift) % groups
            if state.free[group] == 0:
                continue
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
                state.dirty[group] = 1
                if within_budgets(tables, state):
                    return True
        for b in range(state.totals.size):
            if state.totals[b] > tables.room[b]:
                state.prices[b] *= 1.5
    return within_budgets(tables, state)


@compiled
def improve_singles(tables: Tables, state: State, tolerance: float) -> None:
    """Best single changes that fit of the groups not held, until none improves; what changed becomes dirty."""
    groups = tables.offsets.size - 1
    fields = state.fields
    changed = True
    while changed:
        changed = False
        for group in range(groups):
            if state.free[group] == 0:
                continue
            old = state.chosen[group]
            new, least = old, fields[old] - tolerance
            for v in range(tables.offsets[group], tables.offsets[group + 1]):
                if fields[v] < least and fits(tables, state, group, v):
                    new, least = v, fields[v]
            if new != old:
                change(tables, state, group, new, fields[new] - fields[old])
                state.dirty[group] = 1
                changed = True


@compiled
def settle(tables: Tables, state: State, tolerance: float) -> int:
    """Single changes, and double changes in which a dirty group takes part; returns how many pairs were tried."""
    groups = tables.offsets.size - 1
    tried = 0
    improve_singles(tables, state, tolerance)
    idle, first = FIRST, FIRST
    while idle < groups:
        if state.dirty[first] and state.free[first]:
            state.dirty[first] = 0
            tried += groups
            if improve_partners(tables, state, first, FIRST, groups, tolerance) > 0:
                state.dirty[first] = 1
                improve_singles(tables, state, tolerance)
                idle = 0
                continue
        idle += 1
        first = (first + 1) % groups
    return tried


@compiled
def kick(
    tables: Tables,
    state: State,
    prices: FloatArray,
    tried: int,
    until: int,
    chance: float,
    tolerance: float,
) -> int:
    """Kicks from the best state, at which the state must be, until a number of pairs have been tried.

    Args:
        tables: the problem, not in FACTOR form.
        state: at its ``best``, within the budgets.
        prices: (B,) prices at which making room begins.
        tried: pairs tried so far.
        until: pairs after which no further kick is begun.
        chance: of a kick to more than one group, for each further group.
        tolerance: least gain that counts.

    Returns:
        Pairs tried, those before included.
    """
    groups = tables.offsets.size - 1
    free, dirty = state.free, state.dirty
    while tried < until:
        dirty[:] = 0
        while True:
            group = int(uniform(state.random) * groups)
            start, size = tables.offsets[group], tables.offsets[group + 1] - tables.offsets[group]
            new = start + int(uniform(state.random) * size)
            free[group] = 0
            if new != state.chosen[group]:
                move_to(tables, state, group, new)
            if uniform(state.random) >= chance:
                break
        state.prices[:] = prices
        tried += groups
        if make_room(tables, state, 60):
            tried += settle(tables, state, tolerance)
            for group in range(groups):
                dirty[group] = 1 if state.chosen[group] != state.best[group] else 0
            free[:] = 1
            tried += settle(tables, state, tolerance)
        free[:] = 1
        if within_budgets(tables, state) and state.energies[0] < state.energies[1] - tolerance:
            state.energies[1] = state.energies[0]
            state.best[:] = state.chosen
        else:
            for group in range(groups):
                if state.chosen[group] != state.best[group]:
                    move_to(tables, state, group, state.best[group])
    return tried
