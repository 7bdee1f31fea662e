"""Auto: look at the structure of the problem, pick the solvers that suit it, and say why."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.energy_scale import OPTIMAL_GAP, energy_scale, standardise
from qubo_compress.solvers.exact.bounds import LARGEST_EIGENPROBLEM
from qubo_compress.solvers.exact.convex_relaxation import LARGEST_GRAM
from qubo_compress.solvers.exact.exact import Exact
from qubo_compress.solvers.exact.exact import warm_up as warm_up_exact
from qubo_compress.solvers.exact.infeasibility import proves_infeasible
from qubo_compress.solvers.exact.standard_scale import on_original
from qubo_compress.solvers.greedy import Greedy
from qubo_compress.solvers.solver import RawSolution, SearchLimits, Solver, make_solver, solvers

_SMALL_GROUPS = 12
_SMALL_COMBINATIONS = 2e6
_MODEST_GROUPS = 120
"""With a factor, branch and bound proves many problems of this size, and bounds the rest."""

_HEURISTIC_WORK = 6000
"""Most sweeps of the annealer before exact takes over: fixed, so that the same total work gives the same answer."""

_HEURISTIC_VISITS = 240_000
"""The same in visits to groups, so that large problems do not spend all their time on it."""

_NARROW_BAND = 4
"""Groups coupled no further apart than this can be decided in order, remembering only a few."""

_GREEDY_SHARE = 0.2
_INFEASIBLE_SHARE = 0.4
"""Most of the time for a proof that nothing fits, where greedy found nothing that does."""

_WORTHWHILE = 0.1
"""Least share of the time left over for which the heuristic is taken up again."""

_HEURISTIC_OPERATIONS = 2e9
"""The same in multiplications of pair energies: about half a second, so that the clock need not end it."""

_HEURISTIC_SHARE = 0.5
"""Most of the time that those sweeps may take."""


@solvers.register
@dataclass(frozen=True)
class Auto:
    """Choose solvers by the structure of the problem.

    Without interactions, or where a small problem can be searched to the end: ``exact``. Otherwise the
    ``annealer``; with a factor of modest size, ``exact`` goes on from the annealer's answer to prove or improve it.

    All of the time is used, unless the answer is proven. The same seed and work give the same answer; where the clock
    ended the annealer before ``exact`` took over, ``details["repeats"]`` is False, as the recorded work cannot tell
    when that was.

    Args:
        heuristic: the solver for problems that cannot be solved to the end.
        threads: how many threads each solver uses; None for one per processor.

    Raises:
        InvalidSolverOption: when ``threads`` is not a positive number.
        UnknownName: when the heuristic is not registered.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> solution = solve(ChoiceProblem.random(kind="separable", groups=9, choices=4, seed=0))
        >>> solution.status, solution.notes[0]
        ('optimal', 'auto chose exact: no interactions, 9 groups')
    """

    name: ClassVar[str] = "auto"
    optimises: ClassVar[bool] = True
    heuristic: str = "annealer"
    threads: int | None = None

    def __post_init__(self) -> None:
        self._exact()
        self._heuristic()

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Run what suits the problem; the work is the sum over the solvers run."""
        standard = standardise(problem)
        return on_original(standard, self._search(standard.problem, limits, rng))

    def _exact(self, first: IntArray | None = None) -> Exact:
        return Exact(first=None if first is None else tuple(first.tolist()), threads=self.threads)

    def _heuristic(self) -> Solver:
        heuristic = make_solver(self.heuristic)
        if self.threads is not None and hasattr(heuristic, "threads"):
            return make_solver(self.heuristic, threads=self.threads)
        return heuristic

    def _search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        reason = _exact_suits(problem)
        if reason is not None:
            return _with_note(self._exact().search(problem, limits, rng), f"auto chose exact: {reason}")
        heuristic = self._heuristic()
        most = _MODEST_GROUPS if problem.structure == "factor" else _SMALL_GROUPS
        narrow = problem.structure == "pairs" and problem.num_budgets <= 1 and _band(problem) <= _NARROW_BAND
        if not narrow and (problem.num_groups > most or problem.num_choices > LARGEST_EIGENPROBLEM):
            size = f"{problem.structure} interactions, {problem.num_groups} groups, too many to be searched to the end"
            return self._heuristic_only(heuristic, problem, limits, rng, f"auto chose {self.heuristic}: {size}")
        reason = f"{problem.num_groups} groups, " + (
            "each coupled to near ones only" if narrow else "few enough to try for a proof"
        )
        return self._both(heuristic, problem, limits, rng, f"{problem.structure} interactions, {reason}")

    def _heuristic_only(
        self, heuristic: Solver, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator, note: str
    ) -> RawSolution:
        """The heuristic, with greedy's answer as a floor: on very large problems little else fits into seconds."""
        first_rng, second_rng = rng.spawn(2)
        start = time.perf_counter()
        quick = Greedy().search(problem, SearchLimits(_GREEDY_SHARE * limits.seconds), first_rng)
        spent = time.perf_counter() - start - quick.timing["compile"]
        # A walk cut short by the clock would make the answer depend on the clock: it serves only as a last resort.
        cut = spent >= _GREEDY_SHARE * limits.seconds
        if quick.interrupted:
            return _with_note(quick, note)
        if not any(problem.is_feasible(assignment) for assignment in quick.assignments):
            soon = time.perf_counter() + _INFEASIBLE_SHARE * limits.seconds
            if proves_infeasible(problem, soon, integers=limits.work is None):
                return _with_note(replace(quick, infeasible=True), note)
            spent = time.perf_counter() - start - quick.timing["compile"]
        left = SearchLimits(max(0.01, limits.seconds - spent), limits.work)
        main = heuristic.search(problem, left, second_rng)
        found = main.assignments if cut and main.assignments else (*main.assignments, *quick.assignments)
        timing = {**main.timing, "greedy": spent}
        trace = quick.trace + tuple((seconds + spent, energy, bound) for seconds, energy, bound in main.trace)
        ranked = sorted(found, key=problem.energy)
        merged = {
            **vars(main),
            "assignments": tuple(ranked),
            "claimed_energy": None,
            "timing": timing,
            "trace": trace,
        }
        return _with_note(RawSolution(**merged), note)

    def _both(
        self, heuristic: Solver, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator, reason: str
    ) -> RawSolution:
        """The heuristic for a fixed amount of work, exact from its answer, and the heuristic again if time is left."""
        note = f"auto chose {self.heuristic}, then exact: {reason}"
        first_rng, second_rng, third_rng = rng.spawn(3)
        compiling = warm_up_exact()
        start = time.perf_counter()
        sweeps = _sweeps(problem)
        sweeps = sweeps if limits.work is None else min(sweeps, limits.work)
        first = heuristic.search(problem, SearchLimits(_HEURISTIC_SHARE * limits.seconds, sweeps), first_rng)
        compiling += first.timing.get("compile", 0.0)
        spent = time.perf_counter() - start - first.timing.get("compile", 0.0)
        feasible = [assignment for assignment in first.assignments if problem.is_feasible(assignment)]
        left = limits.seconds - spent
        work = None if limits.work is None else limits.work - first.work
        stopped = first.interrupted or first.infeasible or left <= 0.0 or (work is not None and work < 1)
        if stopped or _proven(problem, first):
            return _with_note(first, note)
        if first.work < sweeps and spent > 0.9 * _HEURISTIC_SHARE * limits.seconds:
            first = replace(first, details={**first.details, "repeats": False})
        begun = min(feasible, key=problem.energy) if feasible else None
        second = self._exact(begun).search(problem, SearchLimits(left, work), second_rng)
        both = _joined(problem, first, second, spent, compiling, note)
        left = limits.seconds - (time.perf_counter() - start - first.timing.get("compile", 0.0))
        work = None if limits.work is None else limits.work - both.work
        if _proven(problem, both) or both.interrupted or left < _WORTHWHILE * limits.seconds or work == 0:
            return both
        # Exact gave up early: the structure suited it, the size did not.
        third = heuristic.search(problem, SearchLimits(left, work), third_rng)
        return _joined(problem, both, third, limits.seconds - left, compiling, note)


