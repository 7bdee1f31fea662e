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
from qubo_compress.problem import ChoiceProblem
from qubo_compress.solvers import RawSolution, SearchLimits, make_solver
from qubo_compress.testing import solvers as testing

OPTIMISERS = ("annealer", "auto", "exact")
TIME_LIMIT = 0.3


def local_names():
    """Solvers that need a connection have tests of their own, which bring a server."""
    return [name for name in solvers.names() if not getattr(solvers.registry.get(name), "remote", False)]


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", local_names())
def test_conformance(name, check):
    for package in getattr(solvers.registry.get(name), "requires", ()):
        # Looked for without importing it: importing torch or a solver's library takes seconds.
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{name} needs {package}, which is not installed")
    check(make_solver(name), TIME_LIMIT)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_everything_is_kept_when_no_budget_binds(name):
    testing.keeps_everything_when_free(make_solver(name), 2.0)


@dataclass(frozen=True)
class Liar:
    """Claims a bound above what can be reached."""

    name: ClassVar[str] = "liar"

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        spans = itertools.pairwise(problem.group_offsets)
        cheapest = [int(np.argmin(problem.costs[:, a:b].sum(axis=0))) for a, b in spans]
        return RawSolution(assignments=(np.array(cheapest),), bound=1e6, work=1)


@dataclass(frozen=True)
class Deaf:
    """Tries random choices as often as it was made to, or up to the time limit where it keeps that."""

    name: ClassVar[str] = "deaf"
    tries: int = 300
    keeps_time: bool = False

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        deadline = time.perf_counter() + limits.seconds
        spans = itertools.pairwise(problem.group_offsets)
        best = np.array([int(np.argmin(problem.costs[:, a:b].sum(axis=0))) for a, b in spans])
        work = 0
        for work in range(1, min(self.tries, limits.work or self.tries) + 1):
            tried = best.copy()
            group = int(rng.integers(problem.num_groups))
            tried[group] = rng.integers(problem.group_sizes[group])
            if problem.is_feasible(tried) and problem.energy(tried) < problem.energy(best):
                best = tried
            if self.keeps_time and time.perf_counter() >= deadline:
                break
        return RawSolution(assignments=(best,), work=work)


def test_an_ignored_time_limit_is_caught_and_a_kept_one_is_not():
    testing.time_limit_is_kept(Deaf(keeps_time=True), 0.3)
    with pytest.raises(AssertionError, match="the time limit is not kept: on dense, work 300 .* and 300 within 30 s"):
        testing.time_limit_is_kept(Deaf(), 0.3)
    with pytest.raises(AssertionError, match="deaf.*time_limit_is_kept"):
        testing.check_solver(Deaf(), time_limit=0.3)


def test_a_false_bound_is_caught():
    with pytest.raises(AssertionError, match="liar.*claimed the bound"):
        testing.check_solver(Liar(), time_limit=0.3)
