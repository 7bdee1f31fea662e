"""Uniform: the same choice everywhere, the baseline that every allocation has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.problem.pair_costs import cost_beside
from qubo_compress.solvers.solver import Search, Solver, solvers


@solvers.register
@dataclass(frozen=True)
class Uniform(Solver):
    """Apply the largest choice that fits, by its name, in every group; then spend the rest in a fixed order.

    The rule of a practitioner without a table of interactions:

    1. A name is applied in every group that offers it. A group that lacks it takes its largest choice, usually its
       original, or its cheapest if that does not fit. The best name that fits is the base.
    2. The names form a ladder: from cheap to expensive, each better than all names below it. The groups are visited
       in their order, and each goes up to the next name on the ladder that it offers, if that fits. This is repeated
       until no group goes up.

    A name is better the less linear energy it adds to the groups' largest choices, where a gain in a group counts as
    zero: measured gains of smaller choices are usually luck, and must not add up. Pair energies are never used, and
    linear energies only to order the names, not to prefer a group. The note names the base and the number of steps up.

    Args:
        choice: the only name to try; None for all of them.
        fill: whether to spend the rest of the budget; never done for a given ``choice``.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem(
        ...     linear=[0.0, 1.0, 3.0, 0.0, 1.0, 3.0], group_offsets=[0, 3, 6], costs=[[8, 4, 2, 8, 4, 2]],
        ...     limits=[13], choice_names=["keep", "quantize(bits=4)", "quantize(bits=2)"] * 2)
        >>> solution = solve(problem, "uniform")
        >>> solution.choices
        {'group0': 'keep', 'group1': 'quantize(bits=4)'}
        >>> solution.notes
        ("uniform choice: 'quantize(bits=4)' in 2 of 2 groups, then 1 step up",)
    """

    name: ClassVar[str] = "uniform"
    accepts_pair_costs: ClassVar[bool] = True
    choice: str | None = None
    fill: bool = True

    def run(self, search: Search) -> None:
        """Try every name once, then go up; the work is the number of names tried and of groups raised."""
        walk = _Climb(search)
        names = list(dict.fromkeys(search.problem.choice_names)) if self.choice is None else [self.choice]
        try:
            walk.find_base(names)
            if self.fill and self.choice is None:
                walk.fill()
        finally:
            walk.finish()


class _Climb:
    """The base, and the steps up from it."""

    def __init__(self, search: Search) -> None:
        problem = search.problem
        self.search, self.problem, self.raised = search, problem, 0
        self.assignment: IntArray | None = None
        self.base = ""
        self.spans = list(zip(problem.group_offsets[:-1].tolist(), problem.group_offsets[1:].tolist(), strict=True))
        # Budgets in different units are compared as shares of their limits.
        self.shares: FloatArray = (problem.costs / np.maximum(1, problem.limits - problem.fixed_costs)[:, None]).sum(0)
        self.largest = np.array([int(np.argmax(self.shares[a:b])) for a, b in self.spans], dtype=np.int64)
        self.cheapest = np.array([int(np.argmin(self.shares[a:b])) for a, b in self.spans], dtype=np.int64)
        top = np.repeat(problem.linear[problem.group_offsets[:-1] + self.largest], np.diff(problem.group_offsets))
        self.rises: FloatArray = np.maximum(0.0, problem.linear - top)
        self.places: dict[str, list[tuple[int, int]]] = {}
        for group, (a, b) in enumerate(self.spans):
            for v in range(a, b):
                self.places.setdefault(problem.choice_names[v], []).append((group, v - a))

    def find_base(self, names: list[str]) -> None:
        """Take the best name that fits; in a tie, the largest."""
        best = (np.inf, 0.0)
        for name in names:
            if self.search.work and self.search.over():
                return
            self.search.work += 1
            for others in (self.largest, self.cheapest):
                plan = self._applied(name, others)
                if self.problem.is_feasible(plan):
                    found = (self._sum(self.rises, plan), -self._sum(self.shares, plan))
                    if found < best:
                        best, self.assignment, self.base = found, plan, name
                    break

    def fill(self) -> None:
        """Raise the groups in their order, one name at a time, until none can be raised."""
        if self.assignment is None:
            return
        problem, offsets = self.problem, self.problem.group_offsets
        ladder = self._ladder()
        steps = self._steps(ladder, self.assignment)
        room = problem.limits - problem.totals(self.assignment)
        present = np.zeros(problem.num_choices, dtype=np.int64)
        present[offsets[:-1] + self.assignment] = 1
        going = [group for group, above in enumerate(steps) if above]
        while going:
            left = []
            for group in going:
                if self.search.over():
                    return
                first = offsets[group]
                old, new = first + self.assignment[group], first + steps[group][0]
                extra = cost_beside(problem, new, present) - cost_beside(problem, old, present)
                if (extra > room).any():
                    # It stays: the names above are even larger.
                    continue
                room = room - extra
                present[old], present[new] = 0, 1
                self.assignment[group] = steps[group].pop(0)
                self.raised += 1
                self.search.work += 1
                if steps[group]:
                    left.append(group)
            going = left

    def finish(self) -> None:
        """Keep the walk's final assignment, and describe it in a note."""
        if self.assignment is None:
            return
        self.search.keep(self.assignment)
        places = len(self.places.get(self.base, []))
        said = f"uniform choice: {self.base!r} in {places} of {self.problem.num_groups} groups"
        self.search.notes.append(said + f", then {self.raised} step{'s' * (self.raised != 1)} up" * (self.raised > 0))

    def _ladder(self) -> list[str]:
        """Names above the base, from cheap to expensive, each better than all below it."""
        found = []
        for position, name in enumerate(self.places):
            plan = self._applied(name, self.largest)
            found.append((self._sum(self.shares, plan), self._sum(self.rises, plan), position, name))
        ladder: list[str] = []
        least = np.inf
        base = next(share for share, _, _, name in found if name == self.base)
        for share, rise, _, name in sorted(found):
            if rise < least:
                least = rise
                ladder += [name] if share > base else []
        return ladder

    def _steps(self, ladder: list[str], assignment: IntArray) -> list[list[int]]:
        """For each group, the choices above its present one, from the next upwards."""
        rank = {name: number for number, name in enumerate(ladder)}
        steps: list[list[int]] = []
        for group, (a, b) in enumerate(self.spans):
            names = self.problem.choice_names[a:b]
            here = int(assignment[group])
            above = sorted((rank[name], local) for local, name in enumerate(names) if name in rank)
            # A choice that costs no more than the present one is not a step up.
            steps.append([local for _, local in above if self.shares[a + local] > self.shares[a + here]])
        return steps

    def _applied(self, name: str, others: IntArray) -> IntArray:
        plan = others.copy()
        for group, local in self.places.get(name, []):
            plan[group] = local
        return plan

    def _sum(self, values: FloatArray, plan: IntArray) -> float:
        return float(values[self.problem.group_offsets[:-1] + plan].sum())
