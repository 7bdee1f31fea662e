"""Every exception that the library raises on purpose.

All derive from :class:`QuboCompressError`, so one ``except`` clause catches the library's own errors and lets
programming errors through. Each message says what was given, what is allowed and what to do about it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from qubo_compress._internal.text import printable

ALIKE = 0.6
"""From which share of equal letters on a known name is suggested; at 0.4, 'surrogate' was, for gurobi."""

MOST_LISTED, SHOWN = 30, 10
"""Longest list of known names that a message shows whole, and how many names it shows of a longer one."""


class QuboCompressError(Exception):
    """Base class of all errors raised by ``qubo_compress``.

    Messages may quote names of modules and the like; control characters in them are escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class InvalidProblem(QuboCompressError, ValueError):
    """The arrays given do not describe a choice problem."""


class InvalidAssignment(QuboCompressError, ValueError):
    """An assignment does not pick one existing choice per group."""


class InvalidBudget(QuboCompressError, ValueError):
    """A budget is contradictory, incomplete or out of range."""


class InfeasibleBudget(QuboCompressError, ValueError):
    """Proven: no assignment fits the budget.

    Attributes:
        smallest: the smallest reachable value of the budget named, where that is known.
    """

    def __init__(self, message: str, smallest: int | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class NoFeasibleFound(QuboCompressError):
    """A solver found no assignment within the budget, but did not prove that none exists."""


class InvalidSolverOption(QuboCompressError, ValueError):
    """A solver was given an option that it does not know or a value out of range."""


class MissingDependency(QuboCompressError, ImportError):
    """An optional package is missing; the message gives the ``pip install`` command."""


class ProblemTooLarge(QuboCompressError, ValueError):
    """A problem does not fit the solver; the message names both sizes and a solver that takes it."""


class UnsupportedProblem(QuboCompressError, ValueError):
    """A solver or a model cannot express the problem; the message says what it lacks, and names one that can."""


class TimeLimitTooShort(InvalidSolverOption):
    """The time limit is too short for the solver.

    Attributes:
        minimum: the shortest time limit that it accepts, in seconds.
    """

    def __init__(self, message: str, minimum: float) -> None:
        super().__init__(message)
        self.minimum = minimum


class RemoteSolverError(QuboCompressError):
    """Base class of errors between this machine and a solver in the cloud."""


class MissingToken(RemoteSolverError):
    """No API token is configured; nothing was sent."""


class InvalidToken(RemoteSolverError):
    """The API token is malformed, would have been pickled, or was rejected by the service."""


class SolverUnavailable(RemoteSolverError):
    """The service has no solver of that name or with those features, or it is offline."""


class QuotaExceeded(RemoteSolverError):
    """The account's time or request quota is used up."""


class RequestRejected(RemoteSolverError):
    """The service refused the request (HTTP 4xx, or a problem that it calls invalid)."""


class ServiceFailed(RemoteSolverError):
    """The service failed or broke the connection (HTTP 5xx); the problem may or may not have been solved."""


class UploadFailed(ServiceFailed):
    """The service failed while the problem was uploaded; nothing was submitted, and nothing is charged."""


class RedirectRefused(RemoteSolverError):
    """The service redirects to another address, which the API token must not be sent to."""


class RemoteTimeout(RemoteSolverError):
    """The service did not answer in time, or cannot be reached."""


class RemoteCancelled(RemoteSolverError):
    """The problem was cancelled before it was solved."""


class ServiceDeprecation(FutureWarning):
    """A warning: the service says that something this connection used will be switched off, with its dates."""


class DryRun(QuboCompressError):
    """Raised for ``dry_run=True``: nothing was submitted and there is no solution, only a preview.

    Attributes:
        preview: what a submission would cost; see ``qubo_compress.solvers.Preview``.
    """

    def __init__(self, message: str, preview: object) -> None:
        super().__init__(message)
        self.preview = preview


class UnknownName(QuboCompressError, ValueError):
    """A name is not registered; the message suggests the nearest one."""


class InvalidBatches(QuboCompressError, ValueError):
    """The calibration batches are empty, malformed or do not suit the network."""


class InvalidOption(QuboCompressError, ValueError):
    """An argument of a call, such as a seed, is of the wrong kind or out of range."""


class UnknownOption(QuboCompressError, TypeError):
    """A keyword argument that the call does not have."""


class WrongUsage(QuboCompressError, ValueError):
    """An option or a recipe of the command line is wrong; the message says where it was given."""


class OwnCodeFailed(QuboCompressError, RuntimeError):
    """A function that a recipe names raised an error, or returned something of another type."""


class InvalidModel(QuboCompressError, ValueError):
    """The model cannot be compressed, for example because a weight is not finite."""


class ForwardFailed(QuboCompressError, RuntimeError):
    """The model's own ``forward`` raised while it was being measured; the model is left unchanged."""


class InvalidMenu(QuboCompressError, ValueError):
    """A menu, an operator or a grouping rule is contradictory or out of range."""


class InvalidChannel(QuboCompressError, ValueError):
    """A parameter of an unreliable memory is out of range, or the memory cannot hold what it is asked to."""


class InvalidObjective(QuboCompressError, ValueError):
    """A recovery objective is contradictory, out of range, or lacks labels or a teacher."""


class NonFiniteLoss(QuboCompressError, ValueError):
    """A loss is NaN or infinite where a number is needed."""


class CacheMismatch(QuboCompressError, ValueError):
    """A cache on disk was written for other weights, other data or other settings."""


class RankFailed(QuboCompressError, RuntimeError):
    """Another rank of the process group that shares a measurement raised an error or stopped answering.

    Attributes:
        rank: the failing rank's number in the process group; None when it is unknown.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class RanksDisagree(QuboCompressError, ValueError):
    """The ranks of a process group got different arguments; nothing was measured."""


class TablesDiffer(QuboCompressError, ValueError):
    """Sensitivity tables cannot be merged because they differ in network, choices, metric or loss."""


class StorageError(QuboCompressError, OSError):
    """A file could not be read, or could not be written, for example because the disk is full; nothing was replaced."""


class ExportRefused(QuboCompressError, ValueError):
    """A network has no form in a format of another program, or computes something else there; nothing was written."""


class WrongModel(QuboCompressError, ValueError):
    """A plan or an artifact belongs to another architecture or to other weights."""


class CorruptArtifact(QuboCompressError, ValueError):
    """A file is truncated, altered or not an artifact of this library."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """Build the error for a name that is not registered, with the nearest known one.

    Example:
        >>> str(unknown_name("solver", "anealer", ["annealer", "exact"]))
        "unknown solver 'anealer'; did you mean 'annealer'? Known: annealer, exact"
    """
    names = sorted(known)
    hint = nearest(given, names) or "."
    shown = names if len(names) <= MOST_LISTED else [*names[:SHOWN], f"and {len(names) - SHOWN} more"]
    return UnknownName(f"unknown {kind} {given!r}{hint} Known: {', '.join(shown)}")


def nearest(given: object, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the nearest known name, or "" when none is near.

    Nothing is suggested if a known name has other numbers only, as ``bits=8`` instead of ``bits=5``: that is no slip.

    Example:
        >>> nearest("restart", ["restarts", "threads"]), nearest("x", ["restarts"])
        ("; did you mean 'restarts'?", '')
        >>> nearest("quantize(bits=5)", ["quantize(bits=8)"])
        ''
    """
    names = list(known)
    if not isinstance(given, str) or _without_values(given) in {_without_values(name) for name in names} - {given}:
        return ""
    near = difflib.get_close_matches(given, names, n=1, cutoff=ALIKE)
    return f"; did you mean {near[0]!r}?" if near else ""


def _without_values(name: str) -> str:
    return re.sub(r"=[\d.]+", "=", name)
