"""The hybrid solvers of D-Wave's Leap service: classical computers that may ask a quantum annealer.

Which part of an answer a quantum processor had is in ``timing["qpu_access_time"]``, and it is small. All four
solvers are sent the same problem in another form:

- ``leap-cqm``: constrained quadratic model. Groups and budgets are constraints; the default in the cloud.
- ``leap-nonlinear``: one integer per group; nothing is multiplied out, so it is the smallest to upload.
- ``leap-dqm``: one discrete variable per group; budgets are priced.
- ``leap-bqm``: bits with penalties; budgets are priced. Kept for comparison: it is the worst fit.

A submission costs quota. ``preview`` says how much before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import DryRun, InvalidSolverOption, QuboCompressError
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray
from qubo_compress.solvers.dwave.leap_models import HybridModel, binary, constrained, discrete, nonlinear
from qubo_compress.solvers.dwave.leap_options import LeapOptions, Preview
from qubo_compress.solvers.dwave.leap_search import LeapSearch
from qubo_compress.solvers.search import Search, SearchLimits
from qubo_compress.solvers.solver import make_solver, solvers

__all__ = ["LeapBQM", "LeapCQM", "LeapDQM", "LeapNonlinear", "LeapSolver", "Preview", "preview"]


@dataclass(frozen=True)
class LeapSolver(LeapOptions):
    """A hybrid solver of Leap; see :class:`~qubo_compress.solvers.dwave.leap_options.LeapOptions` for its options."""

    accepts_pair_costs: ClassVar[bool] = True

    def run(self, search: Search) -> None:
        """Submit the problem, wait, and keep every sample that fits.

        On Ctrl-C the problem is cancelled, and what had come back is the answer.

        Raises:
            DryRun: with ``dry_run=True``.
            NoFeasibleFound: interrupted before anything came back.
            ProblemTooLarge: the service's limits are exceeded; nothing was submitted.
            TimeLimitTooShort: the service needs more time; nothing was submitted.
            RemoteSolverError: its subclass says what went wrong.
        """
        LeapSearch(self, search).run()


@solvers.register
@dataclass(frozen=True)
class LeapCQM(LeapSolver):
    """Leap's constrained quadratic solver: groups and budgets are constraints, and nothing is penalised.

    Samples are filtered for the budgets, which are recomputed here; what the service calls its first sample
    need not be feasible. Only when no sample fits are they repaired on this machine, and a note says so.

    Example:
        >>> LeapCQM(endpoint="https://example.com/sapi/v2/", token="secret").name
        'leap-cqm'
    """

    name: ClassVar[str] = "leap-cqm"
    sampler: ClassVar[str] = "LeapHybridCQMSampler"

    def build(self, problem: ChoiceProblem, prices: FloatArray) -> HybridModel:
        """One discrete constraint per group and one inequality per budget."""
        return constrained(problem)


@solvers.register
@dataclass(frozen=True)
class LeapNonlinear(LeapSolver):
    """Leap's nonlinear solver ("Stride"): one integer per group, and energies looked up in tables.

    The client does not check its time limit, so this class does, against the estimate that Ocean gives.

    Example:
        >>> LeapNonlinear(label=None).name
        'leap-nonlinear'
    """

    name: ClassVar[str] = "leap-nonlinear"
    sampler: ClassVar[str] = "LeapHybridNLSampler"

    def build(self, problem: ChoiceProblem, prices: FloatArray) -> HybridModel:
        """One integer per group, tables as constants, and the budgets as constraints."""
        return nonlinear(problem)


@dataclass(frozen=True)
class _PricedSolver(LeapSolver):
    """A solver that knows no budgets: they are priced, and samples repaired and filled up on this machine."""

    priced: ClassVar[bool] = True
    submissions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.submissions < 1:
            raise InvalidSolverOption(f"submissions must be at least 1; got {self.submissions}")

    @property
    def most_submissions(self) -> int:
        return self.submissions


@solvers.register
@dataclass(frozen=True)
class LeapDQM(_PricedSolver):
    """Leap's discrete solver: one variable per group, and a price per unit of each budget.

    The price comes from the problem linearised around a local optimum, and moves by the answer when there is
    more than one submission. Every sample is repaired and filled up by single changes on this machine.

    Args:
        submissions: most problems to submit within the time limit; each is charged.

    Example:
        >>> LeapDQM(submissions=2).submissions
        2
    """

    name: ClassVar[str] = "leap-dqm"
    sampler: ClassVar[str] = "LeapHybridDQMSampler"

    def build(self, problem: ChoiceProblem, prices: FloatArray) -> HybridModel:
        """One variable per group, one case per choice, and the budgets by prices."""
        return discrete(problem, prices)


@solvers.register
@dataclass(frozen=True)
class LeapBQM(_PricedSolver):
    """Leap's binary quadratic solver: bits with penalties, and a price per unit of each budget.

    Prices, repair and filling are as for :class:`LeapDQM`.

    Args:
        submissions: most problems to submit within the time limit; each is charged.
        encoding: ``"domain-wall"`` or ``"one-hot"``.

    Example:
        >>> LeapBQM(encoding="one-hot").encoding
        'one-hot'
    """

    name: ClassVar[str] = "leap-bqm"
    sampler: ClassVar[str] = "LeapHybridBQMSampler"
    encoding: str = "domain-wall"

    def __post_init__(self) -> None:
        super().__post_init__()
        encodings.get(self.encoding)

    def build(self, problem: ChoiceProblem, prices: FloatArray) -> HybridModel:
        """Bits, with the groups kept valid by penalties and the budgets by prices."""
        return binary(problem, self.encoding, prices)


def preview(
    problem: ChoiceProblem, solver: str | LeapSolver = "leap-cqm", *, time_limit: float = 10.0, **options: Any
) -> Preview:
    """What solving a problem at Leap would take, without submitting it.

    The solver's properties are asked for, which costs nothing; the problem stays here.

    Args:
        problem: what would be solved.
        solver: ``"leap-cqm"``, ``"leap-nonlinear"``, ``"leap-dqm"`` or ``"leap-bqm"``, or an object of these.
        time_limit: as it would be given to :func:`~qubo_compress.solve`; seconds.
        options: of the solver named.

    Raises:
        InvalidSolverOption: when the solver is not one of Leap's.
        ProblemTooLarge: the service would not take it.
        RemoteSolverError: its subclass says what went wrong with the connection.
    """
    chosen = make_solver(solver, **options)  # type: ignore[arg-type]
    if not isinstance(chosen, LeapSolver):
        raise InvalidSolverOption(f"there is a preview for Leap's solvers only; got {chosen.name!r}")
    try:
        replace(chosen, dry_run=True).run(Search(problem, SearchLimits(time_limit), np.random.default_rng(0)))
    except DryRun as stopped:
        if isinstance(stopped.preview, Preview):
            return stopped.preview
    raise QuboCompressError("every group has one choice only: there is nothing to send")
