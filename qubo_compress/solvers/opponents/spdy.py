"""SPDY: dynamic programming on layer errors, under a search for the weight that each layer deserves.

Frantar, Alistarh: SPDY: accurate pruning with speedup guarantees, ICML 2022. Errors of single choices add up; what
they miss is made good by one coefficient per layer, found by random and local search on the real loss. Buckets,
draws and neighbourhoods are those of the authors' code, but costs are rounded up, where rounding to the nearest bucket
can exceed the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress._internal import compiling
from qubo_compress._internal.compiling import compiled
from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.generators import tiny_problem
from qubo_compress.problem.network_loss import LossFunction
from qubo_compress.solvers.local_search import descent as local_search
from qubo_compress.solvers.opponents import network_loss
from qubo_compress.solvers.opponents.network_loss import Objective
from qubo_compress.solvers.solver import Search, SearchOver, Solver, solvers


@solvers.register
@dataclass(frozen=True)
class Spdy(Solver):
    """Draw coefficients, solve the separable problem that they weigh by dynamic programming, score its solution.

    First all coefficients are one, then ``draws`` times drawn evenly from 0 to 1; from the best, some are drawn anew:
    at first a tenth of them at a time, then one fewer whenever ``patience`` trials in a row did not help,
    down to one. Of several budgets the first binds in the programme; where another is exceeded the answer is repaired.
    With no budget every coefficient gives the same answer.

    Args:
        loss: (assignment, examples) -> mean loss of the network, on all its examples (examples is None);
            ``table.stitched_loss(model, batches)`` is one. None: the problem's energy.
        errors: (V,) error of every choice; None: the problem's linear terms. Published are squared errors of the
            layers' outputs.
        draws: random coefficients.
        patience: trials without success before the neighbourhood shrinks.
        share: of the coefficients drawn anew at first.
        buckets: of the budget.
        most_evaluations: the search ends before it would forward more examples than these; None: no limit.

    Raises:
        InvalidSolverOption: for a number out of range.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> solution = solve(problem, "spdy", draws=5, patience=5, time_limit=60.0)
        >>> problem.is_feasible(solution.assignment), solution.work >= 11
        (True, True)
    """

    name: ClassVar[str] = "spdy"
    loss: LossFunction | None = None
    errors: tuple[float, ...] | None = None
    draws: int = 100
    patience: int = 100
    share: float = 0.1
    buckets: int = 10_000
    most_evaluations: int | None = None

    def __post_init__(self) -> None:
        if min(self.draws, self.patience, self.buckets) < 1 or not 0 < self.share <= 1:
            raise InvalidSolverOption("draws, patience and buckets start at 1; share lies in (0, 1]")

    def run(self, search: Search) -> None:
        """Search until the neighbourhoods, the time or the work, counted in candidates, are used up."""
        if self.errors is not None and len(self.errors) != search.problem.num_choices:
            raise InvalidSolverOption(
                f"errors must hold one number for each of {search.problem.num_choices} choices; got {len(self.errors)}"
            )
        with search.compiling():
            warm_up()
        coefficients = _CoefficientSearch(search, self)
        try:
            coefficients.all()
        finally:
            search.details |= coefficients.objective.figures()


class _CoefficientSearch:
    """The coefficients found best, and what was spent."""

    def __init__(self, search: Search, options: Spdy) -> None:
        self.search, self.problem, self.rng, self.options = search, search.problem, search.rng, options
        self.objective = Objective(search, options.loss)
        self.price = 0
        self.longest = 0.0
        self.known: dict[bytes, float] = {}

    def all(self) -> None:
        """Both searches; raises when the limits end them."""
        groups = self.problem.num_groups
        self.programme = BucketProgramme(self.problem, self.options.buckets)
        self.errors = self.problem.linear if self.options.errors is None else np.array(self.options.errors)
        best = np.ones(groups)
        self._improves(best)
        if self.problem.num_budgets == 0:
            return
        for _ in range(self.options.draws):
            drawn = self.rng.random(groups)
            if self._improves(drawn):
                best = drawn
        for count in range(max(1, round(self.options.share * groups)), 0, -1):
            failures = 0
            while failures < self.options.patience:
                tried = best.copy()
                for _ in range(count):
                    tried[self.rng.integers(groups)] = self.rng.random()
                failures += 1
                if self._improves(tried):
                    best, failures = tried, 0

    def _improves(self, coefficients: FloatArray) -> bool:
        """Score the programme's answer under these coefficients, and keep it if it is the best so far."""
        search, begin = self.search, self.search.elapsed
        if search.work and search.over(self.longest):
            raise SearchOver
        assignment = self.programme.solve(self.errors * np.repeat(coefficients, self.problem.group_sizes))
        if not self.problem.is_feasible(assignment):
            local = local_search.LocalSearch(self.problem, self.rng)
            local.place(assignment)
            if not local.repair():
                raise SearchOver
            assignment = local.assignment
        key = assignment.tobytes()
        # Many coefficients lead to one assignment; the network need not be asked twice.
        value = self.known[key] if key in self.known else self._asked(assignment)
        self.known[key] = value
        search.work += 1
        self.longest = max(0.9 * self.longest, search.elapsed - begin)
        if search.best is not None and not value < self.objective.value:
            return False
        self.objective.accept(assignment, value)
        return True

    def _asked(self, assignment: IntArray) -> float:
        before, most = self.objective.evaluations, self.options.most_evaluations
        if most is not None and before + self.price > most:
            raise SearchOver
        value = self.objective(assignment, None)
        self.price = self.objective.evaluations - before
        return value


