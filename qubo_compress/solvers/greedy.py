"""Greedy: gives up bytes where they cost least, then spends the remaining room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress._internal import compiling
from qubo_compress._internal.compiling import compiled
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.problem.generators import tiny_problem
from qubo_compress.solvers.annealer.kernels import State, change, energies_of
from qubo_compress.solvers.annealer.polish import fits
from qubo_compress.solvers.annealer.tables import Tables
from qubo_compress.solvers.local_search.descent import LocalSearch, lagrangian_vertex
from qubo_compress.solvers.solver import Search, SearchLimits, Solver, solvers

_STEPS_PER_CALL = 64
"""Most changes between two checks of the clock."""


@solvers.register
@dataclass(frozen=True)
class Greedy(Solver):
    """Walk from the choices of least energy to the budget, cheapest step first, then fill the remaining room.

    Every step is the change of one group with the least rise of the energy per unit of overspending removed,
    including interactions with the present choices of all other groups. Groups that cannot help any more
    are skipped. Afterwards it makes the single changes that fit and lower the energy, best first.

    Args:
        fill: whether to spend the remaining room.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=8, choices=5, seed=0)
        >>> solve(problem, "greedy").energy >= solve(problem, "exact").energy - 1e-9
        True
    """

    name: ClassVar[str] = "greedy"
    accepts_pair_costs: ClassVar[bool] = True
    fill: bool = True

    def run(self, search: Search) -> None:
        """One deterministic walk; the work is the number of changes made."""
        with search.compiling():
            warm_up(search.problem.structure)
        with search.standardised() as standard:
            walk = _Walk(standard)
            try:
                walk.to_budget()
                if self.fill and walk.local.feasible:
                    walk.fill()
            finally:
                walk.finish()


class _Walk:
    def __init__(self, search: Search) -> None:
        problem = search.problem
        self.search, self.groups = search, problem.num_groups
        self.local = LocalSearch(problem, search.rng)
        self.local.place(lagrangian_vertex(problem, np.zeros(problem.num_budgets)))
        # Budgets with different units are compared as shares of their room.
        self.weights = 1.0 / np.maximum(1.0, (problem.limits - problem.fixed_costs).astype(np.float64))

    def to_budget(self) -> None:
        self._advance(filling=False)

    def fill(self) -> None:
        self._advance(filling=True)

    def finish(self) -> None:
        """Keep the final assignment, repaired to the budgets if necessary."""
        if not self.local.feasible:
            self.search.notes.append("the walk ended before the budget was met; the rest was forced")
            self.local.repair()
        if self.local.feasible:
            self.search.keep(self.local.assignment)

    def _advance(self, filling: bool) -> None:
        # The last known score of each group's best step; -inf forces its first evaluation.
        scores = np.full(self.groups, -np.inf)
        while not self.search.over():
            most = self.search.most_work(_STEPS_PER_CALL)
            made = walk_steps(self.local.tables, self.local.state, self.weights, scores, filling, most)
            self.search.work += made
            if made < most:
                return


@compiled
def walk_steps(tables: Tables, state: State, weights: FloatArray, scores: FloatArray, filling: bool, most: int) -> int:
    """Make up to ``most`` changes, each the best at present; returns how many were made.

    Scores go stale when other groups change, so the group with the best old score is scored again until
    it stays the best: this finds the next change without scoring every group.
    """
    groups = tables.offsets.size - 1
    budgets = state.totals.size
    made = 0
    rescued = False
    while made < most:
        if not filling:
            over = False
            for b in range(budgets):
                over = over or state.totals[b] > tables.room[b]
            if not over:
                return made
        fresh = np.full(groups, False)
        moved = False
        while True:
            group = int(np.argmin(scores))
            if scores[group] == np.inf:
                break
            start, stop = tables.offsets[group], tables.offsets[group + 1]
            old = state.chosen[group]
            values = energies_of(tables, state, group)
            pick, best, gain = -1, np.inf, 0.0
            for v in range(start, stop):
                if v == old:
                    continue
                rise = values[v - start] - values[old - start]
                if filling:
                    score = rise if rise < -1e-12 and fits(tables, state, group, v) else np.inf
                else:
                    relief = 0.0
                    for b in range(budgets):
                        now = state.totals[b]
                        then = now + state.costs[v, b] - state.costs[old, b]
                        excess_now = max(0, now - tables.room[b])
                        excess_then = max(0, then - tables.room[b])
                        relief += weights[b] * (excess_now - excess_then)
                    # A change that lowers the energy and overspending alike is taken first, the best of them first.
                    score = np.inf
                    if relief > 0.0:
                        score = rise / relief if rise > 0.0 else rise * relief - 1e-300
                if score < best:
                    pick, best, gain = v, score, rise
            if pick >= 0 and fresh[group]:
                change(tables, state, group, pick, gain)
                scores[group] = -np.inf
                moved = True
                break
            scores[group] = best
            fresh[group] = True
            if pick < 0:
                scores[group] = np.inf
        if not moved:
            # Groups set aside while other changes were made may help again.
            if rescued:
                return made
            rescued = True
            scores[:] = -np.inf
            continue
        rescued = False
        made += 1
    return made


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) the walk on a tiny problem."""
    walk = _Walk(Search(tiny_problem(structure), SearchLimits(60.0, 2), np.random.default_rng(0)))
    walk.to_budget()
    walk.local.repair()
    walk.fill()
