"""Solvers written for 0.4, whose ``search(problem, limits, rng)`` returns a ``RawSolution``: work for one release."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.solvers.search import Search
from qubo_compress.solvers.solution import RawSolution

ABILITIES = ("name", "optimises", "requires", "repeats", "remote", "threads", "encoding", "largest_bits")
"""Optional attributes of such a solver, with the same meaning as in ``Solver``."""


def warn_of(solver: Any) -> None:
    """Warn that a user's solver must change, and how."""
    kind = type(solver)
    if not kind.__module__.startswith("qubo_compress."):
        warnings.warn(
            f"{kind.__name__}.search(problem, limits, rng) is the interface of 0.4 and goes with the next release: "
            "inherit from qubo_compress.solvers.Solver and write run(search) instead, with search.problem, search.rng, "
            "search.keep(assignment), search.work and search.rounds()",
            DeprecationWarning,
            stacklevel=5,  # the caller of `solve`
        )


def search_as_in_04(solver: Any, search: Search) -> None:
    """Run such a solver on a search, and record its answer."""
    begin = search.elapsed
    raw: RawSolution = solver.search(search.problem, search.limits, search.rng)
    if "compile" in raw.timing:
        search.exclude(raw.timing["compile"])
    for stage, seconds in raw.timing.items():
        if stage not in ("compile", "solve"):
            search.spend(stage, seconds)
    search.pool.size = max(search.pool.size, len(raw.assignments))
    for number, assignment in enumerate(raw.assignments):
        claimed = raw.claimed_energy if number == 0 else None
        search.add(assignment, _energy(search.problem, assignment, claimed))
    search.trace += [(begin + at, energy, bound) for at, energy, bound in raw.trace]
    search.work, search.bound, search.infeasible = raw.work, raw.bound, raw.infeasible
    search.notes += raw.notes
    search.details.update(raw.details)
    search.interrupted = raw.interrupted


def _energy(problem: ChoiceProblem, assignment: IntArray, claimed: float | None) -> float:
    """The energy; infinite over budget, which ranks such answers last: verification drops and counts them."""
    if not problem.is_feasible(assignment):
        return np.inf
    return problem.energy(assignment) if claimed is None else claimed
