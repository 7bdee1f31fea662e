"""Options of the hybrid solvers of Leap, and the price of a submission: seconds at the service, and quota."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qubo_compress.errors import InvalidSolverOption, TimeLimitTooShort
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray
from qubo_compress.solvers.dwave.connection import Connection, connection_of
from qubo_compress.solvers.dwave.leap_models import HybridModel
from qubo_compress.solvers.dwave.token import Token
from qubo_compress.solvers.solver import Solver

_SHORTEST_RESERVE = 2.0
_RESERVE_SHARE = 0.1


@dataclass(frozen=True)
class LeapOptions(Solver):
    """The options that the four hybrid solvers share, and a model of the problem.

    The time limit covers connecting, building, upload, queue, run and download. The service is asked for the time left
    once the problem is built, less ``reserve``, and never less than the service's minimum for the problem. If the time
    limit passes first, for example in a long queue, the problem is cancelled. Importing Ocean and compiling, once each,
    do not count; they are in ``timing["compile"]``.

    ``timing`` holds seconds by stage (``connect``, ``build``, ``upload``, ``queue``, ``network``, ``run``, ``decode``,
    ``fill``) and every field that the service reports, in seconds, summed over submissions; ``details`` has the
    problems' numbers, the share of feasible samples, and what was charged.

    ``work`` counts submissions. The same seed and work need not give the same answer.

    Args:
        connection: how to reach the service; default: Ocean's variables and configuration files.
        endpoint: shorthand for the connection's.
        token: shorthand for the connection's; never shown, logged or pickled.
        service_solver: shorthand for the connection's ``solver``: its name at the service.
        label: shown beside the problem in Leap's dashboard.
        service_seconds: time limit at the service, which is the time charged; None derives it as above.
        reserve: seconds of the time limit set aside for upload, queue and download; None: 2 s or a tenth of the time
            limit, whichever is more.
        dry_run: submit nothing and raise :class:`~qubo_compress.errors.DryRun` with a preview.

    Raises:
        InvalidSolverOption: for a number out of range, or a connection and a shorthand for the same.
    """

    remote: ClassVar[bool] = True
    repeats: ClassVar[bool] = False
    sampler: ClassVar[str]
    """Name of the class in ``dwave.system``."""
    priced: ClassVar[bool] = False
    """Whether budgets enter as prices instead of constraints."""

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
        self.way()
        if self.service_seconds is not None and not 0 < self.service_seconds < math.inf:
            raise InvalidSolverOption(f"service_seconds must be a positive number; got {self.service_seconds}")
        if self.reserve is not None and not 0 <= self.reserve < math.inf:
            raise InvalidSolverOption(f"reserve must be a number of seconds from 0; got {self.reserve}")

    @abstractmethod
    def build(self, problem: ChoiceProblem, prices: FloatArray) -> HybridModel:
        """The model of a problem; a priced one, at these prices of its budgets."""

    @property
    def most_submissions(self) -> int:
        """Most problems to submit within the time limit."""
        return 1

    def way(self) -> Connection:
        """The connection, from the option or its shorthands."""
        return connection_of(self.connection, self.endpoint, self.token, self.service_solver)

    def reserved(self, limit: float) -> float:
        """Seconds of a time limit that are reserved for upload, queue and download."""
        return max(_SHORTEST_RESERVE, _RESERVE_SHARE * limit) if self.reserve is None else self.reserve


@dataclass(frozen=True)
class Preview:
    """What a submission would cost; nothing was sent except the request for the solver's properties.

    Attributes:
        solver: name of this library's solver.
        service_solver: name of the solver at the service.
        variables: binary, discrete or integer variables of the model.
        interactions: pairs of bits or cases with an energy; symbols of a nonlinear model.
        bytes_to_upload: for each submission.
        minimum_seconds: the least time limit that the service accepts for this model.
        shortest_time_limit: the least ``time_limit`` with which :func:`~qubo_compress.solve` would submit it.
        charged_seconds: most seconds that the service may charge, over all submissions.
        quota_seconds: their share of the account's quota, in seconds of the quantum processor; None if the service
            names no rate.
        simulated: whether the service is a stand-in without a D-Wave machine.
    """

    solver: str
    service_solver: str
    variables: int
    interactions: int
    bytes_to_upload: int
    minimum_seconds: float
    shortest_time_limit: float
    charged_seconds: float
    quota_seconds: float | None
    simulated: bool

    def __str__(self) -> str:
        quota = "at an unknown rate" if self.quota_seconds is None else f"{self.quota_seconds:.3g} s of quota"
        return (
            f"{self.solver} on {self.service_solver}: {self.variables:,} variables, "
            f"{self.interactions:,} interactions, "
            f"{self.bytes_to_upload / 1e6:.3g} MB to upload, at least {self.minimum_seconds:.3g} s; "
            f"charges up to {self.charged_seconds:.3g} s ({quota})"
        )


@dataclass(frozen=True)
class SubmissionTimes:
    """The times known just before a submission, in seconds.

    Attributes:
        limit: the whole time limit.
        left: the time left of it.
        minimum: the service's least time for this problem.
        reserve: time not available to the service.
        submissions: still to come, including this one.
    """

    limit: float
    left: float
    minimum: float
    reserve: float
    submissions: int

    def wanted(self, options: LeapOptions, properties: Mapping[str, Any]) -> float:
        """Seconds to request from the service: this submission's share of the time less the reserve, or the minimum."""
        if options.service_seconds is not None:
            return options.service_seconds
        longest = longest_seconds(properties)
        return max(self.minimum, min(longest, self.left / self.submissions - self.reserve))

    @property
    def shortest(self) -> float:
        """The least time limit that leaves room for the service's minimum."""
        return self.limit - self.left + self.minimum + self.reserve


