"""Compiled search for the prices of budgets, and the bound that any prices and slopes prove.

With slopes h (the gradient of the relaxation) and prices p >= 0, the sum over groups of
min_v (h[v] + p . cost[v]), less p . room, is the budgeted part of a dual bound: concave in p and
piecewise linear.
"""

from __future__ import annotations

import numpy as np

from qubo_compress._internal.compiling import compiled
from qubo_compress.problem.choice_problem import FloatArray, IntArray


@compiled
def priced_minimum(
    slopes: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    costs: FloatArray,
    price: FloatArray,
    cheapest: FloatArray,
) -> float:
    """Sum over groups of min (slope + price . cost); ``cheapest`` receives the costs of the minimisers."""
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
