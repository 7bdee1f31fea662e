"""Solvers: a :class:`~qubo_compress.problem.choice_problem.ChoiceProblem` in, a verified ``Solution`` out.

Every module in this folder that defines a solver registers it by being imported here once.
"""

from __future__ import annotations

from qubo_compress._internal.registry import import_plug_ins
from qubo_compress.solvers.dimod_sampler import DimodSampler
from qubo_compress.solvers.dwave.connection import Connection
from qubo_compress.solvers.dwave.leap import Preview, preview
from qubo_compress.solvers.search import Search, SearchLimits, SearchOver
from qubo_compress.solvers.solution import RawSolution, Solution
from qubo_compress.solvers.solver import Solver, make_solver
from qubo_compress.solvers.solver import solvers as registry
from qubo_compress.solvers.verification import solve

__all__ = [
    "Connection",
    "DimodSampler",
    "Preview",
    "RawSolution",
    "Search",
    "SearchLimits",
    "SearchOver",
    "Solution",
    "Solver",
    "make_solver",
    "names",
    "preview",
    "register",
    "registry",
    "solve",
]

register = registry.register


def names() -> tuple[str, ...]:
    """Names of all registered solvers, sorted."""
    return registry.names()


import_plug_ins(__name__, __path__)
