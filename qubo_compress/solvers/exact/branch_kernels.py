"""Compiled inner loops of branch and bound: bounding one node, and enumerating small ones."""

from __future__ import annotations

from typing import cast

import numpy as np

from qubo_compress._internal.compiling import compiled, compiled_in_place, compiled_part
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.exact.branch_nodes import Slots
from qubo_compress.solvers.exact.price_kernels import certified_bound, polish_prices
from qubo_compress.solvers.exact.relaxation_kernels import ConvexForm, descend_gram, prices_of

_SWEEPS_PER_LOOK = 4
"""Sweeps of descent between two bounds; a bound costs about as much as a sweep."""

_POLISHING_ROUNDS = cast(int, np.int64(2))
"""Line searches over each price: the first moves it most of the way, the second reacts to the other prices."""

_LEAST_PACE = 0.03
"""A node is branched on if the relaxation can gain less than this share of its distance to the cutoff."""

_ENUMERATE = 4096
"""Up to this many combinations are enumerated instead of branched on."""

_PURE = 1e-9
"""A group's old mixture is discarded if the remaining choices had at most this total share in it."""

_ROUNDED = 1e-15
"""Deducted from a bound, relative to the terms of its last sum."""


@compiled
def drop_unaffordable(form: ConvexForm, offsets: IntArray, choices: IntArray) -> bool:
    """Remove, in place, the remaining choices that no completion can afford; False if nothing fits at all."""
    costs, room = form.costs, form.room
    groups, budgets = offsets.size - 1, room.size
    spare, least = np.empty(budgets), np.empty((groups, budgets))
    while True:
        # The room left if every group takes its cheapest choice: no choice may cost more than that on top of its own.
        for b in range(budgets):
            spare[b] = room[b]
        for g in range(groups):
            for b in range(budgets):
                low = np.inf
                for position in range(offsets[g], offsets[g + 1]):
                    if costs[choices[position], b] < low:
                        low = costs[choices[position], b]
                least[g, b] = low
                spare[b] -= low
        for b in range(budgets):
            if spare[b] < 0.0:
                return False
        before, size, start = offsets[groups], 0, 0
        for g in range(groups):
            stop = offsets[g + 1]
            for position in range(start, stop):
                fits = True
                for b in range(budgets):
                    if costs[choices[position], b] - least[g, b] > spare[b]:
                        fits = False
                if fits:
                    choices[size] = choices[position]
                    size += 1
            start = stop
            offsets[g + 1] = size
        if size == before:  # removing a choice can raise a group's least cost in another budget: repeat until stable
            return True


@compiled_part
def renormalise(form: ConvexForm, slots: Slots, i: int) -> None:
    """Make ``x`` of a slot a mixture of the remaining choices, and ``gradient`` its gradient.

    ``x`` may hold shares of removed choices; a group without any share gets its choice of least gradient.
    """
    offsets, choices, x = slots.offsets[i], slots.choices[i], slots.x[i]
    gradient, given = slots.gradient[i], slots.given[i]
    for w in range(x.size):
        given[w], x[w] = x[w], 0.0
    for g in range(offsets.size - 1):
        total = 0.0
        for position in range(offsets[g], offsets[g + 1]):
            total += given[choices[position]]
        for position in range(offsets[g], offsets[g + 1]):
            x[choices[position]] = given[choices[position]] / total if total > _PURE else 0.0
    refresh(form, slots, i)
    for g in range(offsets.size - 1):
        low, total = choices[offsets[g]], 0.0
        for position in range(offsets[g], offsets[g + 1]):
            v = choices[position]
            total += x[v]
            if gradient[v] < gradient[low]:
                low = v
        if total == 0.0:
            x[low] = 1.0
            row = form.gram[low]
            for w in range(gradient.size):
                gradient[w] += row[w]


@compiled_part
def refresh(form: ConvexForm, slots: Slots, i: int) -> None:
    """Recompute the gradient from the shares, which removes the rounding of earlier shifts."""
    choices, x, gradient, diagonal = slots.choices[i], slots.x[i], slots.gradient[i], form.diagonal
    for w in range(gradient.size):
        gradient[w] = diagonal[w]
    for position in range(slots.offsets[i, -1]):
        v = choices[position]
        if x[v] > 0.0:
            row, share = form.gram[v], x[v]
            for w in range(gradient.size):
                gradient[w] += share * row[w]


