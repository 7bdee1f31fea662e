"""Compiled iterated local search: kick a few groups, hold them, let the others make room, keep what is better.

Near the optimum of a tight budget, one expensive choice must often make room for many cheap ones at once. At any
temperature, a walk of single and double changes must pass through worse states to get there; a kick imposes the change,
and repair and the best single and double changes adapt the rest.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from qubo_compress._internal.compiling import FIRST, compiled_in_place, compiled_part
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.solvers.annealer.kernels import State, change, energies_of, uniform, within_budgets
from qubo_compress.solvers.annealer.polish import descend, improve_partners, repair
from qubo_compress.solvers.annealer.tables import Tables

_ROUNDS = cast(int, np.int64(60))
"""Rounds of repair after a kick: prices rise by half in each, so they end far above any energy."""


@compiled_part
def move_to(tables: Tables, state: State, group: int, new: int) -> None:
    """Compute the gain of a single change and make it."""
    energies = energies_of(tables, state, group)
    start = tables.offsets[group]
    change(tables, state, group, new, energies[new - start] - energies[state.chosen[group] - start])


@compiled_in_place
def settle(tables: Tables, state: State, tolerance: float) -> int:
    """Make single changes, and double changes that involve a dirty group; returns how many pairs were tried."""
    groups = tables.offsets.size - 1
    free, dirty = state.free, state.dirty
    tried = 0
    while descend(tables, state, tolerance) > 0:
        pass
    idle, first = FIRST, FIRST
    while idle < groups:
        if dirty[first] and free[first]:
            dirty[first] = 0
            tried += groups
            if improve_partners(tables, state, first, FIRST, groups, tolerance) > 0:
                dirty[first] = 1  # its change makes its pairs worth trying again
                while descend(tables, state, tolerance) > 0:
                    pass
                idle = 0
                continue
        idle += 1
        first = (first + 1) % groups
    return tried


@compiled_in_place
def kick(
    tables: Tables,
    state: State,
    prices: FloatArray,
    tried: int,
    until: int,
    chance: float,
    tolerance: float,
) -> int:
    """Kick from the best state, where the walker must be, until a number of pairs have been tried.

    Args:
        tables: the problem, not in FACTOR form.
        state: at its ``best``, within the budgets.
        prices: (B,) first prices for making room.
        tried: pairs tried so far.
        until: no kick begins after this many pairs.
        chance: of each further group in a kick.
        tolerance: least gain that counts.

    Returns:
        Pairs tried, including earlier ones.
    """
    offsets, chosen, best = tables.offsets, state.chosen, state.best
    groups = offsets.size - 1
    free, dirty = state.free, state.dirty
    while tried < until:
        for group in range(groups):
            dirty[group] = 0
        while True:
            group = int(uniform(state.random) * groups)
            start, size = offsets[group], offsets[group + 1] - offsets[group]
            new = start + int(uniform(state.random) * size)
            free[group] = 0
            if new != chosen[group]:
                move_to(tables, state, group, new)
            if uniform(state.random) >= chance:
                break
        for b in range(prices.size):
            state.prices[b] = prices[b]
        tried += groups
        if repair(tables, state, _ROUNDS):
            # First settle with the kicked groups held, so that they do not simply change back; then free all groups
            # and try the pairs of every group that differs from the best state.
            tried += settle(tables, state, tolerance)
            for group in range(groups):
                dirty[group] = 1 if chosen[group] != best[group] else 0
                free[group] = 1
            tried += settle(tables, state, tolerance)
        for group in range(groups):
            free[group] = 1
        if within_budgets(tables, state) and state.energies[0] < state.energies[1] - tolerance:
            state.energies[1] = state.energies[0]
            for group in range(groups):
                best[group] = chosen[group]
        else:
            for group in range(groups):
                if chosen[group] != best[group]:
                    move_to(tables, state, group, best[group])
    return tried
