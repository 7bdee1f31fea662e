"""Compiled inner loops of the convex relaxation: coordinate descent, and its dual bound.

The relaxation lets every group hold a mixture of its choices,

    minimise  diagonal . x + 1/2 x . Gram x   over x >= 0, groups sum to 1, costs . x <= room,

and is solved by shifting weight between two choices of one group at a time. Budgets enter as an
augmented Lagrangian, so that any number of them costs nothing extra. ``gradient`` is always
``diagonal + Gram x``; costs are scaled by the caller.
"""

from __future__ import annotations

import numpy as np

from qubo_compress.problem import FactorArray, FloatArray, IntArray
from qubo_compress.solvers.compiling import compiled, compiled_inline

_SHIFTS_PER_VISIT = 4
"""Most weight shifts within one group before the next is visited."""


@compiled
def prices_of(multipliers: FloatArray, stiffness: FloatArray, used: FloatArray, room: FloatArray, out: FloatArray) -> None:
    """out = what one unit of each budget costs at present: never negative."""
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
def priced_minimum(
    slopes: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    costs: FloatArray,
    price: FloatArray,
    cheapest: FloatArray,
) -> float:
    """sum over groups of min (slope + price . cost); ``cheapest`` receives the costs of the minimisers."""
    value = 0.0
    cheapest[:] = 0.0
    for g in range(offsets.size - 1):
        low, pick, pick_cost = np.inf, -1, 0.0
        for position in range(offsets[g], offsets[g + 1]):
            v = choices[position]
            slope, cost = slopes[v], 0.0
            for b in range(price.size):
                slope += price[b] * costs[v, b]
                cost += costs[v, b]
            # Of equally good choices the cheaper one, so that a zero price is recognised as enough.
            if slope < low or (slope == low and cost < pick_cost):
                low, pick, pick_cost = slope, v, cost
        value += low
        for b in range(price.size):
            cheapest[b] += costs[pick, b]
    return value


@compiled
def best_price(
    slopes: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    costs: FloatArray,
    room: FloatArray,
    price: FloatArray,
    budget: int,
) -> float:
    """Maximise priced_minimum - price . room over one price in place; returns the maximum.

    The function is concave and piecewise linear. The two lines that bracket its peak are intersected
    until the intersection is on the function: finite, and no step size is needed.
    """
    cheapest = np.empty(room.size)
    price[budget] = 0.0
    value = priced_minimum(slopes, offsets, choices, costs, price, cheapest)
    for b in range(room.size):
        value -= price[b] * room[b]
    left, left_value, left_slope = 0.0, value, cheapest[budget] - room[budget]
    best, best_value = 0.0, value
    if left_slope <= 0.0:
        return best_value
    spread = 0.0
    for g in range(offsets.size - 1):
        low, high = np.inf, -np.inf
        for position in range(offsets[g], offsets[g + 1]):
            low, high = min(low, slopes[choices[position]]), max(high, slopes[choices[position]])
        spread += high - low
    right = max(1e-12, spread / max(room[budget], 1e-9))
    right_value, right_slope = 0.0, 1.0
    for _ in range(60):
        price[budget] = right
        right_value = priced_minimum(slopes, offsets, choices, costs, price, cheapest)
        for b in range(room.size):
            right_value -= price[b] * room[b]
        right_slope = cheapest[budget] - room[budget]
        if right_value > best_value:
            best, best_value = right, right_value
        if right_slope <= 0.0:
            break
        left, left_value, left_slope = right, right_value, right_slope
        right *= 4.0
    if right_slope > 0.0:  # nothing fits: the bound grows without end
        price[budget] = best
        return np.inf
    for _ in range(200):
        if right_slope >= 0.0 or left_slope <= 0.0:
            break
        middle = (right_value - left_value + left_slope * left - right_slope * right) / (left_slope - right_slope)
        if not left < middle < right:
            break
        price[budget] = middle
        value = priced_minimum(slopes, offsets, choices, costs, price, cheapest)
        for b in range(room.size):
            value -= price[b] * room[b]
        slope = cheapest[budget] - room[budget]
        if value > best_value:
            best, best_value = middle, value
        if value >= left_value + left_slope * (middle - left) - 1e-13 * abs(value):
            break
        if slope > 0.0:
            left, left_value, left_slope = middle, value, slope
        else:
            right, right_value, right_slope = middle, value, slope
    price[budget] = best
    return best_value


@compiled
def polish_prices(
    slopes: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    costs: FloatArray,
    room: FloatArray,
    price: FloatArray,
    rounds: int,
) -> float:
    """Raise priced_minimum - price . room by exact line searches over one price at a time."""
    if room.size == 0:
        return priced_minimum(slopes, offsets, choices, costs, price, np.empty(0))
    value = -np.inf
    for _ in range(rounds if room.size > 1 else 1):
        before = value
        for b in range(room.size):
            value = best_price(slopes, offsets, choices, costs, room, price, b)
            if value == np.inf:
                return value
        if value <= before + 1e-12 * abs(value):
            break
    return value


@compiled
def certified_bound(
    diagonal: FloatArray,
    slopes: FloatArray,
    quadratic: float,
    offsets: IntArray,
    choices: IntArray,
    costs: FloatArray,
    room: FloatArray,
    price: FloatArray,
    terms: int,
) -> float:
    """The dual bound at given slopes and prices, less all that rounding can have added to it.

    ``quadratic`` is x . Gram x, ``terms`` the longest sum behind any slope. Where no interaction
    and no price takes part (everything kept as it is) nothing is rounded and nothing is deducted.
    """
    value, plain, coupled = 0.0, 0.0, abs(quadratic)
    for b in range(room.size):
        coupled += price[b] * abs(room[b])
    value = -0.5 * quadratic
    for b in range(room.size):
        value -= price[b] * room[b]
    lows = 0.0
    for g in range(offsets.size - 1):
        low, largest_plain, largest_coupled = np.inf, 0.0, 0.0
        for position in range(offsets[g], offsets[g + 1]):
            v = choices[position]
            charge = 0.0
            for b in range(room.size):
                charge += price[b] * costs[v, b]
            low = min(low, slopes[v] + charge)
            largest_plain = max(largest_plain, abs(diagonal[v]))
            largest_coupled = max(largest_coupled, abs(slopes[v] - diagonal[v]) + charge)
        value += low
        lows += abs(low)
        plain += largest_plain
        coupled += largest_coupled
    unit = 1.2e-16 * (terms + offsets.size)
    return value - (unit * (coupled + plain) if coupled > 0.0 else unit * lows)


@compiled
def products(factor: FactorArray, vector: FloatArray) -> FloatArray:
    """factor @ vector in float64, without a float64 copy of the factor."""
    out = np.empty(factor.shape[0])
    for v in range(factor.shape[0]):
        out[v] = _dot(factor[v], vector)
    return out
