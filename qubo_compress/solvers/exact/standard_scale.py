"""Answers of a search on the standardised problem, told in the energies of the problem that was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qubo_compress.problem.energy_scale import StandardProblem
from qubo_compress.solvers.solver import RawSolution


def on_original(standard: StandardProblem, raw: RawSolution, details: Mapping[str, Any] | None = None) -> RawSolution:
    """The same answer with energy, bound and trace of the original problem.

    Args:
        standard: what was searched.
        raw: what was found, in energies of ``standard.problem``.
        details: figures that replace those of ``raw`` because they are energies too.

    Example:
        >>> from qubo_compress import ChoiceProblem
        >>> from qubo_compress.problem.energy_scale import standardise
        >>> problem = ChoiceProblem(linear=[0.0, 4e9], group_offsets=[0, 2], costs=[[2, 1]], limits=[2], constant=1.0)
        >>> on_original(standardise(problem), RawSolution(assignments=((0,),), bound=0.0)).bound
        1.0
    """
    energy = standard.energy
    return replace(
        raw,
        claimed_energy=None if raw.claimed_energy is None else energy(raw.claimed_energy),
        bound=None if raw.bound is None else energy(raw.bound),
        trace=tuple((at, energy(best), None if bound is None else energy(bound)) for at, best, bound in raw.trace),
        details={**raw.details, **(details or {})},
    )