@compiled_part
def bound_node(form: ConvexForm, slots: Slots, i: int, cutoff: float, looks: int) -> float:
    """Bound the problem restricted to the remaining choices of a slot, by the relaxation warm-started from ``x``.

    Stops once the bound passes ``cutoff`` or progress is too slow to reach it. ``x`` and ``multipliers`` are left at
    the end of the search; ``proof`` and ``price`` receive the mixture and the prices that prove the bound, and
    ``reduced`` receives the rise of the bound if a choice must be used.
    """
    diagonal, costs, room, constant = form.diagonal, form.costs, form.room, form.constant
    offsets, choices, x, gradient = slots.offsets[i], slots.choices[i], slots.x[i], slots.gradient[i]
    multipliers, used, trial, priced = slots.multipliers[i], slots.used[i], slots.trial[i], slots.priced[i]
    budgets, count = room.size, offsets[-1]
    renormalise(form, slots, i)
    best = -np.inf
    for _ in range(looks):
        # The sweeps update used costs and gradient incrementally: both are recomputed before rounding accumulates.
        for b in range(budgets):
            used[b] = 0.0
        for position in range(count):
            v = choices[position]
            if x[v] > 0.0:
                for b in range(budgets):
                    used[b] += x[v] * costs[v, b]
        for sweep in range(_SWEEPS_PER_LOOK):
            descend_gram(form, offsets, choices, x, gradient, used, multipliers, priced)
            if sweep % 2 == 1:  # prices updated after every sweep would oscillate
                prices_of(multipliers, form.stiffness, used, room, multipliers)
        refresh(form, slots, i)
        # The value of the mixture limits how much any further bound can gain.
        quadratic, primal = 0.0, constant
        for position in range(count):
            v = choices[position]
            quadratic += x[v] * (gradient[v] - diagonal[v])
            primal += x[v] * diagonal[v]
        primal += 0.5 * quadratic
        for b in range(budgets):  # the augmented Lagrangian, which the mixture may overspend
            primal += (multipliers[b] if multipliers[b] > 0.0 else 0.0) * (used[b] - room[b])
        # The bound holds for any prices: the search for the best ones starts from the multipliers of the descent.
        for b in range(budgets):
            trial[b] = multipliers[b]
        if polish_prices(gradient, offsets, choices, costs, room, trial, _POLISHING_ROUNDS) == np.inf:
            return np.inf
        value = constant + certified_bound(
            diagonal, gradient, quadratic, offsets, choices, (costs, room), trial, diagonal.size
        )
        value -= _ROUNDED * (abs(value) + abs(constant))
        if value > best:
            best = value
            for b in range(budgets):
                slots.price[i, b] = trial[b]
            for w in range(x.size):
                slots.proof[i, w] = x[w]
            reduce_costs(form, slots, i)
        if best > cutoff or primal - best < _LEAST_PACE * (cutoff - best):
            break
    return best


@compiled_part
def reduce_costs(form: ConvexForm, slots: Slots, i: int) -> None:
    """Set ``reduced`` to the excess of each remaining choice's priced slope over the least one of its group."""
    offsets, choices, slopes = slots.offsets[i], slots.choices[i], slots.gradient[i]
    price, reduced, costs = slots.trial[i], slots.reduced[i], form.costs
    for g in range(offsets.size - 1):
        low = np.inf
        for position in range(offsets[g], offsets[g + 1]):
            v = choices[position]
            slope = slopes[v]
            for b in range(price.size):
                slope += price[b] * costs[v, b]
            reduced[v] = slope
            if slope < low:
                low = slope
        for position in range(offsets[g], offsets[g + 1]):
            reduced[choices[position]] -= low


@compiled_in_place
def expand(form: ConvexForm, slots: Slots, first: int, stop: int, cutoff: float, best: float, looks: int) -> None:
    """Bound the nodes in the slots from ``first`` to ``stop`` and find the children of those that stay open.

    A node with few combinations left is enumerated instead. Slots are independent: threads may divide them.
    """
    for i in range(first, stop):
        slots.children[i, 0], slots.answer[i, 0] = -1, -1
        slots.closed[i] = np.inf
        slots.bound[i] = slots.inherited[i]
        # The answer may have improved since the node was queued.
        if slots.inherited[i] >= cutoff:
            slots.closed[i] = slots.inherited[i]
            continue
        list_choices(form, slots, i)
        offsets, choices = slots.offsets[i], slots.choices[i]
        if not drop_unaffordable(form, offsets, choices):
            slots.bound[i] = np.inf
            continue
        if few(offsets):
            enumerate_rest(form, offsets, choices, best, slots.answer[i])
            continue
        value = bound_node(form, slots, i, cutoff, looks)
        slots.bound[i] = value
        reached = value if value > slots.inherited[i] else slots.inherited[i]
        if reached >= cutoff:
            slots.closed[i] = reached
        elif not exclude(slots, i, value, cutoff):
            if few(offsets):
                enumerate_rest(form, offsets, choices, best, slots.answer[i])
            else:
                branch(form, slots, i, value)
        # The children start from what proved the bound, not from where the search ended.
        for w in range(slots.proof.shape[1]):
            slots.x[i, w] = slots.proof[i, w]


