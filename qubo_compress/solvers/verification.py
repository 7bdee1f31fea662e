"""Runs a solver and verifies its answer."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from qubo_compress._internal.checks import plain, whole
from qubo_compress.errors import InfeasibleBudget, InvalidSolverOption, NoFeasibleFound
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.energy_scale import EnergyScale, energy_scale
from qubo_compress.problem.whole_energies import raised_bound
from qubo_compress.solvers.exact.infeasibility import proves_infeasible
from qubo_compress.solvers.search import Search, SearchLimits
from qubo_compress.solvers.solution import RawSolution, Solution
from qubo_compress.solvers.solver import Solver, make_solver

NANOSECONDS = "_ns"
"""How names of budgets in nanoseconds end; users give milliseconds."""


def solve(
    problem: ChoiceProblem,
    solver: str | Solver = "auto",
    *,
    time_limit: float = 10.0,
    work_limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Solution:
    """Solve a choice problem and verify the answer.

    Energies and budgets are recomputed from the assignment; no solver is trusted.

    Args:
        problem: what to solve.
        solver: a registered name (see ``qubo_compress.solvers.names()``) or a :class:`Solver`.
        time_limit: wall-clock seconds for everything the solver does.
        work_limit: most sweeps, iterations or nodes; the same seed and work give the same answer.
        seed: of the solver's only random generator.
        options: of the named solver.

    Raises:
        InfeasibleBudget: if it is proven that nothing fits; names the smallest reachable totals.
        UnsupportedProblem: if the solver cannot take the problem, such as budgets with pair costs.
        NoFeasibleFound: if nothing that fits was found, without a proof that nothing does.
        InvalidSolverOption: for a limit or an option out of range.

    Example:
        >>> from qubo_compress import ChoiceProblem
        >>> problem = ChoiceProblem.random(kind="separable", groups=5, choices=4, seed=1)
        >>> solve(problem, "exact").status
        'optimal'
    """
    check_time_limit(time_limit)
    if work_limit is not None:
        work_limit = whole("work_limit", work_limit, 1, InvalidSolverOption)
    chosen = make_solver(solver, **options)
    chosen.refuse(problem)
    refuse_unreachable(problem)
    start = time.perf_counter()
    time_limit = float(time_limit)
    rng = np.random.default_rng(whole("seed", seed))
    search = Search(problem.without_constant(), SearchLimits(time_limit, work_limit), rng)
    search.run(chosen)
    if search.interrupted and search.best is None and not search.infeasible:
        raise KeyboardInterrupt  # nothing was found that it could be exchanged for
    raw = search.result()
    if not raw.infeasible and not any(problem.is_feasible(assignment) for assignment in raw.assignments):
        deadline = max(start + time_limit, time.perf_counter() + _PROOF_SECONDS)
        raw = replace(raw, infeasible=proves_infeasible(problem, deadline, integers=work_limit is None))
    return verify(problem, chosen.name, raw, time.perf_counter() - start)


_PROOF_SECONDS = 0.5
"""Least seconds for a proof that nothing fits, after a search that found nothing."""

_BOUND_ROUNDING = 1e-9
"""Relative distance above a feasible energy up to which a bound differs by rounding only; a higher one is wrong."""


def check_time_limit(time_limit: float) -> None:
    """Raise :class:`InvalidSolverOption` unless the limit is a positive number of seconds."""
    number = isinstance(plain(time_limit), Real) and not isinstance(time_limit, bool)
    if not (number and math.isfinite(time_limit) and time_limit > 0):
        raise InvalidSolverOption(f"time_limit must be a positive number of seconds; got {time_limit!r}")


def refuse_unreachable(problem: ChoiceProblem) -> None:
    """Raise :class:`InfeasibleBudget` when one budget alone is already out of reach."""
    smallest = problem.smallest_totals()
    for name, least, limit in zip(problem.budget_names, smallest, problem.limits, strict=True):
        if least > limit and problem.pair_costs is not None:
            raise InfeasibleBudget(
                f"the budget allows {_amount(limit, name)} {_unit(name)}, and it is proven that no assignment has less "
                f"than {_amount(least, name)}; raise the budget or offer smaller choices"
            )
        if least > limit:
            raise InfeasibleBudget(
                f"the budget allows {_amount(limit, name)} {_unit(name)}, but the smallest reachable is "
                f"{_amount(least, name)}; raise the budget to at least {_amount(least, name)} or offer smaller choices"
                f"{problem.size_note if name == 'bytes' else ''}",
                smallest=int(least),
            )


def _unit(name: str) -> str:
    """How a message calls what a budget counts."""
    return f"ms of {name.removesuffix(NANOSECONDS)}" if name.endswith(NANOSECONDS) else name


def _amount(total: int, name: str) -> str:
    """A total as users give limits.

    Example:
        >>> _amount(1_500_000, "latency_ns"), _amount(1_500_000, "macs")
        ('1.5', '1500000')
    """
    return f"{int(total) / 1_000_000:.9g}" if name.endswith(NANOSECONDS) else f"{total}"


def verify(problem: ChoiceProblem, name: str, raw: RawSolution, seconds: float) -> Solution:
    """Turn a solver's claim into a :class:`Solution`, recomputing energy and budgets.

    Args:
        problem: what was solved.
        name: of the solver.
        raw: the solver's claims, in energies of ``problem.without_constant()``.
        seconds: the solver's running time.

    Raises:
        InfeasibleBudget: when the solver proved that nothing fits.
        NoFeasibleFound: when none of the assignments fits.
    """
    if raw.infeasible:
        raise InfeasibleBudget(
            "it is proven that no assignment meets all budgets at once "
            f"({', '.join(problem.budget_names)}); raise one of them"
        )
    bare, notes = problem.without_constant(), list(raw.notes)
    energies: dict[bytes, tuple[float, IntArray]] = {}
    dropped = 0
    for assignment in raw.assignments:
        array = np.array(assignment, dtype=np.int64)
        if problem.is_feasible(array):
            array.setflags(write=False)
            energies.setdefault(array.tobytes(), (bare.energy(array), array))
        else:
            dropped += 1
    if dropped:
        notes.append(f"{name} returned {dropped} of {len(raw.assignments)} assignments over budget; they were dropped")
    if not energies:
        raise NoFeasibleFound(
            f"{name} found no assignment within the budget in {seconds:.2f} s; "
            "give it more time, a larger budget or another solver"
        )
    ranked = sorted(energies.values(), key=lambda pair: pair[0])
    scale = energy_scale(bare)
    bound = _checked_bound(name, raw, ranked[0][0], scale, notes)
    if bound is not None and problem.structure == "separable":
        bound = max(bound, min(scale.base, ranked[0][0]))  # the sum of the least terms, without solvers' tolerances
    if bound is not None:
        bound = min(raised_bound(bare, bound), ranked[0][0])
    constant = problem.constant
    # Exactly the energies of `problem.energy`; adding the constant to the bound may round it above the least one.
    least = problem.energy(ranked[0][1])
    known = None if bound is None else min(least, constant + bound)
    pool = tuple(
        Solution(
            assignment=array,
            energy=problem.energy(array) if constant else energy,
            bound=known,
            solver=name,
            gap=None if bound is None else scale.gap(energy, bound),
            choices=problem.names_of(array),
        )
        for energy, array in ranked
    )
    return replace(
        pool[0],
        pool=pool,
        timing={**raw.timing, "total": seconds},
        trace=tuple((at, constant + e, None if b is None else constant + b) for at, e, b in raw.trace),
        work=raw.work,
        interrupted=raw.interrupted,
        notes=tuple(notes),
        details=raw.details,
    )


def _checked_bound(name: str, raw: RawSolution, best: float, scale: EnergyScale, notes: list[str]) -> float | None:
    """The bound, at most the best energy; None if it is not valid. Wrong claims get a note."""
    if raw.claimed_energy is not None and abs(raw.claimed_energy - best) > scale.tolerance(best):
        notes.append(f"{name} claimed energy {raw.claimed_energy:.9g}; recomputed from its assignment: {best:.9g}")
    if raw.bound is None or raw.bound <= best:
        return raw.bound
    if raw.bound <= best + scale.tolerance(best, _BOUND_ROUNDING):
        return best
    notes.append(f"{name} claimed the bound {raw.bound:.9g} above a feasible energy {best:.9g}; it was dropped")
    return None
