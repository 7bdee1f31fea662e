"""The Pareto front of a table: the best plan at every size, solved in one process or in several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from joblib import Parallel, delayed

from qubo_compress.budget import Budget
from qubo_compress.errors import InfeasibleBudget, InvalidBudget, NoFeasibleFound
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.sensitivity.infeasible import explained
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.solver import Solver, make_solver
from qubo_compress.solvers.verification import solve


@dataclass(frozen=True)
class FrontPoint:
    """One budget of a Pareto front.

    Attributes:
        ratio: asked for.
        plan: found.
        energy: predicted loss change.
        bound: lower bound on it, or None.
        solution: the solver's whole answer.
    """

    ratio: float
    plan: Plan
    energy: float
    bound: float | None
    solution: Solution


@dataclass(frozen=True)
class SolveSettings:
    """How each problem of a front is solved; small enough to travel to other processes.

    Attributes:
        solver: a registered name or an object.
        time_limit: wall-clock seconds for each problem.
        work_limit: see :func:`qubo_compress.solve`.
        seed: of each solve's generator.
    """

    solver: str | Solver = "auto"
    time_limit: float = 5.0
    work_limit: int | None = None
    seed: int = 0


def pareto(
    table: SensitivityTable,
    ratios: Sequence[float] = (4, 8, 12, 16),
    solver: str | Solver = "auto",
    time_limit: float = 5.0,
    seed: int = 0,
    interactions: bool = True,
    within: Budget | None = None,
    work_limit: int | None = None,
) -> tuple[FrontPoint, ...]:
    """Best plans over a range of sizes: solves again for each, measures nothing.

    The solves go through :class:`joblib.Parallel`: one after the other in this process, unless the caller says
    otherwise by ``with joblib.parallel_config(backend="loky", n_jobs=2):``, or ``"dask"`` or ``"ray"`` with the
    backend that these packages register. Only problems, the solver and its limits travel, never the network; with
    ``work_limit`` the answers are the same wherever they are found.

    Args:
        table: measured once.
        ratios: original bytes over stored bytes.
        solver: a registered name or an object; see :func:`qubo_compress.solve`.
        time_limit: wall-clock seconds for each ratio.
        seed: of the solver's generator.
        interactions: False: linear terms only.
        within: a budget whose other limits, such as ``macs``, hold at every size; its own size does not count.
        work_limit: most sweeps, iterations or nodes for each ratio.

    Raises:
        InfeasibleBudget: when a ratio is out of reach.
        NoFeasibleFound: when no plan of that size was found in time.
    """
    points = []
    settings = SolveSettings(solver, time_limit, work_limit, seed)
    if not isinstance(ratios, Iterable):
        raise InvalidBudget(f"ratios are a list, such as (4, 8, 12); got {ratios!r}")
    for point in try_ratios(table, ratios, settings, interactions=interactions, within=within):
        if not isinstance(point, FrontPoint):
            raise point
        points.append(point)
    return tuple(points)


def try_ratios(
    table: SensitivityTable,
    ratios: Sequence[float],
    settings: SolveSettings,
    *,
    interactions: bool = True,
    within: Budget | None = None,
) -> list[FrontPoint | InfeasibleBudget | NoFeasibleFound]:
    """Like :func:`pareto`, with the error in place of each point that could not be found."""
    budgets = [Budget(ratio=ratio) if within is None else within.resized(ratio) for ratio in ratios]
    problems = [table.problem(budget, interactions) for budget in budgets]
    found: list[FrontPoint | InfeasibleBudget | NoFeasibleFound] = []
    for ratio, answer in zip(ratios, solve_all(problems, settings), strict=True):
        if isinstance(answer, Solution):
            found.append(FrontPoint(float(ratio), table.plan(answer), answer.energy, answer.bound, answer))
        else:
            found.append(_explained(table, answer))
    return found


def _explained(
    table: SensitivityTable, error: InfeasibleBudget | NoFeasibleFound
) -> InfeasibleBudget | NoFeasibleFound:
    """The error, with what the table knows of tensors that are kept whatever is chosen."""
    try:
        with explained(table.layout, table.costs, table.fixed_costs, table.offsets, table.kept_because):
            raise error
    except (InfeasibleBudget, NoFeasibleFound) as found:
        return found.with_traceback(None)


def solve_all(
    problems: Sequence[ChoiceProblem], settings: SolveSettings
) -> list[Solution | InfeasibleBudget | NoFeasibleFound]:
    """Solve problems that do not depend on each other, by the caller's :func:`joblib.parallel_config`.

    A problem without an answer gives its error; all other errors are raised.

    Example:
        >>> problems = [ChoiceProblem.random(kind="separable", groups=4, choices=3, seed=s) for s in range(2)]
        >>> [found.status for found in solve_all(problems, SolveSettings("exact"))]
        ['optimal', 'optimal']
    """
    # A solver registered by the caller is not known by name in another process.
    settings = replace(settings, solver=make_solver(settings.solver))
    return list(Parallel()(delayed(_solved)(problem, settings) for problem in problems))


def _solved(problem: ChoiceProblem, settings: SolveSettings) -> Solution | InfeasibleBudget | NoFeasibleFound:
    try:
        return solve(
            problem, settings.solver, time_limit=settings.time_limit, work_limit=settings.work_limit,
            seed=settings.seed,
        )  # fmt: skip
    except (InfeasibleBudget, NoFeasibleFound) as reason:
        # An exception's traceback does not travel, and one ratio out of reach must not end the others.
        return reason.with_traceback(None)
