"""Repair and descent from any assignment, shared by the solvers that do not anneal."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from qubo_compress._internal import compiling
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.energy_scale import energy_scale
from qubo_compress.problem.generators import tiny_problem
from qubo_compress.solvers.annealer import kernels
from qubo_compress.solvers.annealer import polish as polishing
from qubo_compress.solvers.annealer.jobs import make_state
from qubo_compress.solvers.annealer.tables import make_tables

_TIE = 1e-13
"""Difference that counts as rounding, as a share of a group's priced energies."""


class LocalSearch:
    """One assignment, with the tables and sums that make the next change cheap.

    Args:
        problem: the problem.
        rng: decides the order in which a repair visits the groups.

    Example:
        >>> problem = ChoiceProblem.random(kind="low-rank", groups=6, choices=4, seed=0)
        >>> search = LocalSearch(problem, np.random.default_rng(0))
        >>> search.place(np.zeros(6, dtype=np.int64))
        >>> search.repair(), problem.is_feasible(search.assignment)
        (True, True)
    """

    def __init__(self, problem: ChoiceProblem, rng: np.random.Generator) -> None:
        self.problem = problem
        self.tables = make_tables(problem)
        self.state = make_state(self.tables, rng, np.zeros(self.tables.room.size))
        self._prices = _starting_prices(problem)
        # Smaller gains may be rounding: the tables hold pair energies in single precision.
        self._tolerance = 1e-12 * energy_scale(problem).typical

    @property
    def assignment(self) -> IntArray:
        """(G,) the present local choices."""
        return self.state.chosen - self.problem.group_offsets[:-1]

    @property
    def energy(self) -> float:
        """The present energy, up to the rounding of float32 pair energies."""
        return self.problem.constant + float(self.state.energies[0])

    @property
    def feasible(self) -> bool:
        """Whether the present choices meet every budget."""
        return bool((self.state.totals <= self.tables.room).all())

    def place(self, assignment: npt.ArrayLike) -> None:
        """Go to an assignment."""
        self.state.chosen[:] = self.problem.selected(assignment)
        kernels.start_state(self.tables, self.state)

    def repair(self) -> bool:
        """Bring every total within its budget at a low cost in energy; False if that failed."""
        self.state.prices[:] = self._prices
        return bool(polishing.repair(self.tables, self.state, 100)) or self._cheapest()

    def descend(self, deadline: float, pairs: bool = True) -> None:
        """Make best single changes, then best double changes if ``pairs``, until none helps or time is up."""
        tolerance = self._tolerance
        groups = self.problem.num_groups
        for _ in range(1000):  # rounding could cycle
            while polishing.descend(self.tables, self.state, tolerance) and time.perf_counter() < deadline:
                pass
            improved = 0
            for first in range(groups if pairs else 0):
                improved += polishing.improve_pairs(self.tables, self.state, first, first + 1, groups, tolerance)
                if time.perf_counter() >= deadline:
                    return
            if not improved:
                return

    def _cheapest(self) -> bool:
        """The last resort: minimise the total overspending, relative to the limits, group by group."""
        for totals in ("most", "least"):
            problem = self.problem.without_pair_costs(totals)
            shares = (problem.costs / np.maximum(1, problem.limits - problem.fixed_costs)[:, None]).sum(axis=0)
            self.place([int(np.argmin(shares[a:b])) for a, b in _spans(problem)])
            if self.feasible:
                return True
            if self.problem.pair_costs is None:
                break
            # Neither bound on the totals is exact: from here, changes may still help.
            self.state.prices[:] = self._prices
            if polishing.repair(self.tables, self.state, 100):
                return True
        return self.feasible


def _spans(problem: ChoiceProblem) -> list[tuple[int, int]]:
    return list(zip(problem.group_offsets[:-1].tolist(), problem.group_offsets[1:].tolist(), strict=True))


def _starting_prices(problem: ChoiceProblem) -> FloatArray:
    """Low prices per unit of each budget: repairing raises them until everything fits."""
    starts = problem.group_offsets[:-1]
    spreads = np.maximum.reduceat(problem.linear, starts) - np.minimum.reduceat(problem.linear, starts)
    spread = float(spreads.mean())
    highest = problem.costs.max(axis=1, initial=1).astype(np.float64)
    spread = spread or energy_scale(problem).typical / problem.num_groups or 1.0
    return np.asarray(1e-3 * spread / np.maximum(1.0, highest), dtype=np.float64)


@compiling.once
def warm_up(structure: str) -> None:
    """Compile (or load from the disk cache) the kernels used here, which are the same for every structure."""
    search = LocalSearch(tiny_problem(structure), np.random.default_rng(0))
    search.place(np.zeros(3, dtype=np.int64))
    search.repair()
    search.descend(np.inf)


def lagrangian_vertex(problem: ChoiceProblem, price: FloatArray, most_expensive: bool = False) -> IntArray:
    """(G,) local choices of least linear energy plus priced cost.

    At the best prices, some groups have choices that differ by rounding only: the cheapest are taken, which fit, or
    the most expensive, from which a repair may find a better answer.
    """
    charged = problem.linear + price @ problem.costs
    starts, sizes = problem.group_offsets[:-1], problem.group_sizes
    least, largest = np.minimum.reduceat(charged, starts), np.maximum.reduceat(np.abs(charged), starts)
    far = charged > np.repeat(least + _TIE * largest, sizes)
    totals = problem.costs.sum(axis=0)
    order = np.lexsort((charged, -totals if most_expensive else totals, far, np.repeat(np.arange(sizes.size), sizes)))
    return np.asarray(order[starts] - starts, dtype=np.int64)
