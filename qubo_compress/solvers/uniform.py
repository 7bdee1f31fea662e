"""Uniform: the same choice everywhere, the baseline that every allocation has to beat."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.problem import ChoiceProblem, IntArray
from qubo_compress.solvers.solver import RawSolution, SearchLimits, solvers


@solvers.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Apply one choice, by its name, in every group that offers it; the feasible name of least energy wins.

    A group that lacks the choice takes its choice of least linear energy (its original, where the others may
    not be touched); where that does not fit the budgets, its cheapest. The note says which name won.

    Args:
        choice: the only name to try; None for all of them.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem(
        ...     linear=[0.0, 1.0, 3.0, 0.0, 1.0, 3.0], group_offsets=[0, 3, 6], costs=[[8, 4, 2, 8, 4, 2]],
        ...     limits=[8], choice_names=["keep", "quantize(bits=4)", "quantize(bits=2)"] * 2)
        >>> solution = solve(problem, "uniform")
        >>> solution.energy, solution.notes
        (2.0, ("uniform choice: 'quantize(bits=4)' in 2 of 2 groups",))
    """

    name: ClassVar[str] = "uniform"
    choice: str | None = None

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Try every name once; the work is the number of names tried."""
        start = time.perf_counter()
        best: tuple[float, IntArray, str] | None = None
        names = list(dict.fromkeys(problem.choice_names)) if self.choice is None else [self.choice]
        done, interrupted = 0, False
        try:
            plans = _Plans(problem)
            for name in names:
                late = done > 0 and time.perf_counter() - start >= limits.seconds
                if late or (limits.work is not None and done >= limits.work):
                    break
                done += 1
                for assignment in plans.of(name):
                    if problem.is_feasible(assignment):
                        energy = problem.energy(assignment)
                        if best is None or energy < best[0]:
                            best = (energy, assignment, plans.describe(name))
                        break
        except KeyboardInterrupt:
            interrupted = True
        seconds = time.perf_counter() - start
        return RawSolution(
            assignments=() if best is None else (best[1],),
            claimed_energy=None if best is None else best[0],
            timing={"solve": seconds},
            trace=() if best is None else ((seconds, best[0], None),),
            work=done,
            interrupted=interrupted,
            notes=() if best is None else (best[2],),
        )


class _Plans:
    """Which choice each group takes when a name is applied everywhere."""

    def __init__(self, problem: ChoiceProblem) -> None:
        self.problem = problem
        spans = list(zip(problem.group_offsets[:-1].tolist(), problem.group_offsets[1:].tolist(), strict=True))
        # Budgets of different units are compared as shares of what they allow.
        shares = (problem.costs / np.maximum(1, problem.limits - problem.fixed_costs)[:, None]).sum(axis=0)
        self.lowest = np.array([int(np.argmin(problem.linear[a:b])) for a, b in spans], dtype=np.int64)
        self.cheapest = np.array([int(np.argmin(shares[a:b])) for a, b in spans], dtype=np.int64)
        self.places: dict[str, list[tuple[int, int]]] = {}
        for group, (a, b) in enumerate(spans):
            for v in range(a, b):
                self.places.setdefault(problem.choice_names[v], []).append((group, v - a))

    def of(self, name: str) -> tuple[IntArray, IntArray]:
        """The assignment with the others at their least energy, and the one with the others at their cheapest."""
        plans = self.lowest.copy(), self.cheapest.copy()
        for group, local in self.places.get(name, []):
            for plan in plans:
                plan[group] = local
        return plans

    def describe(self, name: str) -> str:
        return f"uniform choice: {name!r} in {len(self.places.get(name, []))} of {self.problem.num_groups} groups"
