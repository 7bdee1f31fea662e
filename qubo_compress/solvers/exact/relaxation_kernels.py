"""Compiled inner loops of the convex relaxation: coordinate descent, and its dual bound.

The relaxation lets every group hold a mixture of its choices,

    minimise  diagonal . x + 1/2 x . Gram x   over x >= 0, groups sum to 1, costs . x <= room,

and is solved by shifting weight between two choices of one group at a time. Budgets enter as an
augmented Lagrangian, so that any number of them costs nothing extra. ``gradient`` is always
``diagonal + Gram x``; costs are scaled by the caller.
"""

from __future__ import annotations

import numpy as np

from qubo_compress._internal.compiling import compiled, compiled_inline
from qubo_compress.problem.choice_problem import FactorArray, FloatArray, IntArray

_SHIFTS_PER_VISIT = 4
"""Most weight shifts within one group before the next is visited."""


@compiled
def prices_of(
    multipliers: FloatArray, stiffness: FloatArray, used: FloatArray, room: FloatArray, out: FloatArray
) -> None:
    """Put into ``out`` what one unit of each budget costs at present: never negative."""
    for b in range(room.size):
        out[b] = max(0.0, multipliers[b] + stiffness[b] * (used[b] - room[b]))


@compiled
def descend_gram(
    gram: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    costs: FloatArray,
    room: FloatArray,
    multipliers: FloatArray,
    stiffness: FloatArray,
    x: FloatArray,
    gradient: FloatArray,
    used: FloatArray,
) -> float:
    """One sweep over the groups with the Gram matrix at hand; returns the total improvement.

    ``choices[offsets[g]:offsets[g + 1]]`` are the choices still allowed in group g.
    """
    budgets = room.size
    price = np.empty(budgets)
    improvement = 0.0
    for g in range(offsets.size - 1):
        if offsets[g + 1] - offsets[g] < 2:
            continue
        for _ in range(_SHIFTS_PER_VISIT):
            prices_of(multipliers, stiffness, used, room, price)
            low, high = np.inf, -np.inf
            to, source = -1, -1
            for position in range(offsets[g], offsets[g + 1]):
                v = choices[position]
                slope = gradient[v]
                for b in range(budgets):
                    slope += price[b] * costs[v, b]
                if slope < low:
                    low, to = slope, v
                if x[v] > 0.0 and slope > high:
                    high, source = slope, v
            decline = high - low
            if to == source or source < 0 or decline <= 1e-15 * (abs(high) + abs(low)):
                break
            curvature = gram[to, to] + gram[source, source] - 2.0 * gram[to, source]
            for b in range(budgets):
                change = costs[to, b] - costs[source, b]
                if price[b] > 0.0 or change > 0.0:
                    curvature += stiffness[b] * change * change
            step = x[source]
            if curvature * step > decline:
                step = decline / curvature
                x[source] -= step
            else:
                x[source] = 0.0
            x[to] += step
            improvement += step * decline * 0.5
            for b in range(budgets):
                used[b] += step * (costs[to, b] - costs[source, b])
            for w in range(gradient.size):
                gradient[w] += step * (gram[to, w] - gram[source, w])
    return improvement


@compiled_inline
def _dot(row: FactorArray, vector: FloatArray) -> float:
    total = 0.0
    for i in range(vector.size):
        total += row[i] * vector[i]
    return total


@compiled_inline
def _dot_rows(first: FactorArray, second: FactorArray) -> float:
    total = 0.0
    for i in range(first.size):
        total += np.float64(first[i]) * np.float64(second[i])
    return total


