"""Compiled search for the budgets' prices, and the bound that any prices and slopes prove.

With slopes h (the gradient of the relaxation) and prices p >= 0, the sum over groups of
min_v (h[v] + p . cost[v]), less p . room, is the budgeted part of a dual bound: concave in p and
piecewise linear.
"""

from __future__ import annotations

import numpy as np

from qubo_compress._internal.compiling import compiled, compiled_in_place, compiled_part
from qubo_compress.problem.choice_problem import FloatArray, IntArray

_LEAST_ROOM, _LEAST_PRICE = 1e-9, 1e-12
"""Lower limits of the first price tried, for no room or no difference between choices."""

_RISE, _MOST_RISES = 4.0, 60
"""The upper price is raised by this factor at most this often until everything fits: by 10**36 in total."""

_MOST_CUTS = 200
"""A safeguard: there are at most as many intersections of lines as the function has pieces, typically a dozen."""

_ON_THE_LINE = 1e-13
"""Relative distance of the function from a line that counts as rounding."""

_NO_GAIN = 1e-12
"""Relative gain of a round of line searches below which there is no further round."""

_UNIT = 1.2e-16
"""Largest relative rounding error of one addition: a little more than half the spacing of float64."""


@compiled_part
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
    for b in range(price.size):
        cheapest[b] = 0.0
    for g in range(offsets.size - 1):
        low, pick, pick_cost = np.inf, -1, 0.0
        for position in range(offsets[g], offsets[g + 1]):
            v = choices[position]
            slope, cost = slopes[v], 0.0
            for b in range(price.size):
                slope += price[b] * costs[v, b]
                cost += costs[v, b]
            # Ties take the cheaper choice, so that a zero price is recognised as sufficient.
            if slope < low or (slope == low and cost < pick_cost):
                low, pick, pick_cost = slope, v, cost
        value += low
        for b in range(price.size):
            cheapest[b] += costs[pick, b]
    return value


@compiled_part
def best_price(
    slopes: FloatArray,
    offsets: IntArray,
    choices: IntArray,
    costs: FloatArray,
    room: FloatArray,
    price: FloatArray,
    budget: int,
    cheapest: FloatArray,
) -> float:
    """Maximise priced_minimum - price . room over one price in place; returns the maximum.

    The function is concave and piecewise linear. The two lines that bracket its peak are intersected
    until the intersection lies on the function: this is finite and needs no step size. ``cheapest`` is scratch.
    """
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
            slope = slopes[choices[position]]
            low, high = slope if slope < low else low, slope if slope > high else high
        spread += high - low
    # Start where the room costs as much as the choices differ in total, then raise the price until everything fits.
    right = spread / (room[budget] if room[budget] > _LEAST_ROOM else _LEAST_ROOM)
    if right < _LEAST_PRICE:
        right = _LEAST_PRICE
    right_value, right_slope = 0.0, 1.0
    for _ in range(_MOST_RISES):
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
        right *= _RISE
    if right_slope > 0.0:  # nothing fits: the bound is unlimited
        price[budget] = best
        return np.inf
    for _ in range(_MOST_CUTS):
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
        if value >= left_value + left_slope * (middle - left) - _ON_THE_LINE * abs(value):
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
    value, cheapest = -np.inf, np.empty(room.size)
    for _ in range(rounds if room.size > 1 else 1):
        before = value
        for b in range(room.size):
            value = best_price(slopes, offsets, choices, costs, room, price, b, cheapest)
            if value == np.inf:
                return value
        if value <= before + _NO_GAIN * abs(value):
            break
    return value


@compiled_in_place
def certified_bound(
    diagonal: FloatArray,
    slopes: FloatArray,
    quadratic: float,
    offsets: IntArray,
    choices: IntArray,
    budgets: tuple[FloatArray, FloatArray],
    price: FloatArray,
    terms: int,
) -> float:
    """The dual bound at given slopes and prices, less the largest possible rounding error.

    ``quadratic`` is x . Gram x, ``budgets`` costs and room, ``terms`` the length of the longest sum in any slope.
    Without interactions and prices (everything kept), nothing is rounded and nothing is deducted.
    """
    costs, room = budgets
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
            priced, alone, together = slopes[v] + charge, abs(diagonal[v]), abs(slopes[v] - diagonal[v]) + charge
            low = priced if priced < low else low
            largest_plain = alone if alone > largest_plain else largest_plain
            largest_coupled = together if together > largest_coupled else largest_coupled
        value += low
        lows += abs(low)
        plain += largest_plain
        coupled += largest_coupled
    unit = _UNIT * (terms + offsets.size)
    return value - (unit * (coupled + plain) if coupled > 0.0 else unit * lows)
