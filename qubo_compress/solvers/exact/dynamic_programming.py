"""Exact solution without interactions under one budget: dynamic programming over undominated states.

A state is (total cost, energy) after deciding some of the groups. Costs are exact integers; a state is
dropped when another has neither higher cost nor higher energy, or when even the linear relaxation of the
undecided groups cannot bring it below the best known answer. The bounds of states dropped for lack of memory or time
count towards the final bound, which is therefore valid; ``optimal`` is claimed only if bound and answer meet.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from qubo_compress._internal.compiling import compiled
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers.exact import price_kernels
from qubo_compress.solvers.exact.convex_relaxation import scaled_costs

MOST_STATES = 250_000
"""States kept after each group: each takes 12 bytes per group for backtracking, 32 bytes while it is extended."""

_MOST_TRACKED = 60_000_000
"""States remembered over all groups, 12 bytes each."""


@dataclass(frozen=True)
class TableAnswer:
    """The result of a dynamic programme.

    Attributes:
        assignment: (G,) local choices.
        bound: lower bound on the energy of every feasible assignment.
        states: states made.
    """

    assignment: IntArray
    bound: float
    states: int


def solve_table(
    problem: ChoiceProblem,
    incumbent: IntArray,
    deadline: float,
    work: int | None = None,
    most_states: int = MOST_STATES,
) -> TableAnswer:
    """Solve a problem without interactions and with at most one budget.

    Args:
        problem: the problem; its pair energies, if any, are ignored.
        incumbent: a feasible assignment to start from; the better it is, the fewer states survive.
        deadline: value of ``time.perf_counter`` at which to stop.
        work: most states to make, or None.
        most_states: memory limit, in states kept per group.

    Example:
        >>> problem = ChoiceProblem.random(kind="separable", groups=8, choices=5, seed=0)
        >>> answer = solve_table(problem, np.full(8, 4), deadline=time.perf_counter() + 5)
        >>> bool(abs(problem.energy(answer.assignment) - answer.bound) < 1e-9)
        True
    """
    offsets, linear = problem.group_offsets.copy(), problem.linear.copy()
    costs, room = _integer_costs(problem)
    scaled, scaled_room, scales = scaled_costs(problem)
    price = np.zeros(scaled_room.size)
    root = problem.constant + _relaxed(problem, scaled, scaled_room, price)
    unit_price = float(price[0] / scales[0]) * _divisor(problem) if price.size else 0.0
    charged = linear + unit_price * costs
    least = np.minimum.reduceat(charged, offsets[:-1])
    tolerance = _rounding(problem)
    limit = problem.energy(incumbent) - problem.constant
    # Reduced costs: a choice that would lift the relaxation above the incumbent is excluded.
    excess = charged - np.repeat(least, problem.group_sizes)
    useful = float(least.sum()) - unit_price * room + excess <= limit + tolerance
    useful[problem.selected(incumbent)] = True
    order = _order(excess, offsets, useful)
    remaining = np.concatenate([np.cumsum(least[order][::-1])[::-1], [0.0]])
    cheapest = np.minimum.reduceat(np.where(useful, costs, np.iinfo(np.int64).max), offsets[:-1])
    reserve = np.concatenate([np.cumsum(cheapest[order][::-1])[::-1], [0]])

    total, energy = np.zeros(1, dtype=np.int64), np.zeros(1)
    back: list[tuple[IntArray, IntArray]] = []
    dropped, states, tracked, longest = np.inf, 0, 0, 0.0
    for step, g in enumerate(order):
        begin = time.perf_counter()
        if begin + longest >= deadline or (work is not None and states >= work) or tracked > _MOST_TRACKED:
            # Stopped early: the bound of each remaining state is its relaxation.
            lives = energy + unit_price * (total - room) + remaining[step]
            return TableAnswer(
                incumbent, max(root, problem.constant + min(dropped, limit, lives.min()) - tolerance), states
            )
        allowed = np.flatnonzero(useful[offsets[g] : offsets[g + 1]]) + offsets[g]
        total, energy, parent, choice, lost, made = extend(
            total, energy, costs[allowed], linear[allowed],
            Rules(int(room - reserve[step + 1]), unit_price, room, float(remaining[step + 1]), float(limit + tolerance),
                  4 * most_states),
        )  # fmt: skip
        if total.size > most_states:
            # Keep the states with the best relaxation; the others count by their bounds.
            bounds = energy + unit_price * (total - room) + remaining[step + 1]
            stay = np.sort(np.argpartition(bounds, most_states)[:most_states])
            going = np.ones(total.size, dtype=np.bool_)
            going[stay] = False
            lost = min(lost, float(bounds[going].min()))
            total, energy, parent, choice = total[stay], energy[stay], parent[stay], choice[stay]
        longest = max(longest, time.perf_counter() - begin)
        dropped = min(dropped, lost)
        states += int(made)
        tracked += total.size
        back.append((parent, (allowed - offsets[g])[choice].astype(np.int32)))
        if total.size == 0:  # nothing left that could beat the incumbent
            return TableAnswer(incumbent, max(root, problem.constant + min(dropped, limit) - tolerance), states)
    best = int(np.argmin(energy))
    if energy[best] >= limit:
        return TableAnswer(incumbent, max(root, problem.constant + min(dropped, limit) - tolerance), states)
    assignment = np.zeros(problem.num_groups, dtype=np.int64)
    position = best
    for g, (parent, choice) in zip(order[::-1], back[::-1], strict=True):
        assignment[g] = choice[position]
        position = parent[position]
    return TableAnswer(assignment, max(root, problem.constant + min(dropped, float(energy[best])) - tolerance), states)


def _integer_costs(problem: ChoiceProblem) -> tuple[IntArray, int]:
    """Costs and room divided by the costs' common divisor; rounding the room down loses nothing."""
    if problem.num_budgets == 0:
        return np.zeros(problem.num_choices, dtype=np.int64), 0
    divisor = _divisor(problem)
    return problem.costs[0] // divisor, int((problem.limits[0] - problem.fixed_costs[0]) // divisor)


