"""The Pareto front of a table: the best plan at every size, solved in one or several processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from joblib import Parallel, delayed

from qubo_compress.budget import Budget
from qubo_compress.errors import InfeasibleBudget, InvalidBudget, NoFeasibleFound
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.solver import Solver, make_solver
from qubo_compress.solvers.verification import solve


@dataclass(frozen=True)
class FrontPoint:
    """One budget of a Pareto front.

    Attributes:
        ratio: the requested compression ratio.
        plan: the best plan found.
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
    """How each problem of a front is solved; cheap to send to other processes.

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
    """The best plan at each of several sizes: solves for each, measures nothing.

    The solves use :class:`joblib.Parallel`. By default they run one after another in this process; to change that, use
    ``with joblib.parallel_config(backend="loky", n_jobs=2):``, or ``"dask"`` or ``"ray"`` with the backend that these
    packages register. Only problems, the solver and its limits are sent, never the network; with
    ``work_limit`` the answers do not depend on where they are computed.

    Args:
        table: measured once.
        ratios: original bytes over stored bytes.
        solver: a registered name or an object; see :func:`qubo_compress.solve`.
        time_limit: wall-clock seconds for each ratio.
        seed: of the solver's generator.
        interactions: False: linear terms only.
        within: a budget whose other limits, such as ``macs``, hold at every size; its size is ignored.
        work_limit: most sweeps, iterations or nodes for each ratio.

    Raises:
        InfeasibleBudget: if a ratio is out of reach.
        NoFeasibleFound: if no plan of that size was found in time.
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
    """Like :func:`pareto`, with the error instead of each point that was not found."""
    budgets = [Budget(ratio=ratio) if within is None else within.resized(ratio) for ratio in ratios]
    problems = [table.problem(budget, interactions) for budget in budgets]
    found: list[FrontPoint | InfeasibleBudget | NoFeasibleFound] = []
    for ratio, answer in zip(ratios, solve_all(problems, settings), strict=True):
        if isinstance(answer, Solution):
            found.append(FrontPoint(float(ratio), table.plan(answer), answer.energy, answer.bound, answer))
        else:
            found.append(answer)
    return found


def solve_all(
    problems: Sequence[ChoiceProblem], settings: SolveSettings
) -> list[Solution | InfeasibleBudget | NoFeasibleFound]:
    """Solve independent problems under the caller's :func:`joblib.parallel_config`.

    A problem without an answer yields its error; all other errors are raised.

    Example:
        >>> problems = [ChoiceProblem.random(kind="separable", groups=4, choices=3, seed=s) for s in range(2)]
        >>> [found.status for found in solve_all(problems, SolveSettings("exact"))]
        ['optimal', 'optimal']
    """
    # Other processes do not know the names of solvers registered by the caller.
    settings = replace(settings, solver=make_solver(settings.solver))
    return list(Parallel()(delayed(_solved)(problem, settings) for problem in problems))


def _solved(problem: ChoiceProblem, settings: SolveSettings) -> Solution | InfeasibleBudget | NoFeasibleFound:
    try:
        return solve(
            problem, settings.solver, time_limit=settings.time_limit, work_limit=settings.work_limit,
            seed=settings.seed,
        )  # fmt: skip
    except (InfeasibleBudget, NoFeasibleFound) as reason:
        # A traceback cannot be sent to another process, and one infeasible ratio must not end the others.
        return reason.with_traceback(None)
