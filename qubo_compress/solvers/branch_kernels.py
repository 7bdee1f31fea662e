"""Compiled inner loops of branch and bound: bounding one node, and enumerating what little is left of one."""

from __future__ import annotations

import numpy as np

from qubo_compress.problem import FloatArray, IntArray
from qubo_compress.solvers.compiling import compiled
from qubo_compress.solvers.price_kernels import certified_bound, polish_prices
from qubo_compress.solvers.relaxation_kernels import descend_gram, prices_of

_SWEEPS_PER_LOOK = 4


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
def bound_node(
    constant: float,
    diagonal: FloatArray,
    gram: FloatArray,
    costs: FloatArray,
    room: FloatArray,
    stiffness: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    start: FloatArray,
    multipliers: FloatArray,
    cutoff: float,
    looks: int,
) -> tuple[float, FloatArray, FloatArray, FloatArray]:
    """Bound of the problem restricted to some choices, by the relaxation warm-started from ``start``.

    Groups with one choice left are folded into the linear terms, so deep nodes are small. Stops once
    the bound passes ``cutoff`` or once it evidently cannot. Returns the bound, the mixture over ``choices``, the
    reduced cost of each (by how much the bound rises if it must be used) and the final multipliers.
    """
    groups, size = offsets.size - 1, choices.size
    budgets = room.size
    plain, left = diagonal.copy(), room.copy()
    fixed_energy = constant
    free = np.empty(size, dtype=np.int64)
    where = np.empty(size, dtype=np.int64)
    sub_offsets = np.zeros(groups + 1, dtype=np.int64)
    count, free_groups = 0, 0
    for g in range(groups):
        if offsets[g + 1] - offsets[g] == 1:
            v = choices[offsets[g]]
            fixed_energy += plain[v] + 0.5 * gram[v, v]
            for w in range(plain.size):
                plain[w] += gram[v, w]
            for b in range(budgets):
                left[b] -= costs[v, b]
        else:
            for position in range(offsets[g], offsets[g + 1]):
                free[count], where[count] = choices[position], position
                count += 1
            free_groups += 1
            sub_offsets[free_groups] = count
    sub_offsets = sub_offsets[: free_groups + 1]
    shares, reduced, lambdas = np.ones(size), np.zeros(size), multipliers.copy()
    for b in range(budgets):
        if left[b] < 0.0:
            return np.inf, shares, reduced, lambdas
    if free_groups == 0:
        return fixed_energy, shares, reduced, lambdas
    sub_diagonal, sub_costs = np.empty(count), np.empty((count, budgets))
    sub_gram, x = np.empty((count, count)), np.empty(count)
    for i in range(count):
        v = free[i]
        sub_diagonal[i], x[i] = plain[v], start[v]
        for b in range(budgets):
            sub_costs[i, b] = costs[v, b]
        for j in range(count):
            sub_gram[i, j] = gram[v, free[j]]
    for g in range(free_groups):
        total, low = 0.0, sub_offsets[g]
        for i in range(sub_offsets[g], sub_offsets[g + 1]):
            total += x[i]
            if sub_diagonal[i] < sub_diagonal[low]:
                low = i
        for i in range(sub_offsets[g], sub_offsets[g + 1]):
            x[i] = x[i] / total if total > 1e-9 else (1.0 if i == low else 0.0)
    gradient, used = sub_diagonal.copy(), np.zeros(budgets)
    for i in range(count):
        if x[i] > 0.0:
            for j in range(count):
                gradient[j] += x[i] * sub_gram[i, j]
            for b in range(budgets):
                used[b] += x[i] * sub_costs[i, b]
    every = np.arange(count)
    best, best_slopes = -np.inf, np.zeros(count)
    for _ in range(looks):
        for sweep in range(_SWEEPS_PER_LOOK):
            descend_gram(sub_gram, sub_offsets, every, sub_costs, left, lambdas, stiffness, x, gradient, used)
            if sweep % 2 == 1:
                prices_of(lambdas, stiffness, used, left, lambdas)
        quadratic, primal = 0.0, fixed_energy
        for i in range(count):
            quadratic += x[i] * (gradient[i] - sub_diagonal[i])
            primal += x[i] * sub_diagonal[i]
        primal += 0.5 * quadratic
        for b in range(budgets):  # the augmented Lagrangian, which the mixture may overspend
            primal += max(0.0, lambdas[b]) * (used[b] - left[b])
        price = lambdas.copy()
        if polish_prices(gradient, sub_offsets, every, sub_costs, left, price, 2) == np.inf:
            return np.inf, shares, reduced, lambdas
        value = fixed_energy + certified_bound(
            sub_diagonal, gradient, quadratic, sub_offsets, every, sub_costs, left, price, diagonal.size
        )
        value -= 1e-15 * (abs(fixed_energy) + abs(constant))
        if value > best:
            best = value
            for i in range(count):
                best_slopes[i] = gradient[i]
                for b in range(budgets):
                    best_slopes[i] += price[b] * sub_costs[i, b]
        if best > cutoff or primal - best < 0.03 * (cutoff - best):
            break
    for g in range(free_groups):
        low = np.inf
        for i in range(sub_offsets[g], sub_offsets[g + 1]):
            low = min(low, best_slopes[i])
        for i in range(sub_offsets[g], sub_offsets[g + 1]):
            reduced[where[i]] = best_slopes[i] - low
            shares[where[i]] = x[i]
    return best, shares, reduced, lambdas


@compiled
def widest_group(gram: FloatArray, offsets: IntArray, choices: IntArray, shares: FloatArray) -> int:
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
            if shares[i] > 0.0:
                v = choices[i]
                hidden += shares[i] * gram[v, v]
                mixed += shares[i] * (1.0 - shares[i])
                for j in range(start, stop):
                    if shares[j] > 0.0:
                        hidden -= shares[i] * shares[j] * gram[v, choices[j]]
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
    offsets: IntArray,
    choices: IntArray,
    best: float,
) -> tuple[float, IntArray]:
    """The best of all combinations of the choices left, if better than ``best``; depth first, budgets exact."""
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
    answer = np.full(groups, -1, dtype=np.int64)
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
                    answer[g] = choices[position[g] - 1]
            continue
        for j in range(offsets[depth + 1], size):
            fields[depth + 1, j] = fields[depth, j] + gram[v, choices[j]]
        depth += 1
    return best, answer