class BucketProgramme:
    """Dynamic programming over the first budget, cut into buckets; solved again and again for other errors.

    Costs count from each group's cheapest choice and are rounded up, so that what fits the buckets fits the budget
    and the cheapest choices always fit.

    Args:
        problem: the problem; its energies are not looked at.
        buckets: most of them; fewer where they still hold every total exactly.

    Example:
        >>> problem = ChoiceProblem.random(kind="separable", groups=8, choices=5, seed=0)
        >>> assignment = BucketProgramme(problem).solve(problem.linear)
        >>> problem.is_feasible(assignment)
        True
    """

    def __init__(self, problem: ChoiceProblem, buckets: int = 10_000) -> None:
        self.offsets = problem.group_offsets.copy()
        self.costs = np.zeros(problem.num_choices, dtype=np.int64)
        self.buckets = 0
        if problem.num_budgets:
            least = np.minimum.reduceat(problem.costs[0], self.offsets[:-1])
            above = problem.costs[0] - np.repeat(least, problem.group_sizes)
            room = int(problem.limits[0] - problem.fixed_costs[0] - least.sum())
            unit = max(1, int(np.gcd.reduce(above)))
            # Buckets of whole units: no total is rounded where there are enough of them.
            size = unit * max(1, -(-(room // unit) // buckets))
            self.costs, self.buckets = -(-above // size), max(0, room // size)

    def solve(self, errors: FloatArray) -> IntArray:
        """(G,) local choices of the least sum of errors (V,) within the buckets."""
        return fill_buckets(self.offsets, self.costs, np.ascontiguousarray(errors), self.buckets)


@compiled
def fill_buckets(offsets: IntArray, costs: IntArray, errors: FloatArray, room: int) -> IntArray:
    """The table of least errors by cost, group by group, and the way back."""
    groups = offsets.size - 1
    choice = np.zeros((groups, room + 1), dtype=np.int16)
    best = np.zeros(room + 1)
    after = np.empty(room + 1)
    for g in range(groups):
        after[:] = np.inf
        row = choice[g]
        for v in range(offsets[g], offsets[g + 1]):
            cost, error, local = costs[v], errors[v], np.int16(v - offsets[g])
            for total in range(cost, room + 1):
                value = best[total - cost] + error
                if value < after[total]:
                    after[total] = value
                    row[total] = local
        best, after = after, best
    picks = np.zeros(groups, dtype=np.int64)
    left = room
    for g in range(groups - 1, -1, -1):
        picks[g] = choice[g, left]
        left -= costs[offsets[g] + picks[g]]
    return picks


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) the programme and what it is compared with."""
    problem = tiny_problem(structure)
    BucketProgramme(problem).solve(problem.linear)
    local_search.warm_up(structure)
    network_loss.warm_up(structure)
