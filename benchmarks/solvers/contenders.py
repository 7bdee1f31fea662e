"""Who takes part in ``benchmarks.studies.solvers_public``: ours, and the exact solvers of others, one thread each."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.solvers.peers.cp_sat import CpSat
from benchmarks.solvers.peers.gurobi import Gurobi
from benchmarks.solvers.peers.highs import Highs
from qubo_compress._internal.optional import installed
from qubo_compress.solvers import Solver, make_solver

CONTENDERS: dict[str, Callable[[], Solver]] = {
    "auto": lambda: make_solver("auto", threads=1),
    "annealer": lambda: make_solver("annealer", threads=1),
    "exact": lambda: make_solver("exact", threads=1),
    "cfn": lambda: make_solver("cfn"),
    "scip": lambda: make_solver("scip"),
    "cp-sat": CpSat,
    "highs": Highs,
    "gurobi": Gurobi,
}
"""Name -> makes it. ``exact``, ``auto`` and ``cfn`` call toulbar2 and HiGHS, too, as anybody may who installs them."""


def missing(name: str) -> list[str]:
    """The packages that a contender needs and this machine lacks."""
    return [package for package in CONTENDERS[name]().requires if not installed(package)]
