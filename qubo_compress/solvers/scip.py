"""SCIP as a cross-check of ``exact``: an independent solver on an independent formulation."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import ProblemTooLarge
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.energy_scale import standardise
from qubo_compress.solvers.exact.integer_programming import CoupledTable, coupled_tables
from qubo_compress.solvers.solver import Search, Solver, solvers

_MOST_ENTRIES = 2_000_000
"""Most nonzero coefficients, which are passed one by one."""

_OBJECTIVE_SCALE = 1e3
"""Typical difference between choices in the model: SCIP's tolerances are absolute."""

_FEASIBILITY = 1e-9
"""SCIP's tolerance of constraints, including the squared norm of a factor; its default is 1e-6."""

_TOLERANCE = 2e-9
"""What a reduced cost may lack, and comparisons of objectives allow, in the model's units; counted once for every group
and every coupled pair of groups."""


@solvers.register
@dataclass(frozen=True)
class Scip(Solver):
    """Branch and cut by SCIP; needs ``pip install 'qubo_compress[scip]'``.

    The factor becomes auxiliary variables s = sum of the chosen rows, and 1/2 |s|^2 a convex quadratic constraint; pair
    energies and pair costs are linearised. The bound is SCIP's dual bound less its tolerances. This is a cross-check:
    ``exact`` is the solver to use.

    The same seed and ``work_limit`` give the same answer as long as the time limit is not reached. A search that the
    clock ended does not repeat from its recorded nodes, and its ``details["repeats"]`` is False: SCIP's heuristics
    start sub-searches that the clock ends in the middle of a node.

    Raises:
        MissingDependency: when pyscipopt is not installed.
        ProblemTooLarge: when building the model would take more than two million coefficients.

    Example:
        >>> Scip().name
        'scip'
    """

    name: ClassVar[str] = "scip"
    accepts_pair_costs: ClassVar[bool] = True
    optimises: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("pyscipopt",)

    def run(self, search: Search) -> None:
        """Solve until proven, out of time or nodes, or interrupted."""
        scip = require("pyscipopt", "scip")
        problem = search.problem
        _check_size(problem)
        standard = standardise(problem)
        with search.stage("build"):
            built = _model(scip, standard.problem, search.start + 0.8 * search.limits.seconds)
        if built is None:
            search.notes.append("the time was used up while the model was built")
            return
        model, x = built
        model.setParam("limits/time", max(0.01, search.seconds_left))
        if search.limits.work is not None:
            model.setParam("limits/totalnodes", search.limits.work)
        search.interrupted = _optimize(model)
        bound = float(model.getDualbound())
        if abs(bound) < 1e19:
            search.bound = standard.energy((bound - _TOLERANCE * _counted(problem)) / _OBJECTIVE_SCALE)
        search.work = search.most_work(_finished_nodes(model))
        search.infeasible = model.getStatus() == "infeasible"
        search.details["repeats"] = not _was_cut(model)
        for assignment in _assignments(problem, model, x):
            search.add(assignment)


def _counted(problem: ChoiceProblem) -> int:
    return problem.num_groups + sum(1 for _ in coupled_tables(problem))


def _finished_nodes(model: Any) -> int:
    """Number of completed nodes: a node that the clock ended cannot be repeated by counting."""
    return max(0, int(model.getNTotalNodes()) - int(_was_cut(model)))


def _was_cut(model: Any) -> bool:
    """Whether the clock or Ctrl-C ended the search."""
    return model.getStatus() in ("timelimit", "userinterrupt")