@compiled
def descend_factor(
    factor: FactorArray,
    diagonal: FloatArray,
    norms: FloatArray,
    offsets: IntArray,
    costs: FloatArray,
    room: FloatArray,
    multipliers: FloatArray,
    stiffness: FloatArray,
    x: FloatArray,
    total: FloatArray,
    used: FloatArray,
) -> float:
    """One sweep with the factor only, for problems whose Gram matrix would not fit; total = factor.T x."""
    budgets = room.size
    rank = total.size
    price = np.empty(budgets)
    slopes = np.empty(int((offsets[1:] - offsets[:-1]).max()))
    improvement = 0.0
    for g in range(offsets.size - 1):
        start, stop = offsets[g], offsets[g + 1]
        if stop - start < 2:
            continue
        for v in range(start, stop):
            slopes[v - start] = diagonal[v] + _dot(factor[v], total)
        for _ in range(_SHIFTS_PER_VISIT):
            prices_of(multipliers, stiffness, used, room, price)
            low, high = np.inf, -np.inf
            to, source = -1, -1
            for v in range(start, stop):
                slope = slopes[v - start]
                for b in range(budgets):
                    slope += price[b] * costs[v, b]
                if slope < low:
                    low, to = slope, v
                if x[v] > 0.0 and slope > high:
                    high, source = slope, v
            decline = high - low
            if to == source or source < 0 or decline <= 1e-15 * (abs(high) + abs(low)):
                break
            curvature = norms[to] + norms[source] - 2.0 * _dot_rows(factor[to], factor[source])
            for b in range(budgets):
                change = costs[to, b] - costs[source, b]
                if price[b] > 0.0 or change > 0.0:
                    curvature += stiffness[b] * change * change
            step = x[source]
            if curvature * step > decline:
                step = decline / curvature
                x[source] -= step
            else:
                x[source] = 0.0
            x[to] += step
            improvement += step * decline * 0.5
            for b in range(budgets):
                used[b] += step * (costs[to, b] - costs[source, b])
            for i in range(rank):
                total[i] += step * (factor[to, i] - factor[source, i])
            for v in range(start, stop):
                slopes[v - start] += step * (_dot_rows(factor[v], factor[to]) - _dot_rows(factor[v], factor[source]))
    return improvement


@compiled
def products(factor: FactorArray, vector: FloatArray) -> FloatArray:
    """The product of factor and vector in float64, without a float64 copy of the factor."""
    out = np.empty(factor.shape[0])
    for v in range(factor.shape[0]):
        out[v] = _dot(factor[v], vector)
    return out


@compiled_inline
def _dot_start(first: FloatArray, second: FloatArray, count: int) -> float:
    total = 0.0
    for i in range(count):
        total += first[i] * second[i]
    return total


@compiled
def is_definite(matrix: FloatArray) -> bool:
    """Whether the Cholesky factorisation of a symmetric matrix succeeds; done in place of its lower triangle."""
    for i in range(matrix.shape[0]):
        for j in range(i):
            matrix[i, j] = (matrix[i, j] - _dot_start(matrix[i], matrix[j], j)) / matrix[j, j]
        rest = matrix[i, i] - _dot_start(matrix[i], matrix[i], i)
        if not rest > 0.0:
            return False
        matrix[i, i] = np.sqrt(rest)
    return True


@compiled
def lanczos(matrix: FloatArray, steps: int) -> tuple[FloatArray, FloatArray]:
    """Diagonal and off-diagonal of the tridiagonal matrix whose extreme eigenvalues approach the matrix's."""
    size = matrix.shape[0]
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    before, now = np.zeros(size), np.cos(np.arange(1.0, size + 1.0))  # fixed, so that the result repeats
    now /= np.sqrt(_dot_start(now, now, size))
    for step in range(steps):
        after = np.empty(size)
        for i in range(size):
            after[i] = _dot_start(matrix[i], now, size)
        diagonal[step] = _dot_start(after, now, size)
        for i in range(size):
            after[i] -= diagonal[step] * now[i] + (beside[step - 1] * before[i] if step > 0 else 0.0)
        length = np.sqrt(_dot_start(after, after, size))
        if length < 1e-12:
            return diagonal[: step + 1], beside[:step]
        beside[step] = length
        before, now = now, after / length
    return diagonal, beside[: steps - 1]
