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

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import DryRun, InvalidSolverOption, QuboCompressError
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.solvers.dwave.connection import Connection
from qubo_compress.solvers.dwave.leap_models import Binary, Constrained, Discrete, Formulation, Nonlinear
from qubo_compress.solvers.dwave.leap_search import LeapSearch
from qubo_compress.solvers.dwave.leap_terms import Preview, Request
from qubo_compress.solvers.dwave.token import Token
from qubo_compress.solvers.solver import RawSolution, SearchLimits, make_solver, solvers

__all__ = ["LeapBQM", "LeapCQM", "LeapDQM", "LeapNonlinear", "LeapSolver", "Preview", "preview"]


@dataclass(frozen=True)
class LeapSolver:
    """What the four hybrid solvers have in common.

    The time limit covers connecting, building, upload, queue, run and download. The service is asked for what is
    left of it when the problem is built, less ``reserve``, and never less than the service's minimum for the
    problem. When the time limit passes first, for example in a long queue, the problem is cancelled. Importing Ocean
    and compiling, once each, are not counted; they are in ``timing["compile"]``.

    ``timing`` holds seconds by stage (``connect``, ``build``, ``upload``, ``queue``, ``network``, ``run``, ``decode``,
    ``fill``) and every field that the service reports, in seconds, summed over submissions; ``details`` has the
    problems' numbers, the share of feasible samples, and what was charged.

    ``work`` counts submissions. The same seed and work need not give the same answer.

    Args:
        connection: how to reach the service; by default, Ocean's configuration files and variables say.
        endpoint: shorthand for the connection's.
        token: shorthand for the connection's; never shown, logged or pickled.
        service_solver: shorthand for the connection's ``solver``: the name of one at the service.
        label: shown beside the problem in Leap's dashboard.
        service_seconds: time limit at the service, which is what is charged; None derives it as above.
        reserve: seconds of the time limit that the service is not given, for upload, queue and download; None
            for 2 s or a tenth of the time limit, whichever is more.
        dry_run: submit nothing and raise :class:`~qubo_compress.errors.DryRun` with a preview.

    Raises:
        InvalidSolverOption: for a number out of range, or a connection and a shorthand for the same.
    """

    remote: ClassVar[bool] = True
    repeats: ClassVar[bool] = False
    optimises: ClassVar[bool] = False
    name: ClassVar[str]

    connection: Connection | None = None
    endpoint: str | None = None
    token: str | Token | None = field(default=None, repr=False)
    service_solver: str | None = None
    label: str | None = "qubo_compress"
    service_seconds: float | None = None
    reserve: float | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", Token.of(self.token))
        shorthand = [name for name in ("endpoint", "token", "service_solver") if getattr(self, name) is not None]
        if self.connection is not None and shorthand:
            raise InvalidSolverOption(f"give {shorthand[0]} either by itself or within connection, not both")
        if self.service_seconds is not None and not 0 < self.service_seconds < math.inf:
            raise InvalidSolverOption(f"service_seconds must be a positive number; got {self.service_seconds}")
        if self.reserve is not None and not 0 <= self.reserve < math.inf:
            raise InvalidSolverOption(f"reserve must be a number of seconds from 0; got {self.reserve}")

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """Submit the problem, wait, and hand over every sample.

        On Ctrl-C the problem is cancelled, and what had come back is returned.

        Raises:
            DryRun: with ``dry_run=True``.
            NoFeasibleFound: interrupted before anything came back.
            ProblemTooLarge: the service's limits are exceeded; nothing was submitted.
            TimeLimitTooShort: the service needs more time; nothing was submitted.
            RemoteSolverError: its subclass says what went wrong.
        """
        return LeapSearch(self._request(), problem, limits, rng).run()

    def _request(self) -> Request:
        connection = self.connection or Connection(endpoint=self.endpoint, token=self.token, solver=self.service_solver)
        return Request(
            name=self.name,
            formulation=self._formulation(),
            connection=connection,
            label=self.label,
            submissions=self._submissions(),
            service_seconds=self.service_seconds,
            reserve=self.reserve,
            dry_run=self.dry_run,
        )

    def _formulation(self) -> Formulation:
        raise NotImplementedError

    def _submissions(self) -> int:
        return 1


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

    def _formulation(self) -> Formulation:
        return Constrained()


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

    def _formulation(self) -> Formulation:
        return Nonlinear()


@dataclass(frozen=True)
class _PricedSolver(LeapSolver):
    """A solver that knows no budgets: they are priced, and samples repaired and filled up on this machine."""

    submissions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.submissions < 1:
            raise InvalidSolverOption(f"submissions must be at least 1; got {self.submissions}")

    def _submissions(self) -> int:
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

    def _formulation(self) -> Formulation:
        return Discrete()


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
    encoding: str = "domain-wall"

    def __post_init__(self) -> None:
        super().__post_init__()
        encodings.get(self.encoding)

    def _formulation(self) -> Formulation:
        return Binary(self.encoding)


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
    chosen = make_solver(solver, **options)
    if not isinstance(chosen, LeapSolver):
        raise InvalidSolverOption(f"there is a preview for Leap's solvers only; got {chosen.name!r}")
    asked = replace(chosen._request(), dry_run=True)
    try:
        LeapSearch(asked, problem, SearchLimits(time_limit), np.random.default_rng(0)).run()
    except DryRun as stopped:
        if isinstance(stopped.preview, Preview):
            return stopped.preview
    raise QuboCompressError("every group has one choice only: there is nothing to send")
