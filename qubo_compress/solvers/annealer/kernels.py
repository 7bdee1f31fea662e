"""Compiled state of the categorical annealer: evaluates and makes moves.

A state is one choice per group. Pair energies enter through fields (DENSE and SPARSE: the energy each
choice would have given all others) or through the running sum of factor rows (FACTOR). Budgets enter
as prices: a unit over a limit costs ``above`` times the price, a unit of room earns ``below`` times the price.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled_in_place, compiled_inline, compiled_view
from qubo_compress._internal.kernel_arguments import KernelArguments
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.annealer.cost_rows import add_costs, exchange_costs
from qubo_compress.solvers.annealer.tables import DENSE, FACTOR, SPARSE, Tables


@dataclass(frozen=True, eq=False)
class State(KernelArguments):
    """One walker; every array is changed in place by the kernels.

    Attributes:
        chosen: (G,) global choice numbers.
        fields: (V,) energy of each choice given the others, own group excluded; empty for FACTOR.
        sums: (r,) sum of the chosen factor rows, float64 so that it does not drift.
        totals: (B,) cost of the chosen choices, fixed costs excluded.
        costs: (V, B) cost of each choice beside the present choices of all other groups; without pair costs, the
            tables' own array, which nothing changes.
        prices: (B,) current price of one unit of each budget.
        spans: (B,) size of a typical change of a total, which scales how fast prices move.
        energies: present energy, energy of ``best``.
        best: (G,) the best feasible choices at the end of any sweep.
        random: four words of the xoshiro256++ generator.
        values: scratch for the energies of all choices of up to two groups.
        couplings: scratch for two rows of pair energies.
        rest: scratch, (2, r) sums without the groups being moved.
        free: (G,) 0 for groups that the local search must not change, else 1.
        dirty: (G,) 1 for groups whose pairs the local search has yet to try.
    """

    chosen: IntArray
    fields: FloatArray
    sums: FloatArray
    totals: IntArray
    costs: IntArray
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
    # The upper 53 bits, which a float64 holds exactly, over 2**53.
    return float(result >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled_inline
def dot(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Inner product of two float32 rows."""
    total = np.float32(0.0)
    for j in range(first.size):
        total += first[j] * second[j]
    return float(total)


@compiled_in_place
def start_state(tables: Tables, state: State) -> None:
    """Fill fields or sums, totals and the energy from ``chosen``."""
    chosen, totals, sums, fields = state.chosen, state.totals, state.sums, state.fields
    linear, costs = tables.linear, tables.costs
    start_costs(tables, state)
    for b in range(totals.size):
        totals[b] = 0
    for j in range(sums.size):
        sums[j] = 0.0
    for w in range(fields.size):
        fields[w] = linear[w]
    energy, inner = 0.0, 0.0
    for g in range(chosen.size):
        v = chosen[g]
        energy += linear[v]
        for b in range(totals.size):
            totals[b] += costs[v, b] + state.costs[v, b]
        if tables.form == FACTOR:
            row = tables.factor[v]
            for j in range(row.size):
                sums[j] += row[j]
                inner += float(row[j]) * float(row[j])
        else:
            add_row(tables, fields, v, 1.0)
    for b in range(totals.size):
        totals[b] //= 2  # exact: what a choice costs beside the others, less its own costs, is there twice
    if tables.form == FACTOR:
        # Pairs of different groups contribute half of the square of the sum less the squares of the rows.
        squares = 0.0
        for j in range(sums.size):
            squares += sums[j] * sums[j]
        energy += 0.5 * (squares - inner)
    else:
        for g in range(chosen.size):
            energy += 0.5 * (fields[chosen[g]] - linear[chosen[g]])
    state.energies[0] = energy


@compiled_inline
def start_costs(tables: Tables, state: State) -> None:
    """Fill the costs beside the chosen choices."""
    if tables.cost_partners.size == 0:
        return  # they are the tables' own
    for v in range(state.costs.shape[0]):
        for b in range(state.costs.shape[1]):
            state.costs[v, b] = tables.costs[v, b]
    for g in range(state.chosen.size):
        add_costs(tables, state.costs, state.chosen[g])


@compiled_inline
def add_row(tables: Tables, fields: FloatArray, v: int, sign: float) -> None:
    """Add the pair energies of choice ``v`` to all fields."""
    if tables.form == DENSE:
        row = tables.dense[v]
        for w in range(row.size):
            fields[w] += sign * row[w]
    elif tables.form == SPARSE:
        indices, data = tables.indices, tables.data
        for i in range(tables.indptr[v], tables.indptr[v + 1]):
            fields[indices[i]] += sign * data[i]


