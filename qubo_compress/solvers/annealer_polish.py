"""Compiled exact fill: from any state to one within the budgets that no single or double change improves."""

from __future__ import annotations

from qubo_compress.solvers.annealer_kernels import (
    State,
    begin_pair,
    change,
    group_energies,
    pair_energies,
    toll,
    uniform,
    within_budgets,
)
from qubo_compress.solvers.annealer_tables import Tables
from qubo_compress.solvers.compiling import compiled, compiled_inline


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
