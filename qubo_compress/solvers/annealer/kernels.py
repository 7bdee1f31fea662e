"""Compiled state of the categorical annealer: the energies of moves, and making them.

A state is one choice per group. Pair energies enter through fields (DENSE and SPARSE: the energy each
choice would have given all others) or through the running sum of factor rows (FACTOR). Budgets enter
as prices: crossing a limit costs ``above`` times the price per unit, staying under it earns ``below``
times the price per unit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled, compiled_inline
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.annealer.tables import DENSE, FACTOR, SPARSE, Tables


class State(NamedTuple):
    """One walker; every array is changed in place by the kernels.

    Attributes:
        chosen: (G,) global choice numbers.
        fields: (V,) energy of each choice given the others, own group excluded; empty for FACTOR.
        sums: (r,) sum of the chosen factor rows, float64 so that it does not drift.
        totals: (B,) cost of the chosen choices, fixed costs excluded.
        prices: (B,) current price of one unit of each budget.
        spans: (B,) size of a typical change of a total, which scales how fast prices move.
        energies: energy now, energy of ``best``.
        best: (G,) the best choices met within the budgets at the end of a sweep.
        random: four words of the xoshiro256++ generator.
        values: scratch for the energies of up to two groups' worth of choices.
        couplings: scratch for two rows of pair energies.
        rest: scratch, (2, r) sums without the groups being moved.
        free: (G,) 0 for groups that the local search must leave as they are, else 1.
        dirty: (G,) 1 for groups whose pairs the local search has yet to try.
    """

    chosen: IntArray
    fields: FloatArray
    sums: FloatArray
    totals: IntArray
    prices: FloatArray
    spans: FloatArray
    energies: FloatArray
    best: IntArray
    random: npt.NDArray[np.uint64]
    values: FloatArray
    couplings: FloatArray
    rest: npt.NDArray[np.float32]
    free: npt.NDArray[np.uint8]
    dirty: npt.NDArray[np.uint8]


@compiled_inline
def uniform(words: npt.NDArray[np.uint64]) -> float:
    """The next number in [0, 1) of xoshiro256++."""
    total = words[0] + words[3]
    result = ((total << np.uint64(23)) | (total >> np.uint64(41))) + words[0]
    shifted = words[1] << np.uint64(17)
    words[2] ^= words[0]
    words[3] ^= words[1]
    words[1] ^= words[2]
    words[0] ^= words[3]
    words[2] ^= shifted
    words[3] = (words[3] << np.uint64(45)) | (words[3] >> np.uint64(19))
    return float(result >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled_inline
def dot(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Inner product of two float32 rows."""
    total = np.float32(0.0)
    for j in range(first.size):
        total += first[j] * second[j]
    return float(total)


@compiled
def start_state(tables: Tables, state: State) -> None:
    """Fill fields or sums, totals and the energy from ``chosen``."""
    groups = tables.offsets.size - 1
    state.totals[:] = 0
    state.sums[:] = 0.0
    if tables.form != FACTOR:
        state.fields[:] = tables.linear
    energy, inner = 0.0, 0.0
    for g in range(groups):
        v = state.chosen[g]
        energy += tables.linear[v]
        for b in range(state.totals.size):
            state.totals[b] += tables.costs[v, b]
        if tables.form == FACTOR:
            row = tables.factor[v]
            for j in range(row.size):
                state.sums[j] += row[j]
                inner += float(row[j]) * float(row[j])
        else:
            add_row(tables, state.fields, v, 1.0)
    if tables.form == FACTOR:
        energy += 0.5 * (np.sum(state.sums**2) - inner)
    else:
        for g in range(groups):
            v = state.chosen[g]
            energy += 0.5 * (state.fields[v] - tables.linear[v])
    state.energies[0] = energy


@compiled_inline
def add_row(tables: Tables, fields: FloatArray, v: int, sign: float) -> None:
    """Add the pair energies of choice ``v`` to all fields."""
    if tables.form == DENSE:
        row = tables.dense[v]
        for w in range(row.size):
            fields[w] += sign * row[w]
    elif tables.form == SPARSE:
        for i in range(tables.indptr[v], tables.indptr[v + 1]):
            fields[tables.indices[i]] += sign * tables.data[i]