def longest_seconds(properties: Mapping[str, Any]) -> float:
    """The longest time limit that a hybrid solver accepts."""
    return 3600.0 * float(properties.get("maximum_time_limit_hrs", math.inf))


def service_limit(options: LeapOptions, clock: SubmissionTimes, properties: Mapping[str, Any], where: str) -> float:
    """Seconds to request from the service, checked before anything is sent.

    Raises:
        TimeLimitTooShort: when the time limit, or ``service_seconds``, does not cover the minimum.
        InvalidSolverOption: when ``service_seconds`` is more than the service or the time limit allows.
    """
    asked, longest = clock.wanted(options, properties), longest_seconds(properties)
    if asked < clock.minimum:
        raise TimeLimitTooShort(
            f"{where}: service_seconds={asked:g}, but the service needs {clock.minimum:.3g} s at least for this "
            f"problem, which takes {quota_words(properties, clock.minimum)}. Nothing was submitted",
            clock.minimum,
        )
    if asked > longest:
        raise InvalidSolverOption(f"{where}: service_seconds={asked:g}, but the service takes at most {longest:g} s")
    if clock.left < clock.minimum + clock.reserve:
        raise TimeLimitTooShort(
            f"{where}: the service needs {clock.minimum:.3g} s at least for this problem, and time_limit="
            f"{clock.limit:g} s leaves {max(0.0, clock.left - clock.reserve):.3g} s of that after connecting, building "
            f"and a reserve of {clock.reserve:.3g} s for upload and queue; give time_limit="
            f"{math.ceil(10 * clock.shortest) / 10:g} or more, which takes {quota_words(properties, clock.minimum)}. "
            "Nothing was submitted",
            clock.shortest,
        )
    if clock.left < asked + clock.reserve and options.service_seconds is not None:
        raise InvalidSolverOption(
            f"{where}: service_seconds={asked:g} and a reserve of {clock.reserve:.3g} s are more than the "
            f"{clock.left:.3g} s that time_limit={clock.limit:g} leaves; raise the time limit. Nothing was submitted"
        )
    return math.ceil(1000 * asked) / 1000


def quota_seconds(properties: Mapping[str, Any], charged: float) -> float | None:
    """Seconds of the account's quota for the seconds charged; None if no rate is given.

    Example:
        >>> quota_seconds({"quota_conversion_rate": 20}, 5.0)
        0.25
    """
    rate = properties.get("quota_conversion_rate")
    return charged / rate if rate else None


def quota_words(properties: Mapping[str, Any], charged: float) -> str:
    """The quota that charged seconds take, as text for a message."""
    quota = quota_seconds(properties, charged)
    return "quota at an unknown rate" if quota is None else f"{quota:.3g} s of quota"