def _sweeps(problem: ChoiceProblem) -> int:
    """Sweeps of the heuristic before exact takes over: a function of the problem alone."""
    rank = 1 if problem.factor is None else max(1, problem.factor.shape[1])
    # From a table of all pairs or from the rows of the factor, whichever is cheaper, as the annealer does it.
    sweep = problem.num_choices * min(rank, problem.num_choices)
    most = min(_HEURISTIC_VISITS // problem.num_groups, int(_HEURISTIC_OPERATIONS / sweep))
    return min(_HEURISTIC_WORK, most + 1)


def _exact_suits(problem: ChoiceProblem) -> str | None:
    """Why the problem can be searched to the end, or None."""
    if problem.structure == "separable" and problem.num_budgets <= 1:
        return f"no interactions, {problem.num_groups} groups"
    combinations = float(np.exp(min(700.0, np.log(problem.group_sizes).sum())))
    if problem.structure != "pairs" and problem.num_groups <= _SMALL_GROUPS:
        return f"only {problem.num_groups} groups"
    if combinations <= _SMALL_COMBINATIONS:
        return f"only {combinations:.0f} combinations"
    if problem.structure == "separable" and problem.num_choices <= LARGEST_GRAM:
        return f"no interactions, {problem.num_budgets} budgets, {problem.num_groups} groups"
    return None


def _band(problem: ChoiceProblem) -> int:
    """How far apart in the order of the groups two coupled ones are at most."""
    if problem.pairs is None:
        return 0
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    rows = np.repeat(np.arange(problem.num_choices), np.diff(problem.pairs.indptr))
    return int(np.abs(group[rows] - group[problem.pairs.indices]).max(initial=0))


def _proven(problem: ChoiceProblem, raw: RawSolution) -> bool:
    """Whether the best assignment meets the bound."""
    if raw.bound is None:
        return False
    energies = [problem.energy(x) for x in raw.assignments if problem.is_feasible(x)]
    if not energies:
        return False
    energy = min(energies)
    return energy_scale(problem).gap(energy, raw.bound) <= OPTIMAL_GAP


def _with_note(raw: RawSolution, note: str) -> RawSolution:
    return RawSolution(**{**vars(raw), "notes": (note, *raw.notes)})


def _joined(
    problem: ChoiceProblem, first: RawSolution, second: RawSolution, spent: float, compiling: float, note: str
) -> RawSolution:
    """The second search's answer with the first one's candidates, work and trace."""
    candidates: dict[bytes, IntArray] = {
        assignment.tobytes(): assignment
        for assignment in (*second.assignments, *first.assignments)
        if problem.is_feasible(assignment)
    }
    ranked = sorted(candidates.values(), key=problem.energy)
    bounds = [bound for bound in (first.bound, second.bound) if bound is not None]
    later = tuple((seconds + spent, energy, bound) for seconds, energy, bound in second.trace)
    return RawSolution(
        assignments=tuple(ranked),
        claimed_energy=problem.energy(ranked[0]) if ranked else None,
        bound=max(bounds, default=None),
        timing={
            "exact": second.timing["solve"],
            **first.timing,
            "compile": compiling,
            "heuristic": first.timing.get("heuristic", spent),
            "solve": spent + second.timing["solve"],
        },
        trace=first.trace + later,
        work=first.work + second.work,
        interrupted=second.interrupted,
        infeasible=(first.infeasible or second.infeasible) and not ranked,
        notes=tuple(dict.fromkeys((note, *first.notes, *second.notes))),
        details={**second.details, **first.details},
    )