@compiled_inline
def change(tables: Tables, state: State, group: int, new: int, gain: float) -> None:
    """Make ``new`` the choice of a group; ``gain`` is the change of the energy."""
    old = state.chosen[group]
    if tables.form == FACTOR:
        sums, entering, leaving = state.sums, tables.factor[new], tables.factor[old]
        for j in range(sums.size):
            sums[j] += float(entering[j]) - float(leaving[j])
    elif tables.form == DENSE:
        fields, added, removed = state.fields, tables.dense[new], tables.dense[old]
        for w in range(added.size):
            fields[w] += added[w] - removed[w]
    else:
        add_row(tables, state.fields, old, -1.0)
        add_row(tables, state.fields, new, 1.0)
    totals, costs = state.totals, state.costs
    for b in range(totals.size):
        totals[b] += costs[new, b] - costs[old, b]
    if tables.cost_partners.size > 0:
        exchange_costs(tables, costs, old, new)
    state.chosen[group] = new
    state.energies[0] += gain


@compiled_view
def energies_of(tables: Tables, state: State, group: int) -> FloatArray:
    """Energy of every choice of a group given all other groups, up to a common constant; a read-only view.

    It views the fields, or the start of the first row of ``values`` if the energies had to be computed.
    """
    start, stop = tables.offsets[group], tables.offsets[group + 1]
    if tables.form != FACTOR:
        return state.fields[start:stop]
    out: FloatArray = state.values[0]
    linear, factor = tables.linear, tables.factor
    sums, rest, own = state.sums, state.rest[0], factor[state.chosen[group]]
    for j in range(rest.size):
        rest[j] = sums[j] - own[j]
    for v in range(start, stop):
        out[v - start] = linear[v] + dot(factor[v], rest)
    return out


@compiled_inline
def coupling_row(tables: Tables, v: int, start: int, stop: int, out: FloatArray) -> None:
    """Pair energies of choice ``v`` with the choices ``start`` to ``stop``."""
    if tables.form == DENSE:
        row = tables.dense[v]
        for w in range(start, stop):
            out[w - start] = row[w]
        return
    for w in range(stop - start):
        out[w] = 0.0
    indices, data = tables.indices, tables.data
    low, end = tables.indptr[v], tables.indptr[v + 1]
    high = end
    while low < high:  # bisection for the first stored column that is not before ``start``
        middle = (low + high) // 2
        if indices[middle] < start:
            low = middle + 1
        else:
            high = middle
    while low < end and indices[low] < stop:
        out[indices[low] - start] = data[low]
        low += 1


@compiled_inline
def begin_pair(tables: Tables, state: State, first: int, second: int) -> None:
    """Prepare the scratch for :func:`pair_energies` on two groups."""
    chosen = state.chosen
    if tables.form == FACTOR:
        rest, sums = state.rest[0], state.sums
        one, two = tables.factor[chosen[first]], tables.factor[chosen[second]]
        for j in range(rest.size):
            rest[j] = sums[j] - one[j] - two[j]
    else:
        start, stop = tables.offsets[second], tables.offsets[second + 1]
        coupling_row(tables, chosen[first], start, stop, state.couplings[0])


@compiled_inline
def pair_energies(tables: Tables, state: State, second: int, v: int, out: FloatArray) -> None:
    """Energy with choice ``v`` in the first group and each choice in the second, up to a common constant."""
    start, stop = tables.offsets[second], tables.offsets[second + 1]
    if tables.form == FACTOR:
        linear, factor = tables.linear, tables.factor
        rest, shifted, row = state.rest[0], state.rest[1], factor[v]
        for j in range(rest.size):
            shifted[j] = rest[j] + row[j]
        base = linear[v] + dot(row, rest)
        for w in range(start, stop):
            out[w - start] = base + linear[w] + dot(factor[w], shifted)
    else:
        fields, current, moved = state.fields, state.couplings[0], state.couplings[1]
        coupling_row(tables, v, start, stop, moved)
        base = fields[v] - moved[state.chosen[second] - start]
        for w in range(stop - start):
            out[w] = base + fields[start + w] - current[w] + moved[w]


@compiled_inline
def budget_charge(tables: Tables, state: State, b: int, total: int, below: float, above: float) -> float:
    """The charge of budget ``b`` at a total: positive over the limit, negative or zero under it."""
    excess = float(total - tables.room[b])
    return float(state.prices[b]) * excess * (above if excess > 0.0 else below)


@compiled_inline
def within_budgets(tables: Tables, state: State) -> bool:
    """Whether every total is within its limit."""
    totals, room = state.totals, tables.room
    for b in range(totals.size):  # noqa: SIM110 (kernels know no generators)
        if totals[b] > room[b]:
            return False
    return True
