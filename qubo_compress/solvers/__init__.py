"""Solvers: a :class:`~qubo_compress.problem.ChoiceProblem` in, a verified ``Solution`` out.

Every module in this folder that defines a solver registers it by being imported here once.
"""

from __future__ import annotations

import importlib
import pkgutil

from qubo_compress.solvers.dwave_connection import Connection
from qubo_compress.solvers.leap import Preview, preview
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.solver import RawSolution, SearchLimits, Solver, make_solver, solve
from qubo_compress.solvers.solver import solvers as registry

__all__ = [
    "Connection",
    "Preview",
    "RawSolution",
    "SearchLimits",
    "Solution",
    "Solver",
    "make_solver",
    "names",
    "preview",
    "register",
    "registry",
    "solve",
]

register = registry.add


def names() -> tuple[str, ...]:
    """Names of all registered solvers, sorted."""
    return registry.names()


# A new solver is one new file in this folder and no edit elsewhere.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
