"""Auto: chooses solvers by the structure of the problem, and notes why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.energy_scale import OPTIMAL_GAP, energy_scale
from qubo_compress.solvers.exact.annealed_answer import annealing_sweeps
from qubo_compress.solvers.exact.bounds import LARGEST_EIGENPROBLEM
from qubo_compress.solvers.exact.convex_relaxation import LARGEST_GRAM
from qubo_compress.solvers.exact.cost_network import MOST_NETWORK_ENTRIES, network_entries
from qubo_compress.solvers.exact.exact import Exact
from qubo_compress.solvers.exact.exact import warm_up_for as warm_up_exact
from qubo_compress.solvers.exact.infeasibility import nothing_fits
from qubo_compress.solvers.exact.pair_cost_proof import FEW_COMBINATIONS, combinations
from qubo_compress.solvers.greedy import Greedy
from qubo_compress.solvers.solver import Search, SearchLimits, Solver, make_solver, solvers

_SMALL_GROUPS = 12
"""Up to this many groups are searched completely, unless they have pair energies."""
_SMALL_COMBINATIONS = 2e6
"""Up to this many combinations are searched completely, whatever the structure."""
_MODEST_GROUPS = 120
"""With a factor, branch and bound proves many problems of this size, and bounds the rest."""
_PAIR_GROUPS = 200
"""With pairs, message passing and toulbar2 prove some problems of this size."""

_NARROW_BAND = 4
"""If groups couple over at most this distance, they can be decided in order with few states."""

_GREEDY_SHARE = 0.2
"""Largest share of the time for greedy, whose answer is the fallback for very large problems."""

_WORTHWHILE = 0.1
"""The heuristic resumes if at least this share of the time is left."""

_PROOF_SHARE = 0.4
"""Largest share of the time for a proof of many coupled groups."""

_HEURISTIC_SHARE = 0.5
"""Largest share of the time that those sweeps may take."""


@solvers.register
@dataclass(frozen=True)
class Auto(Solver):
    """Choose solvers by the structure of the problem.

    Without interactions, and for problems small enough to search completely: ``exact``. Otherwise the
    ``annealer``; with a factor of modest size, and with pairs of up to 200 groups, ``exact`` continues from the
    annealer's answer to prove or improve it, and the ``annealer`` uses what time is left.

    It uses all of the time unless the answer is proven. The same seed and work give the same answer; if the clock
    ended the annealer before ``exact`` took over, ``details["repeats"]`` is False, because the recorded work does not
    tell when that was.

    Args:
        heuristic: the solver for problems that cannot be searched completely.
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
    accepts_pair_costs: ClassVar[bool] = True
    optimises: ClassVar[bool] = True
    heuristic: str = "annealer"
    threads: int | None = None

    def __post_init__(self) -> None:
        self._exact()
        self._heuristic()

    def refuse(self, problem: ChoiceProblem) -> None:
        """Raise :class:`~qubo_compress.errors.UnsupportedProblem` for a problem that the heuristic cannot take."""
        self._heuristic().refuse(problem)

    def run(self, search: Search) -> None:
        """Run the solvers that suit the problem; the work is their sum."""
        with search.standardised() as standard:
            self._choose(standard)

    def _exact(self, first: IntArray | None = None) -> Exact:
        return Exact(first=None if first is None else tuple(first.tolist()), threads=self.threads)

    def _heuristic(self) -> Solver:
        heuristic = make_solver(self.heuristic)
        return heuristic if self.threads is None else heuristic.with_threads(self.threads)

    def _choose(self, search: Search) -> None:
        problem, say = search.problem, search.notes.append
        if problem.pair_costs is not None:
            self._choose_for_pair_costs(search)
            return
        reason = _exact_suits(problem)
        if reason is not None:
            say(f"auto chose exact: {reason}")
            self._exact().run(search)
            return
        most = _MODEST_GROUPS if problem.structure == "factor" else _PAIR_GROUPS
        narrow = problem.structure == "pairs" and problem.num_budgets <= 1 and _band(problem) <= _NARROW_BAND
        kind = f"{problem.structure} interactions, {problem.num_groups} groups"
        if not narrow and (problem.num_groups > most or not _fits(problem)):
            say(f"auto chose {self.heuristic}: {kind}, too many to be searched to the end")
            self._heuristic_only(search)
        else:
            reason = "each coupled to near ones only" if narrow else "few enough to try for a proof"
            say(f"auto chose {self.heuristic}, then exact: {kind}, {reason}")
            self._both(search)

    def _choose_for_pair_costs(self, search: Search) -> None:
        problem, say = search.problem, search.notes.append
        kind = f"budgets with pair costs, {problem.num_groups} groups"
        if combinations(problem) <= FEW_COMBINATIONS:
            say(f"auto chose exact: {kind}, only {combinations(problem):.0f} combinations")
            self._exact().run(search)
        elif search.limits.work is None and problem.num_groups <= _PAIR_GROUPS:
            say(f"auto chose {self.heuristic}, then exact: {kind}, few enough to try for a proof")
            self._both(search)
        else:
            say(f"auto chose {self.heuristic}: {kind}")
            self._heuristic_only(search)

    def _heuristic_only(self, search: Search) -> None:
        """The heuristic, with greedy's answer as a floor: on very large problems little else fits into seconds."""
        limit = _GREEDY_SHARE * search.limits.seconds
        quick = search.part(limits=SearchLimits(limit))
        quick.run(Greedy())
        # A walk cut short by the clock would make the answer depend on the clock: it serves only as a last resort.
        cut = search.elapsed >= limit
        if quick.interrupted:
            search.take(quick)
        if quick.best is None and nothing_fits(search):
            return
        search.spend("greedy", search.elapsed)
        main = search.part()
        main.run(self._heuristic())
        if not cut or main.best is None:
            search.take_pool(quick)  # but not its work: that of the heuristic repeats the answer
        search.take(main)

    def _both(self, search: Search) -> None:
        """The heuristic for a fixed amount of work, exact from its answer, and the heuristic again if time is left."""
        with search.compiling():
            warm_up_exact(search.problem)
        if search.problem.num_budgets > 1:
            quick = search.part(
                limits=SearchLimits(_GREEDY_SHARE * search.limits.seconds), rng=np.random.default_rng(0)
            )
            quick.run(Greedy())
            if quick.best is None and nothing_fits(search):
                return
        heuristic, problem, share = self._heuristic(), search.problem, _HEURISTIC_SHARE * search.limits.seconds
        first = search.part(limits=search.left(share, annealing_sweeps(problem)))
        first.run(heuristic)
        search.take(first)
        if search.infeasible or search.over() or _proven(search):
            return
        if first.work < (first.limits.work or 0) and search.elapsed > 0.9 * share:
            search.details["repeats"] = False
        search.spend("heuristic", search.elapsed)
        second = search.part(limits=search.left(_proof_seconds(search)))
        second.run(self._exact(search.best))
        search.spend("exact", second.elapsed)
        search.take(second)
        if not (search.over(_WORTHWHILE * search.limits.seconds) or _proven(search)):
            # Exact gave up: the structure suited it, but the size did not.
            third = search.part()
            third.run(heuristic)
            search.take(third)


