"""The one interface of all solvers, and the function that calls them and trusts none of them."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from qubo_compress._internal.checks import whole
from qubo_compress.errors import InfeasibleBudget, InvalidSolverOption, NoFeasibleFound
from qubo_compress.problem import ChoiceProblem, IntArray
from qubo_compress.registry import Registry
from qubo_compress.solvers.solution import Solution


@dataclass(frozen=True)
class SearchLimits:
    """When a solver must stop, whichever comes first.

    Attributes:
        seconds: wall clock for all that the solver does, building and embedding included.
        work: sweeps, iterations or nodes, in the solver's own unit; None for no limit.
    """

    seconds: float
    work: int | None = None


@dataclass(frozen=True, eq=False)
class RawSolution:
    """What a solver claims; :func:`solve` checks it.

    Attributes:
        assignments: candidate assignments, best first; the first feasible one becomes the answer.
        claimed_energy: the solver's own figure for the first one, or None.
        bound: a valid lower bound on the energy of every feasible assignment, or None.
        timing: seconds by stage, beside the total that :func:`solve` measures.
        trace: (seconds since the start, best energy, bound or None).
        work: units of work done.
        interrupted: whether Ctrl-C ended the search.
        infeasible: the solver proved that no assignment is feasible.
        notes: remarks in plain words.
        details: named figures of the solver's own, such as evaluations, samples or chain breaks.
    """

    assignments: tuple[IntArray, ...]
    claimed_energy: float | None = None
    bound: float | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    trace: tuple[tuple[float, float, float | None], ...] = ()
    work: int = 0
    interrupted: bool = False
    infeasible: bool = False
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Solver(Protocol):
    """A way to solve choice problems: a frozen dataclass whose fields are its options.

    ``search`` must respect ``limits``, draw all randomness from ``rng``, return the best so far on
    ``KeyboardInterrupt``, and never claim a bound that it cannot prove.

    Class attributes that a solver may have besides: ``optimises`` (finds obvious optima; see
    ``testing.check_solver``), ``requires`` (import names of optional packages), ``repeats`` (False when
    the same seed and work need not give the same answer, as with anything in a cloud) and ``remote``
    (True when it needs a connection).
    """

    name: ClassVar[str]

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Look for a feasible assignment of low energy."""
        ...


solvers: Registry[type[Solver]] = Registry("solver")


def make_solver(solver: str | Solver, **options: Any) -> Solver:
    """A solver object from its registered name and options; an object is passed through.

    Raises:
        UnknownName: when the name is not registered.
        InvalidSolverOption: when the solver has no such option, or options come with an object.
    """
    if not isinstance(solver, str):
        if options:
            raise InvalidSolverOption("give options either to the solver object or by name, not both")
        return solver
    kind = solvers.get(solver)
    allowed = list(inspect.signature(kind).parameters)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise InvalidSolverOption(
            f"solver {solver!r} has no option {unknown[0]!r}; it has: {', '.join(allowed) or 'none'}"
        )
    return kind(**options)


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

    Energy and every budget are recomputed from the assignment; no solver is trusted.

    Args:
        problem: what to solve.
        solver: a registered name (see ``qubo_compress.solvers.names()``) or a :class:`Solver`.
        time_limit: wall-clock seconds for everything the solver does.
        work_limit: most sweeps, iterations or nodes; the same seed and work give the same answer.
        seed: of the one random generator the solver draws from.
        options: of the solver named.

    Raises:
        InfeasibleBudget: proven that nothing fits; names the smallest reachable totals.
        NoFeasibleFound: nothing that fits was found, and it is not proven that nothing does.
        InvalidSolverOption: for a limit or an option out of range.

    Example:
        >>> from qubo_compress import ChoiceProblem
        >>> problem = ChoiceProblem.random(kind="separable", groups=5, choices=4, seed=1)
        >>> solve(problem, "exact").status
        'optimal'
    """
    check_time_limit(time_limit)
    if work_limit is not None and work_limit < 1:
        raise InvalidSolverOption(f"work_limit must be at least 1 or None; got {work_limit}")
    chosen = make_solver(solver, **options)
    refuse_unreachable(problem)
    start = time.perf_counter()
    raw = chosen.search(problem, SearchLimits(time_limit, work_limit), np.random.default_rng(whole("seed", seed)))
    return verify(problem, chosen.name, raw, time.perf_counter() - start)


def check_time_limit(time_limit: float) -> None:
    """Raise :class:`InvalidSolverOption` for anything but a positive number of seconds."""
    if not (isinstance(time_limit, Real) and math.isfinite(time_limit) and time_limit > 0):
        raise InvalidSolverOption(f"time_limit must be a positive number of seconds; got {time_limit!r}")


def refuse_unreachable(problem: ChoiceProblem) -> None:
    """Raise :class:`InfeasibleBudget` when one budget alone is already out of reach."""
    smallest = problem.smallest_totals()
    for name, least, limit in zip(problem.budget_names, smallest, problem.limits, strict=True):
        if least > limit:
            raise InfeasibleBudget(
                f"the budget allows {limit} {name}, but the smallest reachable is {least}; "
                f"raise the budget to at least {least} or offer smaller choices",
                smallest=int(least),
            )


def verify(problem: ChoiceProblem, name: str, raw: RawSolution, seconds: float) -> Solution:
    """Turn a solver's claim into a :class:`Solution`, recomputing energy and budgets."""
    if raw.infeasible:
        raise InfeasibleBudget(
            f"{name} proved that no assignment meets all budgets at once "
            f"({', '.join(problem.budget_names)}); raise one of them"
        )
    notes = list(raw.notes)
    energies: dict[bytes, tuple[float, IntArray]] = {}
    for assignment in raw.assignments:
        array = np.array(assignment, dtype=np.int64)
        if problem.is_feasible(array):
            array.setflags(write=False)
            energies.setdefault(array.tobytes(), (problem.energy(array), array))
    dropped = len(raw.assignments) - sum(problem.is_feasible(a) for a in raw.assignments)
    if dropped:
        notes.append(f"{name} returned {dropped} of {len(raw.assignments)} assignments over budget; they were dropped")
    if not energies:
        raise NoFeasibleFound(
            f"{name} found no assignment within the budget in {seconds:.2f} s; "
            "give it more time, a larger budget or another solver"
        )
    ranked = sorted(energies.values(), key=lambda pair: pair[0])
    best_energy, best = ranked[0]
    scale = max(1e-6, abs(best_energy))
    if raw.claimed_energy is not None and abs(raw.claimed_energy - best_energy) > 1e-6 * scale:
        notes.append(
            f"{name} claimed energy {raw.claimed_energy:.9g}; recomputed from its assignment: {best_energy:.9g}"
        )
    bound = raw.bound
    if bound is not None and bound > best_energy:
        if bound > best_energy + 1e-6 * scale:
            notes.append(
                f"{name} claimed the bound {bound:.9g} above a feasible energy {best_energy:.9g}; it was dropped"
            )
            bound = None
        else:
            bound = best_energy
    pool = tuple(Solution(a, energy, bound, name, problem.names_of(a)) for energy, a in ranked)
    return Solution(
        assignment=best,
        energy=best_energy,
        bound=bound,
        solver=name,
        choices=pool[0].choices,
        pool=pool,
        timing={**raw.timing, "total": seconds},
        trace=raw.trace,
        work=raw.work,
        interrupted=raw.interrupted,
        notes=tuple(notes),
        details=raw.details,
    )
