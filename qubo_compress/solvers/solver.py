"""The one interface of all solvers, and their register."""

from __future__ import annotations

import importlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import numpy as np

from qubo_compress._internal.registry import Registry
from qubo_compress.errors import InvalidSolverOption, nearest
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.problem.pair_costs import refuse_pair_costs
from qubo_compress.solvers.older_interface import ABILITIES, search_as_in_04, warn_of
from qubo_compress.solvers.search import Search, SearchLimits, SearchOver
from qubo_compress.solvers.solution import RawSolution

__all__ = [
    "RawSolution",
    "Search",
    "SearchLimits",
    "SearchOver",
    "Solver",
    "make_solver",
    "solvers",
]


class Solver(ABC):
    """A method for choice problems: a frozen dataclass whose fields are its options.

    :func:`~qubo_compress.solvers.solve` passes the problem without its ``constant``, which it adds back to all
    energies. It checks energies and budgets afterwards; a bound must be proven.

    Attributes:
        name: in the registry and in solutions.
        optimises: whether it finds obvious optima; see ``testing.check_solver``.
        requires: import names of the optional packages that it needs.
        repeats: whether the same seed and work give the same answer; cloud services do not repeat. If a single answer
            does not repeat, its ``details["repeats"]`` is False.
        remote: whether it needs a connection.
        accepts_pair_costs: whether it takes problems whose budgets have pair costs; otherwise they are refused before
            the search begins.

    Example:
        >>> from qubo_compress import ChoiceProblem, solve
        >>> @dataclass(frozen=True)
        ... class Draws(Solver):
        ...     name = "draws"
        ...
        ...     def run(self, search: Search) -> None:
        ...         for _ in search.rounds():
        ...             search.work += 1
        ...             drawn = search.rng.integers(search.problem.group_sizes)
        ...             if search.problem.is_feasible(drawn):
        ...                 search.keep(drawn)
        >>> solve(ChoiceProblem.random(groups=6, choices=4, seed=0), Draws(), work_limit=50).work
        50
    """

    name: ClassVar[str]
    optimises: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    repeats: ClassVar[bool] = True
    remote: ClassVar[bool] = False
    accepts_pair_costs: ClassVar[bool] = False

    @abstractmethod
    def run(self, search: Search) -> None:
        """Search until the limits are reached or nothing better can be found; keep assignments in ``search``."""

    @property
    def threads(self) -> int | None:
        """Threads that one search uses; None for one per processor."""
        return None

    def with_threads(self, threads: int | None) -> Solver:
        """The same solver with this number of threads, if it has the option ``threads``."""
        same: Solver = _threaded(self, threads)
        return same

    @property
    def encoding(self) -> str:
        """The binary encoding of the problem, for a solver that needs one."""
        return "domain-wall"

    @property
    def largest_bits(self) -> int | None:
        """The largest number of bits that is guaranteed to fit; None without such a limit."""
        return None

    def refuse(self, problem: ChoiceProblem) -> None:
        """Raise :class:`~qubo_compress.errors.UnsupportedProblem` for a problem that it cannot take."""
        if problem.pair_costs is not None and not self.accepts_pair_costs:
            refuse_pair_costs(problem, f"solver {self.name!r}", f"one of: {', '.join(_solvers_of_pair_costs())}")

    def opened(self, seconds: float) -> AbstractContextManager[Solver]:
        """The same solver for several searches, its connection held open for at most ``seconds``."""
        return nullcontext(self)

    def search(self, problem: ChoiceProblem, limits: SearchLimits, rng: np.random.Generator) -> RawSolution:
        """0.4's name for ``run``; removed in the next release."""
        warnings.warn(
            "solver.search(problem, limits, rng) goes with the next release: give the solver to search.part().run",
            DeprecationWarning,
            stacklevel=2,
        )
        search = Search(problem, limits, rng)
        search.run(self)
        return search.result()


def _solvers_of_pair_costs() -> list[str]:
    """Names of the registered solvers that take pair costs, without those that need a connection."""
    kinds = ((name, solvers.get(name)) for name in solvers.names())
    return [name for name, kind in kinds if issubclass(kind, Solver) and kind.accepts_pair_costs and not kind.remote]


def _threaded(solver: Any, threads: int | None) -> Any:
    known = is_dataclass(solver) and any(field.name == "threads" for field in fields(solver))
    return replace(solver, threads=threads) if known else solver  # type: ignore[type-var]


@dataclass(frozen=True)
class _Older(Solver):
    """A solver with the interface of 0.4."""

    solver: Any

    def run(self, search: Search) -> None:
        search_as_in_04(self.solver, search)

    def with_threads(self, threads: int | None) -> Solver:
        return _adapted(_threaded(self.solver, threads))

    @contextmanager
    def opened(self, seconds: float) -> Iterator[Solver]:
        if hasattr(self.solver, "opened"):
            with self.solver.opened(seconds) as ready:
                yield _adapted(ready)
        else:
            yield self


def _adapted(solver: Any) -> Solver:
    """A solver unchanged, or one with 0.4's interface wrapped: ``run`` is added, its declared abilities are kept."""
    if isinstance(solver, Solver):
        return solver
    warn_of(solver)
    abilities = {name: getattr(solver, name) for name in ABILITIES if hasattr(solver, name)}
    kind: type[_Older] = type(_Older.__name__, (_Older,), abilities)
    return kind(solver)


solvers: Registry[type[Solver]] = Registry("solver")


def make_solver(solver: str | Solver, **options: Any) -> Solver:
    """A solver object from its registered name and options; an object is passed through.

    Raises:
        UnknownName: when the name is not registered.
        InvalidSolverOption: when the solver has no such option, or options come with an object.
    """
    if not isinstance(solver, str):
        if options:
            raise InvalidSolverOption("give options either to the solver object or by name, not both")
        return _adapted(solver)
    kind = solvers.get(solver)
    allowed = list(inspect.signature(kind).parameters)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise InvalidSolverOption(
            f"solver {solver!r} has no option {unknown[0]!r}{nearest(unknown[0], allowed) or '.'} It has: "
            f"{', '.join(allowed) or 'none'}"
        )
    return _adapted(kind(**options))


def __getattr__(name: str) -> Any:
    # Verification knows solvers, so that these two can only be looked up once both are there.
    if name not in ("solve", "verify"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "qubo_compress.solvers.verification"
    warnings.warn(
        f"{__name__}.{name} is now {home}.{name}; the old path goes with the next release",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(home), name)
