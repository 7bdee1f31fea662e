"""CP-SAT of Google's OR-Tools: constraint programming with lazy clauses and linear relaxations."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar

import numpy as np

from benchmarks.solvers.peers.linearised import NO_LIMIT, Linearised, assignment_of, linearised
from qubo_compress._internal.optional import require
from qubo_compress.solvers import Search, Solver

MOST_COST = 2**45
"""Largest possible total cost; finer costs are divided by a power of two, rounded down."""


@dataclass(frozen=True)
class CpSat(Solver):
    """CP-SAT with one worker on the linearised problem; every solution it finds is kept with its time.

    Its own default, a linear relaxation of the first level, is raised to the second where groups have two choices: of
    five settings tried on a knapsack of 30 items and on ``nug8``, these were the best for each.

    Costs are whole; ``details["resolution"]`` is the energy of one. The bound is CP-SAT's, which is whole, too.
    """

    name: ClassVar[str] = "cp-sat"
    optimises: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("ortools",)

    def run(self, search: Search) -> None:
        """Solve until proven or out of time."""
        require("ortools", "benchmarks")
        from ortools.sat.python import cp_model

        with search.stage("build"):
            programme = linearised(search.problem, search.deadline)
            if programme is None:
                return
            costs, divisor = _divided(programme)
            model, variables = _model(cp_model, programme, costs)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.linearization_level = 2 if search.problem.group_sizes.max() <= 2 else 1
        solver.parameters.random_seed = int(search.rng.integers(2**31))
        solver.parameters.max_time_in_seconds = max(0.01, search.seconds_left)
        sizes, choices = programme.network.sizes, variables[: search.problem.num_choices]

        class Kept(cp_model.CpSolverSolutionCallback):
            def on_solution_callback(self) -> None:
                found = assignment_of(np.array([self.value(v) for v in choices]), sizes)
                if search.problem.is_feasible(found):
                    search.keep(found)

        status = solver.solve(model, Kept())
        search.work = search.most_work(int(solver.num_branches) + 1)
        search.infeasible = status == cp_model.INFEASIBLE
        search.details["resolution"] = programme.resolution * divisor
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN):
            bound = solver.best_objective_bound
            if abs(bound) < 2**53:
                search.bound = programme.energy(floor(bound) * divisor)


def _divided(programme: Linearised) -> tuple[np.ndarray, int]:
    """The costs over their common divisor, and over a power of two if they are still too large; rounded down."""
    costs = programme.costs
    divisor = max(1, int(np.gcd.reduce(costs)))
    most = float(costs.sum()) / divisor
    while most > MOST_COST:
        divisor, most = 2 * divisor, most / 2
    return costs // divisor, divisor


def _model(cp_model: Any, programme: Linearised, costs: np.ndarray) -> tuple[Any, list[Any]]:
    model = cp_model.CpModel()
    variables = [model.new_bool_var("") for _ in range(costs.size)]
    matrix = programme.matrix
    for row in range(matrix.shape[0]):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        members = [variables[column] for column in matrix.indices[part].tolist()]
        low, high = int(programme.low[row]), int(programme.high[row])
        if row < programme.groups:
            model.add_exactly_one(members)
            continue
        if row in programme.clauses:
            chosen, others = programme.clauses[row]
            model.add_bool_or([~variables[chosen], *(variables[v] for v in others.tolist())])
            continue
        total = cp_model.LinearExpr.weighted_sum(members, matrix.data[part].tolist())
        model.add_linear_constraint(total, max(low, -NO_LIMIT), min(high, NO_LIMIT))
    used = np.flatnonzero(costs)
    model.minimize(cp_model.LinearExpr.weighted_sum([variables[v] for v in used.tolist()], costs[used].tolist()))
    return model, variables