@compiled_inline
def change(tables: Tables, state: State, group: int, new: int, gain: float) -> None:
    """Make ``new`` the choice of a group; ``gain`` is the change of the energy."""
    old = state.chosen[group]
    if tables.form == FACTOR:
        for j in range(state.sums.size):
            state.sums[j] += float(tables.factor[new, j]) - float(tables.factor[old, j])
    elif tables.form == DENSE:
        added, removed = tables.dense[new], tables.dense[old]
        for w in range(added.size):
            state.fields[w] += added[w] - removed[w]
    else:
        add_row(tables, state.fields, old, -1.0)
        add_row(tables, state.fields, new, 1.0)
    for b in range(state.totals.size):
        state.totals[b] += tables.costs[new, b] - tables.costs[old, b]
    state.chosen[group] = new
    state.energies[0] += gain


@compiled_inline
def group_energies(tables: Tables, state: State, group: int, out: FloatArray) -> None:
    """Energy of every choice of a group given all other groups, up to a common constant."""
    start, stop = tables.offsets[group], tables.offsets[group + 1]
    if tables.form == FACTOR:
        rest, own = state.rest[0], tables.factor[state.chosen[group]]
        for j in range(rest.size):
            rest[j] = state.sums[j] - own[j]
        for v in range(start, stop):
            out[v - start] = tables.linear[v] + dot(tables.factor[v], rest)
    else:
        for v in range(start, stop):
            out[v - start] = state.fields[v]


@compiled_inline
def coupling_row(tables: Tables, v: int, start: int, stop: int, out: FloatArray) -> None:
    """Pair energies of choice ``v`` with the choices ``start`` to ``stop``."""
    if tables.form == DENSE:
        for w in range(start, stop):
            out[w - start] = tables.dense[v, w]
        return
    for w in range(stop - start):
        out[w] = 0.0
    low, high = tables.indptr[v], tables.indptr[v + 1]
    while low < high:
        middle = (low + high) // 2
        if tables.indices[middle] < start:
            low = middle + 1
        else:
            high = middle
    while low < tables.indptr[v + 1] and tables.indices[low] < stop:
        out[tables.indices[low] - start] = tables.data[low]
        low += 1


@compiled_inline
def begin_pair(tables: Tables, state: State, first: int, second: int) -> None:
    """Prepare the scratch for :func:`pair_energies` on two groups."""
    if tables.form == FACTOR:
        rest = state.rest[0]
        one, two = tables.factor[state.chosen[first]], tables.factor[state.chosen[second]]
        for j in range(rest.size):
            rest[j] = state.sums[j] - one[j] - two[j]
    else:
        start, stop = tables.offsets[second], tables.offsets[second + 1]
        coupling_row(tables, state.chosen[first], start, stop, state.couplings[0])


@compiled_inline
def pair_energies(tables: Tables, state: State, second: int, v: int, out: FloatArray) -> None:
    """Energy with choice ``v`` in the first group and each choice in the second, up to a common constant."""
    start, stop = tables.offsets[second], tables.offsets[second + 1]
    if tables.form == FACTOR:
        rest, shifted, row = state.rest[0], state.rest[1], tables.factor[v]
        for j in range(rest.size):
            shifted[j] = rest[j] + row[j]
        base = tables.linear[v] + dot(row, rest)
        for w in range(start, stop):
            out[w - start] = base + tables.linear[w] + dot(tables.factor[w], shifted)
    else:
        current, moved = state.couplings[0], state.couplings[1]
        coupling_row(tables, v, start, stop, moved)
        base = state.fields[v] - moved[state.chosen[second] - start]
        for w in range(stop - start):
            out[w] = base + state.fields[start + w] - current[w] + moved[w]


@compiled_inline
def toll(tables: Tables, state: State, b: int, total: int, below: float, above: float) -> float:
    """What budget ``b`` charges at a total: positive over the limit, negative (or nothing) under it."""
    excess = float(total - tables.room[b])
    return float(state.prices[b]) * excess * (above if excess > 0.0 else below)


@compiled_inline
def within_budgets(tables: Tables, state: State) -> bool:
    """Whether every total is within its limit."""
    for b in range(state.totals.size):  # noqa: SIM110 (kernels know no generators)
        if state.totals[b] > tables.room[b]:
            return False
    return True
