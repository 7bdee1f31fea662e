"""Compiled inner loops of branch and bound: bounding one node, and enumerating what little is left of one."""

from __future__ import annotations

from typing import cast

import numpy as np

from qubo_compress._internal.compiling import compiled
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.exact.branch_nodes import ByteArray, ShortArray, Slots
from qubo_compress.solvers.exact.price_kernels import certified_bound, polish_prices
from qubo_compress.solvers.exact.relaxation_kernels import descend_gram, prices_of

_SWEEPS_PER_LOOK = 4
_POLISHING_ROUNDS = cast(int, np.int64(2))

_ENUMERATE = 4096
"""Combinations that are enumerated rather than branched on."""


@compiled
def drop_unaffordable(
    offsets: IntArray, choices: IntArray, costs: FloatArray, room: FloatArray
) -> tuple[IntArray, IntArray]:
    """Offsets and choices without those that no completion can pay for; empty when nothing fits at all."""
    groups = offsets.size - 1
    out_offsets, out = offsets.copy(), choices.copy()
    while True:
        spare = room.copy()
        least = np.full((groups, room.size), np.inf)
        for g in range(groups):
            for position in range(out_offsets[g], out_offsets[g + 1]):
                for b in range(room.size):
                    least[g, b] = min(least[g, b], costs[out[position], b])
            for b in range(room.size):
                spare[b] -= least[g, b]
        for b in range(room.size):
            if spare[b] < 0.0:
                return np.zeros(groups + 1, dtype=np.int64), np.zeros(0, dtype=np.int64)
        size, start = 0, 0
        for g in range(groups):
            stop = out_offsets[g + 1]
            for position in range(start, stop):
                fits = True
                for b in range(room.size):
                    if costs[out[position], b] - least[g, b] > spare[b]:
                        fits = False
                if fits:
                    out[size] = out[position]
                    size += 1
            start = stop
            out_offsets[g + 1] = size
        if size == out.size:
            return out_offsets, out
        out = out[:size].copy()


@compiled
def settle(
    diagonal: FloatArray, gram: FloatArray, offsets: IntArray, choices: IntArray, x: FloatArray, gradient: FloatArray
) -> None:
    """Make ``x`` a mixture of the choices left and ``gradient`` its gradient.

    ``x`` may hold shares of choices that are gone; a group that loses all its shares gets the choice
    that suits the others best.
    """
    given = x.copy()
    x[:] = 0.0
    for g in range(offsets.size - 1):
        total = 0.0
        for position in range(offsets[g], offsets[g + 1]):
            total += given[choices[position]]
        for position in range(offsets[g], offsets[g + 1]):
            x[choices[position]] = given[choices[position]] / total if total > 1e-9 else 0.0
    refresh(diagonal, gram, choices, x, gradient)
    for g in range(offsets.size - 1):
        low, total = choices[offsets[g]], 0.0
        for position in range(offsets[g], offsets[g + 1]):
            v = choices[position]
            total += x[v]
            if gradient[v] < gradient[low]:
                low = v
        if total == 0.0:
            x[low] = 1.0
            for w in range(gradient.size):
                gradient[w] += gram[low, w]


@compiled
def refresh(diagonal: FloatArray, gram: FloatArray, choices: IntArray, x: FloatArray, gradient: FloatArray) -> None:
    """The gradient anew from the shares, so that no rounding of earlier shifts remains."""
    gradient[:] = diagonal
    for position in range(choices.size):
        v = choices[position]
        if x[v] > 0.0:
            for w in range(gradient.size):
                gradient[w] += x[v] * gram[v, w]


