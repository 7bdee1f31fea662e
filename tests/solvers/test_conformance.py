"""Every registered solver passes the suite that is shipped to users for their own."""

from __future__ import annotations

import importlib.util
import itertools
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from qubo_compress import solvers
from qubo_compress.errors import ProblemTooLarge
from qubo_compress.solvers import Search, Solver, make_solver
from qubo_compress.testing import clocks
from qubo_compress.testing import solvers as testing

OPTIMISERS = ("annealer", "auto", "exact")
TIME_LIMIT = 0.15
READINGS = 150
"""Of the clock until the time limit is reached, whatever the machine does."""
OF_THE_CLOCK = {
    "loads_change_nothing", "time_limit_is_kept", "large_problems_keep_it_too", "interruption_returns_the_best",
}  # fmt: skip
"""Checks with clocks of their own, and of how a search keeps to the true one."""


def local_names():
    """Solvers that need a connection have tests of their own, which bring a server."""
    return [name for name in solvers.names() if not solvers.registry.get(name).remote]


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", local_names())
def test_conformance(name, check):
    for package in solvers.registry.get(name).requires:
        # Looked for without importing it: importing torch or a solver's library takes seconds.
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} needs {package}, which is not installed")
    if check.__name__ in OF_THE_CLOCK:
        check(make_solver(name), TIME_LIMIT)
        return
    with clocks.under(clocks.hurried_clock(TIME_LIMIT / READINGS)):
        check(make_solver(name), TIME_LIMIT)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_everything_is_kept_when_no_budget_binds(name):
    testing.keeps_everything_when_free(make_solver(name), 2.0)


def cheapest(problem):
    spans = itertools.pairwise(problem.group_offsets)
    return np.array([int(np.argmin(problem.costs[:, a:b].sum(axis=0))) for a, b in spans])


@dataclass(frozen=True)
class Liar(Solver):
    """Claims a bound above what can be reached."""

    name: ClassVar[str] = "liar"

    def run(self, search: Search) -> None:
        search.keep(cheapest(search.problem))
        search.bound, search.work = 1e6, 1


@dataclass(frozen=True)
class Deaf(Solver):
    """Tries random choices as often as it was made to, or up to the time limit where it keeps that."""

    name: ClassVar[str] = "deaf"
    total: ClassVar[list[int]] = []
    tries: int = 300
    keeps_time: bool = False
    counts: bool = True
    threads: int = 1

    def run(self, search: Search) -> None:
        problem, rng = search.problem, search.rng
        search.keep(cheapest(problem))
        work = 0
        for work in range(1, search.most_work(self.tries) + 1):
            tried = search.best.copy()
            group = int(rng.integers(problem.num_groups))
            tried[group] = rng.integers(problem.group_sizes[group])
            if problem.is_feasible(tried):
                search.keep(tried)
            if self.keeps_time and search.over():
                break
        self.total.append(work)
        search.work = work if self.counts else 0


@pytest.fixture
def a_try_takes_a_hundredth(monkeypatch):
    """Of a second of the processor, on any machine."""
    Deaf.total.clear()
    monkeypatch.setattr(testing, "_processor_seconds", lambda: 0.01 * sum(Deaf.total))


def test_an_ignored_time_limit_is_caught_and_a_kept_one_is_not(a_try_takes_a_hundredth):
    testing.time_limit_is_kept(Deaf(tries=70, keeps_time=True), 0.3)
    with pytest.raises(AssertionError, match="the time limit is not kept: on dense, work 70 .* and 70 within 30 s"):
        testing.time_limit_is_kept(Deaf(tries=70), 0.3)
    with pytest.raises(AssertionError, match="deaf.*time_limit_is_kept"):
        testing.check_solver(Deaf(tries=40), time_limit=0.3)


def test_an_overrun_is_caught_where_no_work_is_counted(a_try_takes_a_hundredth):
    testing.time_limit_is_kept(Deaf(tries=79, counts=False), 0.3)
    with pytest.raises(AssertionError, match=r"0.81 s of the processor were used on dense, where 0.80 s are allowed"):
        testing.time_limit_is_kept(Deaf(tries=81, counts=False), 0.3)


def test_a_search_that_is_over_in_time_need_not_look_at_the_clock(a_try_takes_a_hundredth):
    testing.time_limit_is_kept(Deaf(tries=29), 0.3)
    with pytest.raises(AssertionError, match="the time limit is not kept"):
        testing.time_limit_is_kept(Deaf(tries=31), 0.3)