def _divisor(problem: ChoiceProblem) -> int:
    return max(1, int(np.gcd.reduce(problem.costs[0]))) if problem.num_budgets else 1


def _relaxed(problem: ChoiceProblem, costs: FloatArray, room: FloatArray, price: FloatArray) -> float:
    offsets, choices = problem.group_offsets.copy(), np.arange(problem.num_choices)
    linear = problem.linear.copy()
    price_kernels.polish_prices(linear, offsets, choices, costs, room, price, 1)
    return price_kernels.certified_bound(
        linear, linear, 0.0, offsets, choices, (costs, room), price, problem.num_groups
    )


def _rounding(problem: ChoiceProblem) -> float:
    """The largest difference that summing the energies in another order can make.

    Zero if the least energies fit the budget and are all zero: no sum is rounded then.
    """
    starts = problem.group_offsets[:-1]
    if problem.linear.min() >= 0.0 and not np.minimum.reduceat(problem.linear, starts).any():
        if problem.num_budgets == 0:
            return 0.0
        costs = np.where(problem.linear == 0.0, problem.costs[0], np.iinfo(np.int64).max)
        if problem.fixed_costs[0] + int(np.minimum.reduceat(costs, starts).sum()) <= problem.limits[0]:
            return 0.0
    return 4e-16 * (problem.num_groups + 4) * float(np.maximum.reduceat(np.abs(problem.linear), starts).sum())


def _order(excess: FloatArray, offsets: IntArray, useful: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> IntArray:
    """Groups with few useful choices and large steps first, so that bounds prune early."""
    counts = np.add.reduceat(useful.astype(np.int64), offsets[:-1])
    masked = np.where(useful & (excess > 0), excess, np.inf)
    step = np.minimum.reduceat(masked, offsets[:-1])
    return np.lexsort((np.where(np.isfinite(step), -step, 0.0), counts > 1)).astype(np.int64)


class Rules(NamedTuple):
    """Which extensions are kept.

    Attributes:
        most: largest cost at which the undecided groups still fit.
        unit_price: price of a unit of cost.
        room: largest total cost.
        remaining: least priced energy of the undecided groups.
        limit: bound above which an extension cannot lead to a better answer.
        most_made: how many fit in memory.
    """

    most: int
    unit_price: float
    room: int
    remaining: float
    limit: float
    most_made: int


@compiled
def extend(
    total: IntArray,
    energy: FloatArray,
    costs: IntArray,
    linear: FloatArray,
    rules: Rules,
) -> tuple[IntArray, FloatArray, IntArray, IntArray, float, int]:
    """All undominated extensions of the states by one group, sorted by cost.

    Returns totals, energies, parents, choices, the least bound of what was dropped for lack of
    memory, and the number of states made. The states are sorted by cost, so the extensions by each
    choice are too, and one merge yields them all in order.
    """
    count = costs.size
    heads = np.empty(count, dtype=np.int64)
    for k in range(count):
        heads[k] = 0
    capacity = total.size * count + 1
    if capacity > rules.most_made:
        capacity = rules.most_made + 1
    new_total = np.empty(capacity, dtype=np.int64)
    new_energy = np.empty(capacity)
    parent = np.empty(capacity, dtype=np.int64)
    choice = np.empty(capacity, dtype=np.int64)
    size, made, lost = 0, 0, np.inf
    lowest = np.inf
    while True:
        pick, low = -1, 0
        for k in range(count):
            if heads[k] < total.size:
                candidate = total[heads[k]] + costs[k]
                if pick < 0 or candidate < low:
                    pick, low = k, candidate
        if pick < 0 or low > rules.most:
            break
        state = heads[pick]
        heads[pick] += 1
        value = energy[state] + linear[pick]
        if value >= lowest:
            continue
        bound = value + rules.unit_price * (low - rules.room) + rules.remaining
        if bound > rules.limit:
            continue
        made += 1
        if size > 0 and new_total[size - 1] == low:
            size -= 1
        if size == capacity - 1:
            lost = bound if bound < lost else lost
            continue
        lowest = value
        new_total[size], new_energy[size], parent[size], choice[size] = low, value, state, pick
        size += 1
    return new_total[:size].copy(), new_energy[:size].copy(), parent[:size].copy(), choice[:size].copy(), lost, made