@compiled
def bound_node(
    constant: float,
    diagonal: FloatArray,
    gram: FloatArray,
    costs: FloatArray,
    room: FloatArray,
    stiffness: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    x: FloatArray,
    multipliers: FloatArray,
    price: FloatArray,
    proof: FloatArray,
    reduced: FloatArray,
    cutoff: float,
    looks: int,
) -> float:
    """Bound of the problem restricted to some choices, by the relaxation warm-started from ``x``.

    Stops once the bound passes ``cutoff`` or once it evidently cannot. ``x`` and ``multipliers`` go where the search
    ends; ``proof`` and ``price`` receive the mixture and the prices that prove the bound, and ``reduced`` by how
    much the bound rises if a choice must be used.
    """
    budgets = room.size
    gradient, used, trial = np.empty(diagonal.size), np.empty(budgets), np.empty(budgets)
    settle(diagonal, gram, offsets, choices, x, gradient)
    best = -np.inf
    for _ in range(looks):
        used[:] = 0.0
        for position in range(choices.size):
            v = choices[position]
            if x[v] > 0.0:
                for b in range(budgets):
                    used[b] += x[v] * costs[v, b]
        for sweep in range(_SWEEPS_PER_LOOK):
            descend_gram(gram, offsets, choices, costs, room, multipliers, stiffness, x, gradient, used)
            if sweep % 2 == 1:
                prices_of(multipliers, stiffness, used, room, multipliers)
        refresh(diagonal, gram, choices, x, gradient)
        quadratic, primal = 0.0, constant
        for position in range(choices.size):
            v = choices[position]
            quadratic += x[v] * (gradient[v] - diagonal[v])
            primal += x[v] * diagonal[v]
        primal += 0.5 * quadratic
        for b in range(budgets):  # the augmented Lagrangian, which the mixture may overspend
            primal += max(0.0, multipliers[b]) * (used[b] - room[b])
        trial[:] = multipliers
        if polish_prices(gradient, offsets, choices, costs, room, trial, _POLISHING_ROUNDS) == np.inf:
            return np.inf
        value = constant + certified_bound(
            diagonal, gradient, quadratic, offsets, choices, costs, room, trial, diagonal.size
        )
        value -= 1e-15 * (abs(value) + abs(constant))
        if value > best:
            best = value
            price[:] = trial
            proof[:] = x
            reduce_costs(offsets, choices, costs, gradient, trial, reduced)
        if best > cutoff or primal - best < 0.03 * (cutoff - best):
            break
    return best


@compiled
def reduce_costs(
    offsets: IntArray, choices: IntArray, costs: FloatArray, slopes: FloatArray, price: FloatArray, reduced: FloatArray
) -> None:
    """Put into ``reduced`` by how much the priced slope of each choice left exceeds the least of its group."""
    for g in range(offsets.size - 1):
        low = np.inf
        for position in range(offsets[g], offsets[g + 1]):
            v = choices[position]
            reduced[v] = slopes[v]
            for b in range(price.size):
                reduced[v] += price[b] * costs[v, b]
            low = min(low, reduced[v])
        for position in range(offsets[g], offsets[g + 1]):
            reduced[choices[position]] -= low


@compiled
def expand(
    constant: float,
    diagonal: FloatArray,
    gram: FloatArray,
    costs: FloatArray,
    room: FloatArray,
    stiffness: FloatArray,
    all_offsets: IntArray,
    slots: Slots,
    first: int,
    stop: int,
    cutoff: float,
    best: float,
    looks: int,
) -> None:
    """Bound the nodes in the slots from ``first`` to ``stop`` and find the children of those that stay open.

    A node with few combinations left is enumerated instead. Slots are independent: threads may share them out.
    """
    reduced, proof = np.empty(diagonal.size), np.empty(diagonal.size)
    for i in range(first, stop):
        slots.children[i, 0], slots.answer[i, 0] = -1, -1
        slots.closed[i] = np.inf
        slots.bound[i] = slots.inherited[i]
        if slots.inherited[i] >= cutoff:
            slots.closed[i] = slots.inherited[i]
            continue
        offsets, choices = listed(all_offsets, slots.allowed[i])
        offsets, choices = drop_unaffordable(offsets, choices, costs, room)
        if choices.size == 0:
            slots.bound[i] = np.inf
            continue
        if few(offsets):
            enumerate_rest(constant, diagonal, gram, costs, room, all_offsets, offsets, choices, best, slots.answer[i])
            continue
        x, multipliers, price = slots.x[i], slots.multipliers[i], slots.price[i]
        value = bound_node(
            constant, diagonal, gram, costs, room, stiffness, offsets, choices, x, multipliers, price, proof, reduced,
            cutoff, looks,
        )  # fmt: skip
        slots.bound[i] = value
        if max(value, slots.inherited[i]) >= cutoff:
            slots.closed[i] = max(value, slots.inherited[i])
            x[:] = proof
            continue
        slots.allowed[i] = 0
        empty = False
        size = 0
        for g in range(offsets.size - 1):
            start = size
            begin, end = offsets[g], offsets[g + 1]
            offsets[g] = start
            for position in range(begin, end):
                v = choices[position]
                if value + reduced[v] >= cutoff:
                    slots.closed[i] = min(slots.closed[i], value + reduced[v])
                else:
                    choices[size] = v
                    slots.allowed[i, v] = 1
                    size += 1
            empty = empty or size == start
        offsets[offsets.size - 1] = size
        if not empty:
            choices = choices[:size]
            if few(offsets):
                enumerate_rest(
                    constant, diagonal, gram, costs, room, all_offsets, offsets, choices, best, slots.answer[i]
                )
            else:
                branch(
                    gram, offsets, choices, x, reduced, value, slots.inherited[i], slots.children[i], slots.bounds[i]
                )
        x[:] = proof