def _proof_seconds(search: Search) -> float:
    """Seconds for the proof: some of them, where it is unlikely and the heuristic could find something better."""
    problem = search.problem
    if problem.pair_costs is not None:
        return _PROOF_SHARE * search.limits.seconds
    unlikely = problem.structure == "pairs" and problem.num_groups > _SMALL_GROUPS and _band(problem) > _NARROW_BAND
    return _PROOF_SHARE * search.limits.seconds if unlikely else np.inf


def _exact_suits(problem: ChoiceProblem) -> str | None:
    """Why the problem can be searched completely, or None."""
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


def _fits(problem: ChoiceProblem) -> bool:
    """Whether a method of ``exact`` can hold the problem."""
    if problem.structure == "pairs":
        return network_entries(problem) <= MOST_NETWORK_ENTRIES
    return problem.num_choices <= LARGEST_EIGENPROBLEM


def _band(problem: ChoiceProblem) -> int:
    """The largest distance, in the order of the groups, between two coupled ones."""
    if problem.pairs is None:
        return 0
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    rows = np.repeat(np.arange(problem.num_choices), np.diff(problem.pairs.indptr))
    return int(np.abs(group[rows] - group[problem.pairs.indices]).max(initial=0))


def _proven(search: Search) -> bool:
    """Whether the best assignment meets the bound."""
    if search.bound is None or search.best is None:
        return False
    return energy_scale(search.problem).gap(search.energy, search.bound) <= OPTIMAL_GAP
