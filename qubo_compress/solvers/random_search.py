"""Random search: the floor under every other solver."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.problem import ChoiceProblem, IntArray
from qubo_compress.solvers import local_search
from qubo_compress.solvers.local_search import LocalSearch
from qubo_compress.solvers.solver import RawSolution, SearchLimits, solvers


@solvers.register("random")
@dataclass(frozen=True)
class RandomSearch:
    """Draw a choice for every group at random, repair to the budgets, keep the best.

    Args:
        pool_size: how many distinct good assignments to give back.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> solve(problem, "random", work_limit=50).work
        50
    """

    name: ClassVar[str] = "random"
    pool_size: int = 16

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Draw until the time or the work (draws) is used up."""
        compiling = local_search.warm_up()
        start = time.perf_counter()
        found: dict[bytes, tuple[float, IntArray]] = {}
        trace: list[tuple[float, float, float | None]] = []
        best, done, longest, interrupted = np.inf, 0, 0.0, False
        try:
            search = LocalSearch(problem, rng)
            while limits.work is None or done < limits.work:
                begin = time.perf_counter()
                if done and begin - start + longest >= limits.seconds:
                    break
                search.place(rng.integers(problem.group_sizes))
                done += 1
                if search.repair():
                    assignment = search.assignment
                    energy = problem.energy(assignment)
                    found[assignment.tobytes()] = (energy, assignment)
                    if energy < best:
                        best = energy
                        trace.append((time.perf_counter() - start, best, None))
                if len(found) > 8 * self.pool_size:
                    found = dict(sorted(found.items(), key=lambda item: item[1][0])[: self.pool_size])
                longest = max(0.9 * longest, time.perf_counter() - begin)
        except KeyboardInterrupt:
            interrupted = True
        ranked = sorted(found.values(), key=lambda pair: pair[0])[: self.pool_size]
        return RawSolution(
            assignments=tuple(assignment for _, assignment in ranked),
            claimed_energy=ranked[0][0] if ranked else None,
            timing={"compile": compiling, "solve": time.perf_counter() - start},
            trace=tuple(trace),
            work=done,
            interrupted=interrupted,
        )
