"""Every registered solver passes the suite that is shipped to users for their own."""

from __future__ import annotations

import importlib.util
import itertools
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


def test_a_false_bound_is_caught():
    with pytest.raises(AssertionError, match="liar.*claimed the bound"):
        testing.check_solver(Liar(), time_limit=0.3)
