"""The results of solvers, claimed and verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qubo_compress._internal.notebook import fragment
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.problem.energy_scale import OPTIMAL_GAP


@dataclass(frozen=True, eq=False)
class RawSolution:
    """What a solver claims, in energies of the problem it was given; ``solve`` checks it.

    Attributes:
        assignments: candidate assignments, best first; the first feasible one becomes the answer.
        claimed_energy: the solver's own figure for the first one, or None.
        bound: a valid lower bound on the energy of every feasible assignment, or None.
        timing: seconds by stage; ``solve`` measures the total.
        trace: (seconds since the start, best energy, bound or None).
        work: units of work done.
        interrupted: whether Ctrl-C ended the search.
        infeasible: the solver proved that no assignment is feasible.
        notes: remarks in plain words.
        details: named figures of the solver's own, such as evaluations, samples or chain breaks.
    """

    assignments: tuple[IntArray, ...]
    claimed_energy: float | None = None
    bound: float | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
    trace: tuple[tuple[float, float, float | None], ...] = ()
    work: int = 0
    interrupted: bool = False
    infeasible: bool = False
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Solution:
    """A verified answer to a :class:`~qubo_compress.problem.choice_problem.ChoiceProblem`.

    Attributes:
        assignment: (G,) local index of the chosen choice in each group.
        choices: group name -> choice name, the same by name.
        energy: recomputed by the library from the assignment, in units of the loss.
        bound: lower bound on the energy of every feasible assignment, or None when unknown.
        solver: name of the solver that found it.
        gap: how far the bound may lie below the energy: (energy - bound) / (energy - base), None without a bound.
            The base is the sum of the constant and of the least linear term of every group, so that neither the unit
            nor a constant of the energies matters; see :meth:`EnergyScale.gap
            <qubo_compress.problem.energy_scale.EnergyScale.gap>` for an energy that is the base itself.
        pool: distinct feasible solutions, best first, this one included.
        timing: seconds by stage (``build``, ``compile``, ``solve``, ``total``, ...).
        trace: (seconds, best energy, bound or None) whenever one of them improved.
        work: sweeps, iterations or nodes done; the same number as ``work_limit`` repeats the answer.
        interrupted: whether Ctrl-C ended the search early.
        notes: remarks in plain words, such as why ``auto`` chose a solver, or that a solver's own
            figures differed from the recomputed ones.
        details: named figures of the solver's own, such as evaluations, samples or chain breaks.
    """

    assignment: IntArray
    energy: float
    bound: float | None
    solver: str
    gap: float | None = None
    choices: Mapping[str, str] = field(default_factory=dict, repr=False)
    pool: tuple[Solution, ...] = field(default=(), repr=False)
    timing: Mapping[str, float] = field(default_factory=dict, repr=False)
    trace: tuple[tuple[float, float, float | None], ...] = field(default=(), repr=False)
    work: int = 0
    interrupted: bool = False
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def _repr_html_(self) -> str:
        bound = "no bound" if self.bound is None else f"no assignment is below {self.bound:.6g} (gap {self.gap:.2g})"
        proof = "proven optimal" if self.status == "optimal" else bound
        return fragment(
            f"Solution: energy {self.energy:.6g}, {proof}",
            [f"{self.solver}, {self.timing.get('total', 0.0):.2f} s, {self.work:,} units of work.", *self.notes],
            ["group", "choice"] if self.choices else [],
            self.choices.items(),
            names=2,
            more="; solution.choices has all",
        )

    @property
    def status(self) -> str:
        """``"optimal"`` when the gap is at most 1e-6, else ``"feasible"``."""
        return "optimal" if self.gap is not None and self.gap <= OPTIMAL_GAP else "feasible"