@compiled
def listed(all_offsets: IntArray, allowed: ByteArray) -> tuple[IntArray, IntArray]:
    """Offsets and choices of the choices that are allowed."""
    offsets = np.zeros(all_offsets.size, dtype=np.int64)
    choices = np.empty(allowed.size, dtype=np.int64)
    size = 0
    for g in range(all_offsets.size - 1):
        for v in range(all_offsets[g], all_offsets[g + 1]):
            if allowed[v]:
                choices[size] = v
                size += 1
        offsets[g + 1] = size
    return offsets, choices[:size].copy()


@compiled
def few(offsets: IntArray) -> bool:
    """Whether so few combinations are left that they are enumerated."""
    combinations = 1.0
    for g in range(offsets.size - 1):
        combinations *= offsets[g + 1] - offsets[g]
    return bool(combinations <= _ENUMERATE)


@compiled
def branch(
    gram: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    x: FloatArray,
    reduced: FloatArray,
    value: float,
    inherited: float,
    children: ShortArray,
    bounds: FloatArray,
) -> None:
    """The choices of the group to branch on with their bounds, best first."""
    g = widest_group(gram, offsets, choices, x)
    count = offsets[g + 1] - offsets[g]
    for i in range(count):
        v = choices[offsets[g] + i]
        # The parent's bound holds for the child too, but only the node's own one may be raised by reduced costs.
        bound = max(inherited, value + reduced[v])
        place = i
        while place > 0 and bounds[place - 1] > bound:
            bounds[place], children[place] = bounds[place - 1], children[place - 1]
            place -= 1
        bounds[place], children[place] = bound, v
    if count < children.size:
        children[count], bounds[count] = -1, np.inf


@compiled
def widest_group(gram: FloatArray, offsets: IntArray, choices: IntArray, x: FloatArray) -> int:
    """The group whose mixture hides most energy from the relaxation; the largest one if all are pure."""
    best, widest, pick = 1e-12, 0, 0
    fallback = 0
    found = False
    for g in range(offsets.size - 1):
        start, stop = offsets[g], offsets[g + 1]
        if stop - start < 2:
            continue
        if stop - start > widest:
            widest, fallback = stop - start, g
        hidden, mixed = 0.0, 0.0
        for i in range(start, stop):
            v = choices[i]
            if x[v] > 0.0:
                hidden += x[v] * gram[v, v]
                mixed += x[v] * (1.0 - x[v])
                for j in range(start, stop):
                    if x[choices[j]] > 0.0:
                        hidden -= x[v] * x[choices[j]] * gram[v, choices[j]]
        hidden += 1e-9 * mixed
        if hidden > best:
            best, pick, found = hidden, g, True
    return pick if found else fallback


@compiled
def enumerate_rest(
    constant: float,
    diagonal: FloatArray,
    gram: FloatArray,
    costs: FloatArray,
    room: FloatArray,
    all_offsets: IntArray,
    offsets: IntArray,
    choices: IntArray,
    best: float,
    answer: IntArray,
) -> None:
    """Put the best of all combinations of the choices left into ``answer``, if better than ``best``.

    Depth first, budgets exact; ``answer`` holds local numbers, -1 in front when nothing is better.
    """
    groups, size, budgets = offsets.size - 1, choices.size, room.size
    # fields[d, i]: energy that choice i would add after the first d groups are decided.
    fields = np.empty((groups + 1, size))
    for i in range(size):
        fields[0, i] = diagonal[choices[i]] + 0.5 * gram[choices[i], choices[i]]
    rest = np.zeros((groups + 1, budgets))
    for g in range(groups - 1, -1, -1):
        for b in range(budgets):
            least = np.inf
            for i in range(offsets[g], offsets[g + 1]):
                least = min(least, costs[choices[i], b])
            rest[g, b] = rest[g + 1, b] + least
    energy, spent = np.zeros(groups + 1), np.zeros((groups + 1, budgets))
    energy[0] = constant
    position = offsets[:-1].copy()
    answer[0] = -1
    depth = 0
    while depth >= 0:
        i = position[depth]
        if i == offsets[depth + 1]:
            position[depth] = offsets[depth]
            depth -= 1
            continue
        position[depth] = i + 1
        v, fits = choices[i], True
        for b in range(budgets):
            spent[depth + 1, b] = spent[depth, b] + costs[v, b]
            if spent[depth + 1, b] + rest[depth + 1, b] > room[b]:
                fits = False
        if not fits:
            continue
        energy[depth + 1] = energy[depth] + fields[depth, i]
        if depth == groups - 1:
            if energy[depth + 1] < best:
                best = energy[depth + 1]
                for g in range(groups):
                    answer[g] = choices[position[g] - 1] - all_offsets[g]
            continue
        for j in range(offsets[depth + 1], size):
            fields[depth + 1, j] = fields[depth, j] + gram[v, choices[j]]
        depth += 1