def _check_size(problem: ChoiceProblem) -> None:
    entries = 0 if problem.factor is None else problem.factor.size
    entries += sum(3 * int(m.nnz) // 2 for m in (problem.pairs, *(problem.pair_costs or ())) if m is not None)
    if entries > _MOST_ENTRIES:
        raise ProblemTooLarge(
            f"scip takes at most {_MOST_ENTRIES:,} coefficients and this problem has {entries:,}; "
            "use exact for a bound or annealer for an answer"
        )


def _model(scip: Any, problem: ChoiceProblem, deadline: float) -> tuple[Any, list[Any]] | None:
    """The model and its choice variables; None when the deadline passed before it was complete."""
    model = scip.Model()
    model.hideOutput()
    for tolerance in ("feastol", "dualfeastol"):
        model.setParam(f"numerics/{tolerance}", _FEASIBILITY)
    x = [model.addVar(vtype="B") for _ in range(problem.num_choices)]
    for start, stop in zip(problem.group_offsets[:-1].tolist(), problem.group_offsets[1:].tolist(), strict=True):
        model.addCons(scip.quicksum(x[start:stop]) == 1)
    if problem.pair_costs is None:
        _limit(scip, model, problem, x, [[] for _ in range(problem.num_budgets)])
    terms = [_OBJECTIVE_SCALE * float(value) * v for value, v in zip(problem.diagonal, x, strict=True)]
    if problem.factor is not None:
        norm = _squared_norm(scip, model, problem.factor.astype(np.float64), x, deadline)
        if norm is None:
            return None
        terms.append(_OBJECTIVE_SCALE * norm)
    products: list[list[Any]] = [[] for _ in range(problem.num_budgets)]
    for block in coupled_tables(problem):
        if time.perf_counter() >= deadline:
            return None
        table = _table(scip, model, block, x)
        terms += _weighted(table, _OBJECTIVE_SCALE * block.values)
        for b, costs in enumerate(block.costs):
            products[b] += [] if costs is None else _weighted(table, costs)
    if problem.pair_costs is not None:
        _limit(scip, model, problem, x, products)
    model.setObjective(scip.quicksum(terms), "minimize")
    return model, x


def _limit(scip: Any, model: Any, problem: ChoiceProblem, x: list[Any], products: list[list[Any]]) -> None:
    """Add the budgets.

    Args:
        scip: the package.
        model: the model.
        problem: the problem.
        x: the variables of its choices.
        products: the terms of each budget's pair costs.
    """
    room = problem.limits - problem.fixed_costs
    for costs, more, left in zip(problem.costs.tolist(), products, room.tolist(), strict=True):
        scale = 1.0 / max(1.0, float(max(costs)))  # SCIP's tolerances are for numbers of moderate size
        terms = [scale * cost * v for cost, v in zip(costs, x, strict=True) if cost]
        model.addCons(scip.quicksum([*terms, *(scale * term for term in more)]) <= scale * left)


def _squared_norm(scip: Any, model: Any, factor: np.ndarray[Any, Any], x: list[Any], deadline: float) -> Any:
    """A variable that is at least half the squared norm of the sum of the chosen rows; None if out of time."""
    squares = []
    for column in factor.T:
        if time.perf_counter() >= deadline:
            return None
        if column.any():
            part = model.addVar(lb=None)
            used = np.flatnonzero(column)
            model.addCons(scip.quicksum(float(column[v]) * x[v] for v in used.tolist()) == part)
            squares.append(part * part)
    half = model.addVar(lb=0.0)
    if squares:
        model.addCons(scip.quicksum(0.5 * square for square in squares) <= half)
    return half


def _table(scip: Any, model: Any, block: CoupledTable, x: list[Any]) -> list[list[Any]]:
    """A table of variables whose marginals are the choices of two groups: each is the product of two choices."""
    rows, columns = block.values.shape
    table = [[model.addVar(lb=0.0, ub=1.0) for _ in range(columns)] for _ in range(rows)]
    for i in range(rows):
        model.addCons(scip.quicksum(table[i]) == x[block.first + i])
    for j in range(columns):
        model.addCons(scip.quicksum(table[i][j] for i in range(rows)) == x[block.second + j])
    return table


def _weighted(table: list[list[Any]], values: np.ndarray[Any, Any]) -> list[Any]:
    """The terms of a table, weighted by values."""
    return [float(values[i, j]) * table[i][j] for i, j in zip(*np.nonzero(values), strict=True)]


def _optimize(model: Any) -> bool:
    """Optimise in a thread, so that Ctrl-C reaches us and stops SCIP; returns whether that happened."""
    if threading.current_thread() is not threading.main_thread():
        model.optimize()
        return False
    # SCIP would catch the signal itself and end silently.
    model.setParam("misc/catchctrlc", False)
    worker = threading.Thread(target=model.optimizeNogil, daemon=True)
    worker.start()
    interrupted = False
    while worker.is_alive():
        try:
            worker.join(0.05)
        except KeyboardInterrupt:
            interrupted = True
            model.interruptSolve()
    return interrupted


def _assignments(problem: ChoiceProblem, model: Any, x: list[Any]) -> tuple[IntArray, ...]:
    found = []
    spans = list(zip(problem.group_offsets[:-1].tolist(), problem.group_offsets[1:].tolist(), strict=True))
    for solution in model.getSols()[:64]:
        values = np.array([model.getSolVal(solution, v) for v in x])
        found.append(np.array([int(np.argmax(values[a:b])) for a, b in spans], dtype=np.int64))
    feasible = [assignment for assignment in found if problem.is_feasible(assignment)]
    return tuple(sorted(feasible, key=problem.energy))
