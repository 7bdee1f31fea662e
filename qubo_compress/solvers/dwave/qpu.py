"""D-Wave's annealers used directly: a problem that fits the chip is sent whole, any other is refused at once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import DryRun
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.solvers.dwave.connection import connection_of, opened
from qubo_compress.solvers.dwave.qpu_device import Device
from qubo_compress.solvers.dwave.qpu_options import QpuOptions
from qubo_compress.solvers.dwave.qpu_search import QpuPreview, QpuSearch, classical_start
from qubo_compress.solvers.dwave.token import Secrets
from qubo_compress.solvers.search import Search, SearchLimits
from qubo_compress.solvers.solver import solvers

__all__ = ["Qpu", "QpuPreview"]

_PREVIEW_SECONDS = 30.0
_UNCONNECTED: Mapping[str, Any] = {"connection": None, "endpoint": None, "token": None, "service_solver": None}


@solvers.register
@dataclass(frozen=True)
class Qpu(QpuOptions):
    """Sample the encoded problem on a quantum annealer, searching for the budgets' prices.

    Dominated choices and bits fixed by roof duality are removed first. The rest must fit the chip's largest clique, or
    be sparse enough for another embedding; otherwise the problem is refused before anything is searched or sent. Each
    round of the price search is one submission. Samples over budget are repaired, and the rest of a budget is spent,
    both classically; ``details`` says how good the samples were before that.

    See its options in :class:`~qubo_compress.solvers.dwave.qpu_options.QpuOptions`.

    Example:
        >>> from dwave.system.testing import MockDWaveSampler
        >>> from qubo_compress import ChoiceProblem, solve
        >>> chip = MockDWaveSampler(topology_type="zephyr", topology_shape=[3, 4])
        >>> problem = ChoiceProblem.random(kind="dense", groups=6, choices=4, seed=0)
        >>> solution = solve(problem, Qpu(sampler=chip, submissions=3, cache=None), time_limit=30.0)
        >>> problem.is_feasible(solution.assignment), solution.work <= 3, solution.details["simulated"]
        (True, True, True)
    """

    name: ClassVar[str] = "qpu"

    def run(self, search: Search) -> None:
        """Submit until the submissions (the work) or the time are used up.

        Raises:
            DryRun: with ``dry_run=True``.
            ProblemTooLarge: the chip has no room for the problem; nothing was submitted.
            RemoteSolverError: a subclass, if the first submission fails; if a later one fails, the earlier answers are
                kept, and a note says why the search ended.
        """
        try:
            with self.opened(search.limits.seconds) as ready:
                submissions = QpuSearch(ready, search)
                if self.dry_run:
                    preview = submissions.preview()
                    raise DryRun(f"dry run, nothing was submitted: {preview}", preview)
                submissions.run()
        except KeyboardInterrupt:
            if "submissions" not in search.details:
                _keep_classical_start(search)
            raise

    def preview(self, problem: ChoiceProblem) -> QpuPreview:
        """Bits, embedding and chip time of a search, without submitting anything.

        Raises:
            ProblemTooLarge: as a search would.
            InvalidSolverOption: for reads or times that the chip does not accept.
            RemoteSolverError: when the service cannot be reached.
        """
        search = Search(problem, SearchLimits(_PREVIEW_SECONDS), np.random.default_rng(0))
        with self.opened(_PREVIEW_SECONDS) as ready:
            return QpuSearch(ready, search).preview()

    @contextmanager
    def opened(self, seconds: float) -> Iterator[Qpu]:
        """The same solver, its connection held open and its embeddings kept, for several searches.

        Args:
            seconds: most seconds for all of them together.
        """
        if isinstance(self.sampler, Device):
            yield self
        elif self.sampler is not None:
            yield replace(self, sampler=Device(self.sampler, self.cache, _secrets_of(self.sampler)))
        else:
            chip = require("dwave.system").DWaveSampler
            deadline = time.perf_counter() + seconds
            connection = connection_of(self.connection, self.endpoint, self.token, self.service_solver)
            with opened(chip, connection, deadline) as sampler:
                yield replace(self, sampler=Device(sampler, self.cache, sampler.client.secrets), **_UNCONNECTED)

    @property
    def largest_bits(self) -> int | None:
        """The most bits that are sure to fit; known while :meth:`opened`."""
        return self.sampler.largest_clique if isinstance(self.sampler, Device) else None


def _secrets_of(sampler: Any) -> Secrets:
    """The token of a sampler that the user connected."""
    token = getattr(getattr(getattr(sampler, "client", None), "config", None), "token", None)
    return Secrets(token if isinstance(token, str) else None)


def _keep_classical_start(search: Search) -> None:
    """The answer to Ctrl-C before the first submission: only the classical start."""
    start = classical_start(search.problem, search.rng)
    if search.problem.is_feasible(start):
        search.keep(start)
    search.notes.append("interrupted before anything was submitted; the answer is the classical start")
    search.details["submissions"] = 0


def __getattr__(name: str) -> Any:
    if name != "Preview":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("Preview of chips is now QpuPreview; the old name goes with the next release", DeprecationWarning, 2)
    return QpuPreview
