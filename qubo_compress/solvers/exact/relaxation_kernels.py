"""Compiled inner loops of the convex relaxation: coordinate descent, and its dual bound.

The relaxation lets every group hold a mixture of its choices,

    minimise  diagonal . x + 1/2 x . Gram x   over x >= 0, groups sum to 1, costs . x <= room,

and is solved by shifting weight between two choices of one group at a time. An augmented Lagrangian
handles any number of budgets. ``gradient`` is always ``diagonal + Gram x``; the caller scales costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qubo_compress._internal.compiling import compiled, compiled_in_place, compiled_inline
from qubo_compress._internal.kernel_arguments import KernelArguments
from qubo_compress.problem.choice_problem import FactorArray, FloatArray, IntArray

_SHIFTS_PER_VISIT = 4
"""Most weight shifts within one group before the next is visited."""

_LEVEL = 1e-15
"""Relative difference of slopes that counts as rounding."""


@dataclass(frozen=True, eq=False)
class ConvexForm(KernelArguments):
    """energy(x) = constant + diagonal . x + 1/2 x . gram x on assignments, with gram positive semidefinite.

    Attributes:
        constant: the constant energy.
        diagonal: (V,) linear terms.
        gram: (V, V) matrix, blocks within groups included.
        offsets: (G + 1,) first choice of each group.
        costs: (V, B) costs, scaled exactly, by a power of two per budget.
        room: (B,) limits less fixed costs, with the same scale.
        stiffness: (B,) weights of the quadratic penalty on overspending.
    """

    constant: float
    diagonal: FloatArray
    gram: FloatArray
    offsets: IntArray
    costs: FloatArray
    room: FloatArray
    stiffness: FloatArray


@dataclass(frozen=True, eq=False)
class FactorForm(KernelArguments):
    """A form for factors whose Gram matrix would not fit: energy(x) = diagonal . x + 1/2 |factor.T x|^2.

    Attributes:
        factor: (V, r) rows.
        norms: (V,) their squared lengths.
        diagonal: as in :class:`ConvexForm`, like the other fields.
    """

    factor: FactorArray
    norms: FloatArray
    diagonal: FloatArray
    offsets: IntArray
    costs: FloatArray
    room: FloatArray
    stiffness: FloatArray


@compiled_in_place
def prices_of(
    multipliers: FloatArray, stiffness: FloatArray, used: FloatArray, room: FloatArray, out: FloatArray
) -> None:
    """Set ``out`` to the present price of one unit of each budget: never negative."""
    for b in range(room.size):
        price = multipliers[b] + stiffness[b] * (used[b] - room[b])
        out[b] = price if price > 0.0 else 0.0


@compiled_in_place
def descend_gram(
    form: ConvexForm,
    offsets: IntArray,
    choices: IntArray,
    x: FloatArray,
    gradient: FloatArray,
    used: FloatArray,
    multipliers: FloatArray,
    price: FloatArray,
) -> float:
    """One sweep over the groups using the Gram matrix; returns the total improvement.

    ``choices[offsets[g]:offsets[g + 1]]`` are the choices still allowed in group g; ``price`` is scratch.
    """
    gram, costs, room, stiffness = form.gram, form.costs, form.room, form.stiffness
    budgets = room.size
    improvement = 0.0
    for g in range(offsets.size - 1):
        if offsets[g + 1] - offsets[g] < 2:
            continue
        for _ in range(_SHIFTS_PER_VISIT):
            # Shift weight from the choice with the highest slope among those with a share to the one with the lowest.
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
            if to == source or source < 0 or decline <= _LEVEL * (abs(high) + abs(low)):
                break
            entering, leaving = gram[to], gram[source]
            curvature = entering[to] + leaving[source] - 2.0 * entering[source]
            # A budget adds curvature to the augmented Lagrangian only if it is charged, or becomes so by this shift.
            for b in range(budgets):
                change = costs[to, b] - costs[source, b]
                if price[b] > 0.0 or change > 0.0:
                    curvature += stiffness[b] * change * change
            # Move to the minimum on the line, or shift all the weight there is.
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
                gradient[w] += step * (entering[w] - leaving[w])
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


@compiled_in_place
def descend_factor(
    form: FactorForm,
    shares: FloatArray,
    total: FloatArray,
    used: FloatArray,
    multipliers: FloatArray,
    price: FloatArray,
    slopes: FloatArray,
) -> float:
    """As :func:`descend_gram`, using the factor: ``total`` is factor.T x; ``price`` and ``slopes`` are scratch."""
    factor, norms, offsets, costs, room = form.factor, form.norms, form.offsets, form.costs, form.room
    stiffness, x = form.stiffness, shares
    budgets = room.size
    improvement = 0.0
    for g in range(offsets.size - 1):
        start, stop = offsets[g], offsets[g + 1]
        if stop - start < 2:
            continue
        for v in range(start, stop):
            slopes[v - start] = form.diagonal[v] + _dot(factor[v], total)
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
            if to == source or source < 0 or decline <= _LEVEL * (abs(high) + abs(low)):
                break
            entering, leaving = factor[to], factor[source]
            curvature = norms[to] + norms[source] - 2.0 * _dot_rows(entering, leaving)
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
            for i in range(total.size):
                total[i] += step * (entering[i] - leaving[i])
            for v in range(start, stop):
                slopes[v - start] += step * (_dot_rows(factor[v], entering) - _dot_rows(factor[v], leaving))
    return improvement


@compiled_in_place
def slopes_of(form: FactorForm, total: FloatArray, out: FloatArray) -> None:
    """Set ``out`` to the gradient, where ``total`` is factor.T x, without a float64 copy of the factor."""
    for v in range(out.size):
        out[v] = form.diagonal[v] + _dot(form.factor[v], total)


@compiled_inline
def _dot_start(first: FloatArray, second: FloatArray, count: int) -> float:
    total = 0.0
    for i in range(count):
        total += first[i] * second[i]
    return total


@compiled_in_place
def is_definite(matrix: FloatArray) -> bool:
    """Whether the Cholesky factorisation of a symmetric matrix succeeds; overwrites its lower triangle."""
    for i in range(matrix.shape[0]):
        for j in range(i):
            matrix[i, j] = (matrix[i, j] - _dot_start(matrix[i], matrix[j], j)) / matrix[j, j]
        rest = matrix[i, i] - _dot_start(matrix[i], matrix[i], i)
        if not rest > 0.0:
            return False
        matrix[i, i] = math.sqrt(rest)
    return True


@compiled
def lanczos(matrix: FloatArray, steps: int) -> tuple[FloatArray, FloatArray]:
    """Diagonal and off-diagonal of a tridiagonal matrix whose extreme eigenvalues approximate the matrix's."""
    size = matrix.shape[0]
    diagonal, beside = np.empty(steps), np.empty(steps)
    before, now, after = np.empty(size), np.empty(size), np.empty(size)
    for i in range(size):
        now[i] = math.cos(i + 1.0)  # fixed, so that the result repeats
    length = math.sqrt(_dot_start(now, now, size))
    for i in range(size):
        before[i], now[i] = 0.0, now[i] / length
    coupling = 0.0
    for step in range(steps):
        for i in range(size):
            after[i] = _dot_start(matrix[i], now, size)
        diagonal[step] = _dot_start(after, now, size)
        for i in range(size):
            after[i] -= diagonal[step] * now[i] + coupling * before[i]
        length = math.sqrt(_dot_start(after, after, size))
        if length < 1e-12:  # the Krylov space is exhausted
            return diagonal[: step + 1], beside[:step]
        beside[step] = coupling = length
        for i in range(size):
            after[i] /= length
        before, now, after = now, after, before
    return diagonal, beside[: steps - 1]