@compiled_part
def list_choices(form: ConvexForm, slots: Slots, i: int) -> None:
    """List the allowed choices and their offsets in the slot's scratch."""
    offsets, choices, allowed = slots.offsets[i], slots.choices[i], slots.allowed[i]
    size = 0
    offsets[0] = 0
    for g in range(offsets.size - 1):
        for v in range(form.offsets[g], form.offsets[g + 1]):
            if allowed[v]:
                choices[size] = v
                size += 1
        offsets[g + 1] = size


@compiled_part
def exclude(slots: Slots, i: int, value: float, cutoff: float) -> bool:
    """Remove, in place, the choices that the reduced costs show to be no better than the cutoff.

    Returns whether a group has lost all of its choices: nothing better than the cutoff is then left.
    """
    offsets, choices, reduced, allowed = slots.offsets[i], slots.choices[i], slots.reduced[i], slots.allowed[i]
    for w in range(allowed.size):
        allowed[w] = 0
    empty, size = False, 0
    for g in range(offsets.size - 1):
        start = size
        begin, end = offsets[g], offsets[g + 1]
        offsets[g] = start
        for position in range(begin, end):
            v = choices[position]
            if value + reduced[v] >= cutoff:
                if value + reduced[v] < slots.closed[i]:
                    slots.closed[i] = value + reduced[v]
            else:
                choices[size] = v
                allowed[v] = 1
                size += 1
        empty = empty or size == start
    offsets[offsets.size - 1] = size
    return empty


@compiled_part
def few(offsets: IntArray) -> bool:
    """Whether the remaining combinations are few enough to enumerate."""
    combinations = 1.0
    for g in range(offsets.size - 1):
        combinations *= offsets[g + 1] - offsets[g]
    return bool(combinations <= _ENUMERATE)


@compiled_part
def branch(form: ConvexForm, slots: Slots, i: int, value: float) -> None:
    """Set ``children`` to the choices of the group to branch on, and ``bounds`` to theirs, best first."""
    offsets, choices, reduced = slots.offsets[i], slots.choices[i], slots.reduced[i]
    children, bounds, inherited = slots.children[i], slots.bounds[i], slots.inherited[i]
    g = widest_group(form.gram, offsets, choices, slots.x[i])
    count = offsets[g + 1] - offsets[g]
    for k in range(count):
        v = choices[offsets[g] + k]
        # The inherited bound holds for the child too, but reduced costs add only to the bound of this node.
        bound = value + reduced[v]
        if bound < inherited:
            bound = inherited
        place = k
        while place > 0 and bounds[place - 1] > bound:
            bounds[place], children[place] = bounds[place - 1], children[place - 1]
            place -= 1
        bounds[place], children[place] = bound, v
    if count < children.size:
        children[count], bounds[count] = -1, np.inf


@compiled_part
def widest_group(gram: FloatArray, offsets: IntArray, choices: IntArray, x: FloatArray) -> int:
    """The group whose mixture hides the most energy from the relaxation; the largest one if all are pure.

    A mixture's own quadratic energy is less than the mean over its choices; no pure choice can save that difference.
    """
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
        hidden += 1e-9 * mixed  # among groups that hide nothing, take the most mixed one
        if hidden > best:
            best, pick, found = hidden, g, True
    return pick if found else fallback


@compiled
def enumerate_rest(form: ConvexForm, offsets: IntArray, choices: IntArray, best: float, answer: IntArray) -> None:
    """Set ``answer`` to the best combination of the remaining choices, if better than ``best``.

    Depth first with exact budgets; ``answer`` holds local numbers, or -1 first if nothing is better.
    """
    gram, costs, room = form.gram, form.costs, form.room
    groups, size, budgets = offsets.size - 1, offsets[-1], room.size
    # fields[d, i]: energy that choice i would add after the first d groups are decided.
    fields = np.empty((groups + 1, size))
    for i in range(size):
        fields[0, i] = form.diagonal[choices[i]] + 0.5 * gram[choices[i], choices[i]]
    # rest[d, b]: the least cost of the groups from d on, which ends a branch as soon as nothing can complete it.
    rest = np.empty((groups + 1, budgets))
    for b in range(budgets):
        rest[groups, b] = 0.0
    for g in range(groups - 1, -1, -1):
        for b in range(budgets):
            least = np.inf
            for i in range(offsets[g], offsets[g + 1]):
                if costs[choices[i], b] < least:
                    least = costs[choices[i], b]
            rest[g, b] = rest[g + 1, b] + least
    energy, spent = np.empty(groups + 1), np.empty((groups + 1, budgets))
    energy[0] = form.constant
    for b in range(budgets):
        spent[0, b] = 0.0
    # position[d]: the next choice of group d to try.
    position = np.empty(groups, dtype=np.int64)
    for g in range(groups):
        position[g] = offsets[g]
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
                    answer[g] = choices[position[g] - 1] - form.offsets[g]
            continue
        for j in range(offsets[depth + 1], size):
            fields[depth + 1, j] = fields[depth, j] + gram[v, choices[j]]
        depth += 1
