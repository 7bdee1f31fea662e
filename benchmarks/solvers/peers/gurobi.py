"""Gurobi with the size-limited licence that comes with ``pip install gurobipy``."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from benchmarks.solvers.peers.linearised import assignment_of
from qubo_compress._internal.optional import require
from qubo_compress.errors import ProblemTooLarge, UnsupportedProblem
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.problem.energy_scale import energy_scale, standardise
from qubo_compress.solvers import Search, Solver

MOST_QUADRATIC = 200
"""Most variables that the licence allows with quadratic terms."""

MOST = 2000
"""Most variables, and most linear constraints, that it allows at all."""

_SCALE = 1e3
_TOLERANCE = 1e-6
_GAP = 2e-7


@dataclass(frozen=True)
class Gurobi(Solver):
    """Gurobi with one thread: the energies as they are, a quadratic objective over zeros and ones (MIQP).

    Budgets are divided by their largest cost, and an answer that is over budget by a tolerance is dropped.

    Raises:
        MissingDependency: without gurobipy, which is not free software.
        ProblemTooLarge: if the licence does not allow the model; 200 variables with products, 2,000 without.
        UnsupportedProblem: if pair energies are a factor.
    """

    name: ClassVar[str] = "gurobi"
    optimises: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("gurobipy",)

    def refuse(self, problem: ChoiceProblem) -> None:
        """Raise for problems that the licence does not allow, and for factors."""
        super().refuse(problem)
        if problem.structure == "factor":
            raise UnsupportedProblem("gurobi is given pairs or separable problems only; this one has a factor")
        most = MOST if problem.structure == "separable" else MOST_QUADRATIC
        if problem.num_choices > most or problem.num_groups + problem.num_budgets > MOST:
            raise ProblemTooLarge(
                f"Gurobi's size-limited licence allows {most} choices here, and this problem has {problem.num_choices}"
            )

    def run(self, search: Search) -> None:
        """Solve until proven or out of time."""
        gurobi = require("gurobipy", "benchmarks")
        standard = standardise(search.problem)
        environment = gurobi.Env(empty=True)
        environment.setParam("OutputFlag", 0)
        environment.start()
        try:
            with search.stage("build"):
                model, x = _model(gurobi, environment, standard.problem)
            model.Params.Threads, model.Params.MIPGap, model.Params.MIPGapAbs = 1, _GAP, 1e-6
            model.Params.Seed = int(search.rng.integers(2**31))
            model.Params.TimeLimit = max(0.01, search.seconds_left)

            def keep(values: Any) -> None:
                found = assignment_of(np.asarray(values), search.problem.group_sizes)
                if search.problem.is_feasible(found):
                    search.keep(found)

            def called(model: Any, where: int) -> None:
                if where == gurobi.GRB.Callback.MIPSOL:
                    keep(model.cbGetSolution(x.tolist()))

            model.optimize(called)
            if model.SolCount:
                keep(x.X)
            search.work = search.most_work(int(model.NodeCount) + 1)
            search.infeasible = model.Status == gurobi.GRB.INFEASIBLE
            bound = float(model.ObjBound) if not search.infeasible else np.inf
            if np.isfinite(bound) and abs(bound) < 1e90:
                counted = 1 + search.problem.num_groups + search.problem.num_choices
                slack = _TOLERANCE * counted / _SCALE + energy_scale(standard.problem).rounding
                search.bound = standard.energy(bound / _SCALE - slack)
        finally:
            environment.dispose()


def _model(gurobi: Any, environment: Any, problem: ChoiceProblem) -> tuple[Any, Any]:
    model = gurobi.Model(env=environment)
    x = model.addMVar(problem.num_choices, vtype="B")
    groups = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    one = sparse.csr_array((np.ones(groups.size), (groups, np.arange(groups.size))))
    model.addConstr(one @ x == 1.0)
    for costs, left in zip(problem.costs, problem.limits - problem.fixed_costs, strict=True):
        scale = float(max(1, costs.max()))
        model.addConstr((costs / scale) @ x <= floor(left) / scale)
    objective = (_SCALE * problem.diagonal) @ x
    if problem.structure == "pairs":
        objective = objective + x @ sparse.csr_array(0.5 * _SCALE * problem.pairs) @ x
    model.setObjective(objective)
    return model, x