def test_an_overrun_on_a_large_problem_is_caught(a_try_takes_a_hundredth):
    testing.large_problems_keep_it_too(Deaf(tries=137), 0.3)
    with pytest.raises(AssertionError, match=r"1.38 s of the processor were used on 500 groups, where 1.38 s are"):
        testing.large_problems_keep_it_too(Deaf(tries=138), 0.3)


@dataclass(frozen=True)
class Hasty(Solver):
    """Takes the last of its tries only where its clock still has time for it, and counts it or not."""

    name: ClassVar[str] = "hasty"
    honest: bool

    def run(self, search: Search) -> None:
        problem, rng, best = search.problem, search.rng, cheapest(search.problem)
        for _ in range(search.most_work(1000)):
            tried = best.copy()
            group = int(rng.integers(problem.num_groups))
            tried[group] = rng.integers(problem.group_sizes[group])
            late = search.seconds_left <= 0.0
            if late and self.honest:
                break
            search.work += 1
            if not late and problem.is_feasible(tried):
                best = tried
            if late:
                break
        search.settle(best)


def test_an_answer_that_the_clock_decides_is_caught():
    testing.loads_change_nothing(Hasty(honest=True), 0.3)
    with pytest.raises(AssertionError, match=r"re-running with the work \d+ done in \d+ readings.*different"):
        testing.loads_change_nothing(Hasty(honest=False), 0.3)


@dataclass(frozen=True)
class Restless(Solver):
    """Makes as many tries as its clock allows for, whatever it is told."""

    name: ClassVar[str] = "restless"

    def run(self, search: Search) -> None:
        problem, begin = search.problem, search.elapsed
        tried = search.rng.integers(problem.group_sizes, size=(500, problem.num_groups))
        tries = min(500, max(1, int(2e-3 / (search.elapsed - begin))))
        for row in (cheapest(problem), *tried[:tries]):
            if problem.is_feasible(row):
                search.keep(row)
        search.work = 1


def test_an_effort_that_the_clock_decides_is_caught():
    with pytest.raises(AssertionError, match="different assignments"):
        testing.loads_change_nothing(Restless(), 0.3)


@dataclass(frozen=True)
class Enumeration(Solver):
    """Tries all assignments, without a look at the clock, and refuses what would take long."""

    name: ClassVar[str] = "enumeration"

    def run(self, search: Search) -> None:
        problem = search.problem
        if np.prod(problem.group_sizes.astype(float)) > 20_000:
            raise ProblemTooLarge("more than 20,000 assignments")
        grid = np.meshgrid(*map(np.arange, problem.group_sizes))
        picks = np.stack(grid, axis=-1).reshape(-1, problem.num_groups)[: search.limits.work]
        totals = problem.costs[:, picks + problem.group_offsets[:-1]].sum(axis=2)
        fitting = picks[(totals.T + problem.fixed_costs <= problem.limits).all(axis=1)]
        search.keep(fitting[np.argmin(problem.energies(fitting))] if len(fitting) else cheapest(problem))
        search.work = len(picks)


def test_a_solver_of_small_problems_conforms():
    testing.check_solver(Enumeration(), time_limit=0.3)


@dataclass(frozen=True)
class Interruptible(Solver):
    """Waits for the time limit or for Ctrl-C, which it leaves to the search, hides or admits."""

    name: ClassVar[str] = "interruptible"
    manner: str

    def run(self, search: Search) -> None:
        if self.manner != "keeps late":
            search.keep(cheapest(search.problem))
        try:
            while self.manner != "ends before" and not search.over():
                time.sleep(0.001)
        except KeyboardInterrupt:
            if self.manner in ("leaves", "keeps late"):
                raise
            search.interrupted = self.manner == "admits"
        search.keep(cheapest(search.problem))


def test_what_becomes_of_ctrl_c_is_checked(monkeypatch):
    monkeypatch.setattr(testing, "_CTRL_C_AFTER", 0.05)
    for fine in ("leaves", "admits", "ends before"):
        testing.interruption_returns_the_best(Interruptible(fine), 0.3)
    with pytest.raises(AssertionError, match="does not say that it was interrupted"):
        testing.interruption_returns_the_best(Interruptible("hides"), 0.3)
    with pytest.raises(AssertionError, match="nothing that was found until then was kept"):
        testing.interruption_returns_the_best(Interruptible("keeps late"), 0.3)
    monkeypatch.setattr(Search, "run", lambda search, solver: solver.run(search))
    with pytest.raises(AssertionError, match="escaped instead of ending the search"):
        testing.interruption_returns_the_best(Interruptible("leaves"), 0.3)


def test_a_false_bound_is_caught():
    with pytest.raises(AssertionError, match="liar.*claimed the bound"):
        testing.check_solver(Liar(), time_limit=0.3)
