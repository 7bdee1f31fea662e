"""Random search: the baseline that every other solver must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress._internal import compiling
from qubo_compress._internal.compiling import compiled
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.problem.generators import tiny_problem
from qubo_compress.solvers.annealer.cost_rows import CostRows, add_costs, exchange_costs, make_cost_rows
from qubo_compress.solvers.solver import Search, Solver, solvers


@solvers.register
@dataclass(frozen=True)
class RandomSearch(Solver):
    """Draw a random choice for every group, repair to the budgets at random, keep the best.

    The repair ignores energies: it makes random changes that reduce the overspending, so that this stays a baseline
    and not a local search.

    Args:
        pool_size: how many distinct good assignments to return.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> solve(problem, "random", work_limit=50).work
        50
    """

    name: ClassVar[str] = "random"
    accepts_pair_costs: ClassVar[bool] = True
    pool_size: int = 16

    def run(self, search: Search) -> None:
        """Draw until the time or the work (draws) is used up."""
        with search.compiling():
            warm_up()
        search.pool.size = self.pool_size
        problem, rng = search.problem, search.rng
        costs, rows = np.array(problem.costs.T, order="C"), make_cost_rows(problem)
        room = problem.limits - problem.fixed_costs
        offsets = problem.group_offsets.copy()
        for _ in search.rounds():
            chosen = offsets[:-1] + rng.integers(problem.group_sizes)
            search.work += 1
            if repair_at_random(offsets, costs, room, chosen, int(rng.integers(2**62)), rows):
                search.keep(chosen - offsets[:-1])


@compiled
def repair_at_random(
    offsets: IntArray, costs: IntArray, room: IntArray, chosen: IntArray, seed: int, rows: CostRows
) -> bool:
    """Make random changes that reduce the overspending, relative to the limits, until nothing is overspent.

    After many failures in a row, set each group in turn to its least overspending choice; False if those do not fit.
    """
    groups, budgets = offsets.size - 1, room.size
    totals = np.zeros(budgets, dtype=np.int64)
    paired = rows.cost_partners.size > 0
    for g in range(groups):
        for b in range(budgets):
            totals[b] += costs[chosen[g], b]
    if paired:  # from here on, costs are those beside the present choices
        costs = costs.copy()
        for g in range(groups):
            add_costs(rows, costs, chosen[g])
        for b in range(budgets):
            beside = 0
            for g in range(groups):
                beside += costs[chosen[g], b]
            totals[b] = (totals[b] + beside) // 2
    state = np.uint64(seed) | np.uint64(1)
    failures, cursor = 0, 0
    while True:
        over = False
        for b in range(budgets):
            over = over or totals[b] > room[b]
        if not over:
            return True
        # xorshift64*, seeded from the search's generator.
        state ^= state >> np.uint64(12)
        state ^= state << np.uint64(25)
        state ^= state >> np.uint64(27)
        word = (state * np.uint64(2685821657736338717)) >> np.uint64(33)
        if failures < 20 * groups:
            group = int(np.int64(word % np.uint64(groups)))
            first, last = offsets[group], offsets[group + 1]
            first += int(np.int64((word // np.uint64(groups)) % np.uint64(last - first)))
            last = first + 1
        elif cursor < groups:
            first, last = offsets[cursor], offsets[cursor + 1]
            group = cursor
            cursor += 1
        else:
            return False
        old = chosen[group]
        pick, best = -1, 0.0
        for v in range(first, last):
            relief = 0.0
            for b in range(budgets):
                then = totals[b] + costs[v, b] - costs[old, b]
                relief += (max(0, totals[b] - room[b]) - max(0, then - room[b])) / max(1.0, float(room[b]))
            if relief > best:
                pick, best = v, relief
        if pick < 0:
            failures += 1
            continue
        failures = 0 if cursor == 0 else failures
        for b in range(budgets):
            totals[b] += costs[pick, b] - costs[old, b]
        if paired:
            exchange_costs(rows, costs, old, pick)
        chosen[group] = pick


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) the repair."""
    problem = tiny_problem(structure)
    costs = np.array(problem.costs.T, order="C")
    room, rows = problem.limits - problem.fixed_costs, make_cost_rows(problem)
    repair_at_random(problem.group_offsets.copy(), costs, room, np.array([0, 2, 4]), 1, rows)
