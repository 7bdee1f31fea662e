"""EvoPress: evolution of one parent by level switches, selected on growing samples of the real loss.

Sieberling, Kuznedelev, Kurtic, Alistarh: EvoPress: towards optimal dynamic model compression via evolutionary
search, 2024 (arXiv 2410.14649). The settings, the mutation and the selection are those of the authors' code for
quantization. Their levels are bit widths of layers of one size; choices needed beyond that are described below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.errors import InvalidSolverOption
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.network_loss import LossFunction
from qubo_compress.solvers import random as random_search
from qubo_compress.solvers.annealer.cost_rows import make_cost_rows
from qubo_compress.solvers.local_search import descent as local_search
from qubo_compress.solvers.opponents import network_loss
from qubo_compress.solvers.opponents.network_loss import Objective
from qubo_compress.solvers.pool import Pool
from qubo_compress.solvers.solver import Search, Solver, solvers

MOST_SWITCHES = 10
"""As published: offspring with more level changes are redrawn."""

_MOST_FAILURES = 200
"""After this many draws in a row without new offspring, hardly any are left."""


@solvers.register
@dataclass(frozen=True)
class EvoPress(Solver):
    """One parent, replaced in every generation by its best offspring if that is better.

    Offspring: as many groups as the smaller of two draws from 1 to ``switches`` go up a level, then random groups go
    down a level until the budgets hold. A group's levels are its choices ordered by cost (as shares of the limits). All
    offspring are scored on a small sample, the best of them on a larger one, and so on; the parent competes in the last
    stage. Every stage draws a new sample if the loss supports it (``redraw``).

    The start is the best of the uniform assignments that fit, scored on the last stage's sample: the paper has one
    uniform level, but a menu of bits and sparsity has several of one size. If none fits, levels go down at random.
    Without a loss the problem's energy decides, in one stage.

    Args:
        loss: (assignment, examples) -> mean loss of the network; ``table.stitched_loss(model, batches, "kl")``
            is the published one. None: the problem's energy.
        generations: most generations; None: until the limits.
        offspring: per generation.
        survivors: of each stage; the last is 1.
        samples: examples of each stage. The paper has 2,048, 16,384 and 131,072 tokens: the same factor of eight.
        switches: most groups that go up in one offspring.
        reach: most levels per switch, drawn uniformly from 1; the paper has 1.
        least_traded: offspring that add less than this share of what they remove are redrawn. The paper has 0.8;
            if group sizes differ much it forbids many trades, such as a large group down and small ones up.
        most_evaluations: no generation starts that would exceed this total of forwarded examples; None: no limit.

    Raises:
        InvalidSolverOption: for a number out of range.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> solution = solve(problem, "evopress", generations=5, time_limit=60.0)
        >>> problem.is_feasible(solution.assignment), solution.details["generations"]
        (True, 5)
    """

    name: ClassVar[str] = "evopress"
    loss: LossFunction | None = None
    generations: int | None = 150
    offspring: int = 128
    survivors: tuple[int, ...] = (16, 4, 1)
    samples: tuple[int, ...] = (8, 64, 512)
    switches: int = 3
    reach: int = 1
    least_traded: float = 0.8
    most_evaluations: int | None = None

    def __post_init__(self) -> None:
        numbers = (*self.survivors, *self.samples, self.offspring, self.switches, self.reach)
        if min(numbers) < 1 or (self.generations is not None and self.generations < 1):
            raise InvalidSolverOption("generations, offspring, survivors, samples, switches and reach start at 1")
        if not 0 <= self.least_traded <= 1:
            raise InvalidSolverOption(f"least_traded must be between 0 and 1; got {self.least_traded}")
        if len(self.survivors) != len(self.samples) or self.survivors[-1] != 1:
            raise InvalidSolverOption(
                "every stage needs survivors and samples, and the last one survivor; "
                f"got {self.survivors} and {self.samples}"
            )

    def run(self, search: Search) -> None:
        """Evolve until the generations, the time or the work, counted in candidates scored, are used up."""
        with search.compiling():
            local_search.warm_up()
            random_search.warm_up()
            network_loss.warm_up()
        evolution = _Evolution(search, self)
        try:
            if evolution.begin():
                while evolution.may_go_on() and evolution.generation():
                    pass
        finally:
            search.details |= {"generations": evolution.done, **evolution.objective.figures()}


class _OutOfTime(Exception):
    """Ends a generation that cannot be finished; its results are discarded."""


class _Evolution:
    """One run: the parent, and the time and work spent."""

    def __init__(self, search: Search, options: EvoPress) -> None:
        self.search, self.problem, self.rng, self.options = search, search.problem, search.rng, options
        self.objective = Objective(search, options.loss)
        self.done = 0
        self.longest: dict[int | None, float] = {}

    @property
    def stages(self) -> list[tuple[int, int | None]]:
        """(survivors, examples) of every stage."""
        if not self.objective.real:
            return [(1, None)]
        return list(zip(self.options.survivors, self.options.samples, strict=True))

    def begin(self) -> bool:
        """Find a parent; False if no assignment that fits was found."""
        self.levels = CostLevels(self.problem, self.options.reach)
        starts = self.levels.uniform_starts() or self.levels.random_start(self.rng)
        starts = starts[: self.search.limits.work]
        if not starts:
            return False
        self.search.settle(starts[0])
        self.objective.redraw(int(self.rng.integers(2**31)))
        sample = self.stages[-1][1]
        # The first start is an answer even if the limits are reached.
        values = [self._scored(starts[0], sample, force=True)]
        try:
            for start in starts[1:]:
                if self._exceeds(sample or 0):
                    break
                values.append(self._scored(start, sample))
        except _OutOfTime:
            values = values[:1]
        # Starts that were not compared for lack of time are not counted, so that the work repeats the answer.
        self.search.work = len(values)
        best = int(np.argmin(values))
        self.search.pool = Pool(size=1)
        self.objective.accept(starts[best], values[best])
        return True

    def may_go_on(self) -> bool:
        if self.options.generations is not None and self.done >= self.options.generations:
            return False
        return not self._exceeds(self._price()) and not self.search.over()

    def _exceeds(self, examples: int) -> bool:
        most = self.options.most_evaluations
        return self.objective.real and most is not None and self.objective.evaluations + examples > most

    def _price(self) -> int:
        """Examples that a full generation forwards; the parent competes in the last stage."""
        entering = (self.options.offspring, *self.options.survivors[:-1])
        stages = [
            min(before, self.options.offspring) * sample
            for before, sample in zip(entering, self.options.samples, strict=True)
        ]
        return sum(stages) + self.options.samples[-1]

    def generation(self) -> bool:
        """Create and select one generation; False if no offspring are left or there is no time."""
        assert self.search.best is not None  # noqa: S101 - begin() has set it
        seeds = self.rng.integers(2**31, size=len(self.stages)).tolist()
        candidates = self._offspring(self.search.best, self.search.most_work(self.options.offspring))
        made = len(candidates)
        if not made:
            return False
        values: FloatArray = np.zeros(0)
        try:
            for number, (keep, sample) in enumerate(self.stages):
                if number == len(self.stages) - 1:
                    # In a tie the parent stays: it comes first, and the sort below is stable.
                    candidates.insert(0, self.search.best)
                self.objective.redraw(seeds[number])
                values = self._stage(candidates, sample)
                order = np.argsort(values, kind="stable")[:keep]
                if len(self.stages) == 1:
                    made = values.size - 1
                candidates = [candidates[i] for i in order]
                values = values[order]
        except _OutOfTime:
            return False
        self.search.work += made
        self.done += 1
        self.objective.accept(candidates[0], float(values[0]))
        return True

    def _stage(self, candidates: list[IntArray], sample: int | None) -> FloatArray:
        """Values of all candidates, or of the first ones if time runs out in a single stage."""
        values: list[float] = []
        try:
            for candidate in candidates:
                values.append(self._scored(candidate, sample))
        except _OutOfTime:
            # With several stages, a partial generation could not be repeated from its work.
            if len(self.stages) > 1 or len(values) < 2:
                raise
        return np.array(values)

    def _scored(self, assignment: IntArray, sample: int | None, force: bool = False) -> float:
        begin = self.search.elapsed
        if not force and begin + self.longest.get(sample, 0.0) >= self.search.limits.seconds:
            raise _OutOfTime
        value = self.objective(assignment, sample)
        self.longest[sample] = max(0.9 * self.longest.get(sample, 0.0), self.search.elapsed - begin)
        return value

    def _offspring(self, parent: IntArray, most: int) -> list[IntArray]:
        """Up to ``most`` distinct mutations of the parent; fewer if hardly any exist.

        A small problem may have no even trades: then all trades are allowed.
        """
        known = {parent.tobytes()}
        found: list[IntArray] = []
        for least_traded in (self.options.least_traded, 0.0):
            failures = 0
            while len(found) < most and failures < _MOST_FAILURES:
                failures += 1
                child = self.levels.mutated(parent, self.options.switches, self.rng, least_traded)
                if child is not None and child.tobytes() not in known:
                    known.add(child.tobytes())
                    found.append(child)
                    failures = 0
        return found


class CostLevels:
    """The choices of every group ordered by cost, and the mutation that moves along them.

    Args:
        problem: the problem.
        reach: most levels that one switch passes.
    """

    def __init__(self, problem: ChoiceProblem, reach: int = 1) -> None:
        self.problem, self.reach = problem, reach
        self.room = problem.limits - problem.fixed_costs
        # Budgets in different units are compared as shares of their limits.
        self.shares = (problem.costs / np.maximum(1, self.room)[:, None]).sum(axis=0)
        self.sizes = problem.group_sizes
        self.starts = problem.group_offsets[:-1]
        self.by_level = [
            np.argsort(self.shares[a:b], kind="stable")
            for a, b in zip(self.starts, problem.group_offsets[1:], strict=True)
        ]
        self.level_of = np.concatenate([np.argsort(order) for order in self.by_level])

    def levels(self, assignment: IntArray) -> IntArray:
        """(G,) level of each group's choice, 0 the cheapest."""
        return np.asarray(self.level_of[self.starts + assignment], dtype=np.int64)

    def mutated(
        self, parent: IntArray, switches: int, rng: np.random.Generator, least_traded: float
    ) -> IntArray | None:
        """One offspring within the budgets, or None if it must be redrawn."""
        child, level = parent.copy(), self.levels(parent)
        totals = self.problem.costs[:, self.starts + parent].sum(axis=1)
        added = removed = 0.0
        changes = int(min(rng.integers(1, switches + 1, size=2)))
        for _ in range(changes):
            if self.problem.num_budgets == 0 and rng.random() < 0.5:
                added += self._switch(child, level, totals, level > 0, -1, rng)
            else:
                added += self._switch(child, level, totals, level < self.sizes - 1, 1, rng)
        while (totals > self.room).any():
            open_groups = level > 0
            changes += 1
            if changes > MOST_SWITCHES or not open_groups.any():
                return None
            removed -= self._switch(child, level, totals, open_groups, -1, rng)
        return None if removed > 0 and added < least_traded * removed else child

    def _switch(
        self,
        child: IntArray,
        level: IntArray,
        totals: IntArray,
        able: np.ndarray[tuple[int], np.dtype[np.bool_]],
        direction: int,
        rng: np.random.Generator,
    ) -> float:
        """Move one able group, if any, by up to ``reach`` levels; returns the change in shares."""
        groups = np.flatnonzero(able)
        if not groups.size:
            return 0.0
        group = int(groups[rng.integers(groups.size)])
        steps = 1 if self.reach == 1 else int(rng.integers(1, self.reach + 1))
        level[group] = min(max(0, level[group] + direction * steps), self.sizes[group] - 1)
        start = int(self.starts[group])
        old, new = start + child[group], start + self.by_level[group][level[group]]
        child[group] = new - start
        totals += self.problem.costs[:, new] - self.problem.costs[:, old]
        return float(self.shares[new] - self.shares[old])

    def uniform_starts(self) -> list[IntArray]:
        """For every choice name, an assignment that fits, if any, with that name wherever it is offered.

        Groups that lack it take their most expensive choice, or their cheapest if that does not fit.
        """
        places: dict[str, list[tuple[int, int]]] = {}
        for group, (a, b) in enumerate(zip(self.starts.tolist(), self.problem.group_offsets[1:].tolist(), strict=True)):
            for v in range(a, b):
                places.setdefault(self.problem.choice_names[v], []).append((group, v - a))
        found: dict[bytes, IntArray] = {}
        for chosen in places.values():
            for rest in (-1, 0):
                assignment = np.array([order[rest] for order in self.by_level], dtype=np.int64)
                for group, local in chosen:
                    assignment[group] = local
                if self.problem.is_feasible(assignment):
                    found.setdefault(assignment.tobytes(), assignment)
                    break
        return list(found.values())

    def random_start(self, rng: np.random.Generator) -> list[IntArray]:
        """The most expensive choices, lowered at random until they fit; empty if that fails."""
        offsets = self.problem.group_offsets.copy()
        chosen = offsets[:-1] + np.array([order[-1] for order in self.by_level])
        costs, rows = np.array(self.problem.costs.T, order="C"), make_cost_rows(self.problem)
        if random_search.repair_at_random(offsets, costs, self.room, chosen, int(rng.integers(2**62)), rows):
            return [chosen - offsets[:-1]]
        search = local_search.LocalSearch(self.problem, rng)
        search.place(chosen - offsets[:-1])
        return [search.assignment] if search.repair() else []
