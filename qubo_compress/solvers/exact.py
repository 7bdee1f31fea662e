"""The exact solver: an answer together with the proof, or with the best bound when time runs out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from qubo_compress.problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem_generators import random_problem
from qubo_compress.solvers import branch_nodes, local_search, price_kernels
from qubo_compress.solvers.bounds import LARGEST_EIGENPROBLEM, lower_bound
from qubo_compress.solvers.branch_and_bound import Tree
from qubo_compress.solvers.dynamic_programming import solve_table
from qubo_compress.solvers.local_search import LocalSearch, lagrangian_vertex
from qubo_compress.solvers.relaxation import LARGEST_GRAM, convex_form, scaled_costs
from qubo_compress.solvers.solver import RawSolution, SearchLimits, solvers

_KICKS = 60
"""Restarts of the local search for the first answer, where double changes are cheap."""

_FEW_GROUPS = 60
_KICKED_GROUPS = 4
_FIRST_SHARE = 0.2


@solvers.register("exact")
@dataclass(frozen=True)
class Exact:
    """Find the optimum and prove it.

    Without interactions and with at most one budget: dynamic programming over exact integer costs. Otherwise:
    branch and bound on the convex relaxation. When the time runs out the best answer comes with a true
    lower bound. Interactions among more choices than ``LARGEST_GRAM`` (4000; 1500 with pairs) get a
    local optimum and a bound only, and a note says so.

    Args:
        first: an assignment to start from; None for a local search.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=8, choices=5, seed=0)
        >>> solution = solve(problem, Exact(), time_limit=20.0)
        >>> solution.status, solution.gap <= 1e-6
        ('optimal', True)
    """

    name: ClassVar[str] = "exact"
    optimises: ClassVar[bool] = True
    first: tuple[int, ...] | None = None

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Search until proven, out of time, out of work (nodes or states) or interrupted."""
        compiling = warm_up()
        run = _Run(problem, limits, rng, self.first)
        interrupted = False
        try:
            run.solve()
        except KeyboardInterrupt:
            interrupted = True
        return run.result(compiling, interrupted)


@dataclass
class _Run:
    """One search; every attribute is valid at any moment, so that an interruption can be answered."""

    problem: ChoiceProblem
    limits: SearchLimits
    rng: np.random.Generator
    first: tuple[int, ...] | None
    best: IntArray | None = None
    bound: float = -np.inf
    work: int = 0
    tree: Tree | None = None
    notes: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    @property
    def deadline(self) -> float:
        return self.start + self.limits.seconds

    def solve(self) -> None:
        problem = self.problem
        search = LocalSearch(problem, self.rng)
        self._first_answer(search)
        # One budget within reach can always be repaired to; that it is within reach was checked before.
        if problem.structure == "separable" and problem.num_budgets <= 1 and self.best is not None:
            answer = solve_table(problem, self.best, self.deadline, self.limits.work)
            self.best, self.bound, self.work = answer.assignment, answer.bound, answer.states
            return
        most = LARGEST_EIGENPROBLEM if problem.structure == "pairs" else LARGEST_GRAM
        if problem.num_choices > most:
            self.notes.append(
                f"{problem.num_choices} choices are more than the {most} that exact can branch on: bound only"
            )
            self.bound = lower_bound(problem, self.deadline - time.perf_counter()) or -np.inf
            return
        self.tree = Tree(problem, convex_form(problem), search, self.best, start=self.start)
        self.tree.run(self.deadline, self.limits.work)

    def _first_answer(self, search: LocalSearch) -> None:
        """A local optimum from the least energies and from the least priced energies, then kicks."""
        problem = self.problem
        deadline = self.start + _FIRST_SHARE * self.limits.seconds
        starts = [lagrangian_vertex(problem, np.zeros(problem.num_budgets))]
        if self.first is not None:
            starts.insert(0, np.array(self.first, dtype=np.int64))
        if problem.num_budgets:
            starts.append(lagrangian_vertex(problem, _prices(problem)))
        few = problem.num_groups <= _FEW_GROUPS
        for vertex in starts:
            self._try(search, vertex, deadline, few)
        for _ in range(_KICKS if few and problem.structure != "separable" else 0):
            if self.best is None or time.perf_counter() >= deadline:
                break
            kicked = self.best.copy()
            groups = self.rng.integers(problem.num_groups, size=_KICKED_GROUPS)
            kicked[groups] = self.rng.integers(problem.group_sizes[groups])
            self._try(search, kicked, deadline, few)

    def _try(self, search: LocalSearch, vertex: IntArray, deadline: float, pairs: bool) -> None:
        search.place(vertex)
        if not search.repair():
            return
        found = search.assignment
        search.descend(deadline, pairs)
        for assignment in (found, search.assignment):
            if self.best is None or self.problem.energy(assignment) < self.problem.energy(self.best):
                self.best = assignment

    def result(self, compiling: float, interrupted: bool) -> RawSolution:
        best, bound, work = self.best, self.bound, self.work
        pool = [] if best is None else [best]
        trace: tuple[tuple[float, float, float | None], ...] = ()
        infeasible = False
        if self.tree is not None:
            tree = self.tree
            bound, work, trace = tree.bound, tree.nodes, tuple(tree.trace)
            pool = tree.pool or pool
            infeasible = tree.finished and not pool
        energy = self.problem.energy(pool[0]) if pool else None
        seconds = time.perf_counter() - self.start
        known = bound if np.isfinite(bound) else None
        if energy is not None:
            trace = (*trace, (seconds, energy, known))
        return RawSolution(
            assignments=tuple(pool),
            claimed_energy=energy,
            bound=known,
            timing={"compile": compiling, "solve": seconds},
            trace=trace,
            work=work,
            interrupted=interrupted,
            infeasible=infeasible,
            notes=tuple(self.notes),
        )


def _prices(problem: ChoiceProblem) -> FloatArray:
    """(B,) prices per unit at which the linear terms alone would meet the budgets."""
    costs, room, scales = scaled_costs(problem)
    price = np.zeros(room.size)
    choices = np.arange(problem.num_choices)
    value = price_kernels.polish_prices(
        problem.linear.copy(), problem.group_offsets.copy(), choices, costs, room, price, 4
    )
    return price / scales if np.isfinite(value) else np.zeros(room.size)


def warm_up() -> float:
    """Compile (or load from the disk cache) every kernel on tiny problems; returns the seconds it took."""
    start = time.perf_counter()
    if getattr(branch_nodes.put, "signatures", ()):  # the last one below to be compiled
        return 0.0
    local_search.warm_up()
    rng = np.random.default_rng(0)
    _Run(random_problem("separable", groups=3, choices=3, seed=0), SearchLimits(60.0), rng, None).solve()
    # Too many combinations to be enumerated, so that a node is bounded and then one small enough is enumerated.
    for groups, work in ((13, 1), (3, 1)):
        problem = random_problem("low-rank", groups=groups, choices=2, seed=0, rank=2)
        tree = Tree(problem, convex_form(problem), LocalSearch(problem, rng), None)
        tree.run(start + 600.0, work)
    return time.perf_counter() - start
