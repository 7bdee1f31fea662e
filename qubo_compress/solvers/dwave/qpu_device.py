"""The library's view of a structured sampler: a working graph, its name, ranges and times, and a way to submit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dimod
import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.errors import InvalidSolverOption, ServiceFailed
from qubo_compress.solvers.dwave.connection import cancel, cloud_future, is_simulated, resolve, translated
from qubo_compress.solvers.dwave.qpu_embedding import (
    USER_CACHE,
    Chains,
    Cliques,
    EmbeddingCache,
    graph_digest,
    is_chains,
    joins,
)
from qubo_compress.solvers.dwave.token import Secrets

if TYPE_CHECKING:
    import networkx as nx

_DEFAULT_ANNEALING_MICROSECONDS = 20.0
_LONGEST_RUN_MICROSECONDS = 1e6
"""The limit of production chips per submission, for solvers that state none."""


_LARGEST_SHAPE = 64
"""Largest size of a topology; today's largest is 16. Graphs are built whole before broken parts are removed."""


@dataclass(eq=False)
class Device:
    """A chip or its stand-in, with the embeddings of this session.

    Args:
        sampler: a structured dimod sampler whose properties name a topology: ``DWaveSampler``, or Ocean's mock.
        cache: folder of known embeddings; None for none, ``"user"`` for the user's.
        secrets: removed from messages and names.

    Raises:
        InvalidSolverOption: when the sampler has no Chimera, Pegasus or Zephyr graph.

    Example:
        >>> from dwave.system.testing import MockDWaveSampler
        >>> device = Device(MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4]), cache=None)
        >>> device.simulated, device.largest_clique, len(device.clique(12))
        (True, 24, 12)
    """

    sampler: Any
    cache: str | None = USER_CACHE
    secrets: Secrets = field(default_factory=Secrets, repr=False)
    searches: int = 0
    """Number of embeddings that had to be searched, for lack of a cached one."""

    def __post_init__(self) -> None:
        self.graph = _graph_of(self.sampler)
        self.properties: Mapping[str, Any] = self.sampler.properties
        self.identity = self.secrets.mask(_identity_of(self.sampler, self.graph))
        self.store = EmbeddingCache(self.cache, self.identity)
        self._cliques: dict[int, Chains] = {}
        self._table: Cliques | None = None
        self._largest: int | None = None

    @property
    def simulated(self) -> bool:
        """Whether this is not D-Wave's own chip: a mock, a loopback server, or a user's sampler."""
        chip = require("dwave.system").DWaveSampler
        return not isinstance(self.sampler, chip) or is_simulated(self.sampler.solver)

    @property
    def remote(self) -> bool:
        """Whether it is reached over a connection."""
        return hasattr(self.sampler, "client")

    @property
    def name(self) -> str:
        """The solver's name for messages, without secrets."""
        return f"qpu {self.identity.partition(';')[0]}"

    @property
    def largest_clique(self) -> int:
        """The most bits of a dense problem on this chip."""
        if self._largest is None:
            known = self.store.get("largest-clique")
            if type(known) is not int or not 0 <= known <= len(self.graph):
                known = self._all_cliques().largest
                self.store.put("largest-clique", known)
            self._largest = known
        return self._largest

    def clique(self, size: int) -> Chains:
        """Chains for a dense problem of at most ``largest_clique`` bits, cached in the session and on disk."""
        if size not in self._cliques:
            self._cliques[size] = self.remembered(
                f"clique-{size}", size, None, lambda: self._all_cliques().chains(size)
            )
        return self._cliques[size]

    def _all_cliques(self) -> Cliques:
        if self._table is None:
            self._table = Cliques(self.graph)
        return self._table

    def remembered(
        self,
        key: str,
        size: int,
        couplings: list[tuple[int, int]] | None,
        search: Callable[[], Chains | None],
    ) -> Chains:
        """Chains from the disk cache if they still fit the graph, else from a search; empty if it finds none."""
        kept = self.store.get(key)
        if is_chains(kept, size) and joins(self.graph, kept, couplings):
            return list(kept)
        self.searches += 1
        found = search()
        if found is None:
            return []
        self.store.put(key, found)
        return found

    def access_seconds(self, qubits: int, parameters: Mapping[str, Any]) -> float | None:
        """Seconds of chip time for one submission, by the chip's own timing model; None without one."""
        estimate = getattr(getattr(self.sampler, "solver", None), "estimate_qpu_access_time", None)
        if estimate is None:
            return None
        try:
            return float(estimate(qubits, **parameters)) / 1e6
        except (KeyError, ValueError):  # no timing data, or a timing model that this client does not know
            return None

    def check(self, qubits: int, parameters: Mapping[str, Any]) -> None:
        """Refuse parameters that the chip would refuse, before anything is sent.

        Raises:
            InvalidSolverOption: for reads, times or a duration out of the chip's range.
        """
        for option in ("num_reads", "annealing_time"):
            low, high = self.properties.get(f"{option}_range", (0, np.inf))
            value = parameters.get(option, low)
            if not low <= value <= high:
                raise InvalidSolverOption(f"{option} must be from {low} to {high} on {self.name}; got {value}")
        reads = int(parameters["num_reads"])
        longest = float(self.properties.get("problem_run_duration_range", (0, _LONGEST_RUN_MICROSECONDS))[1]) / 1e6
        fixed, per_read = self._run_seconds(qubits, parameters)
        if fixed + reads * per_read > longest:
            raise InvalidSolverOption(
                f"num_reads={reads} takes {fixed + reads * per_read:.3g} s of chip time in one submission and "
                f"{self.name} allows {longest:.3g} s; ask for at most {max(0, int((longest - fixed) / per_read))} "
                "reads, a shorter annealing_time, or more submissions"
            )

    def _run_seconds(self, qubits: int, parameters: Mapping[str, Any]) -> tuple[float, float]:
        """Seconds per submission and per read; without a timing model, only the anneals."""
        one = self.access_seconds(qubits, {**parameters, "num_reads": 1})
        two = self.access_seconds(qubits, {**parameters, "num_reads": 2})
        schedule = parameters.get("anneal_schedule")
        default = self.properties.get("default_annealing_time", _DEFAULT_ANNEALING_MICROSECONDS)
        anneal = float(schedule[-1][0] if schedule else parameters.get("annealing_time", default)) / 1e6
        if one is None or two is None:
            return 0.0, anneal
        return one - (two - one), max(anneal, two - one)

    def submit(
        self, bqm: dimod.BinaryQuadraticModel, parameters: Mapping[str, Any], deadline: float, stop: Callable[[], bool]
    ) -> dimod.SampleSet | None:
        """Sample an embedded model; None if ``stop`` asked to end, and the problem was cancelled.

        Args:
            bqm: over qubits and couplers.
            parameters: of the submission.
            deadline: of ``time.perf_counter()``.
            stop: polled several times a second.

        Raises:
            RemoteTimeout: when the deadline passed first.
            RemoteSolverError: another subclass, for any other failure.
        """
        samples: dimod.SampleSet
        if not self.remote:
            samples = self.sampler.sample(bqm, **parameters)
            return samples
        with translated(self.name, self.secrets):
            samples = self.sampler.sample(bqm, **parameters)
        job = cloud_future(samples)
        while not job.wait(0.05) and time.perf_counter() < deadline:
            if stop():
                cancel(job)
                return None
        job = resolve(job, deadline, self.name, self.secrets)
        with translated(self.name, self.secrets):
            samples = job.sampleset
            samples.resolve()  # type: ignore[no-untyped-call]
        return samples

    def supported(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The given parameters without those that the sampler does not know."""
        return {name: value for name, value in parameters.items() if name in self.sampler.parameters}


def _graph_of(sampler: Any) -> nx.Graph:
    qpu_graph = require("dwave.system").qpu_graph
    try:
        topology = sampler.properties["topology"]
        if not all(1 <= size <= _LARGEST_SHAPE for size in topology["shape"]):
            raise ValueError(f"shape {topology['shape']}")
        graph = qpu_graph(topology["type"], topology["shape"], sampler.nodelist, sampler.edgelist)
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        if hasattr(sampler, "client"):
            raise ServiceFailed(
                f"the service describes the chip in a way that cannot be used ({type(cause).__name__}: {cause}), and "
                "nothing was submitted; name another solver, or report it to the service"
            ) from cause
        raise InvalidSolverOption(
            f"sampler must be structured, with a Chimera, Pegasus or Zephyr topology among its properties; "
            f"{type(sampler).__name__} is not ({cause}). Give a DWaveSampler, or leave sampler out"
        ) from cause
    return graph


def _identity_of(sampler: Any, graph: nx.Graph) -> str:
    """``name;graph_id`` from the service; for samplers without an id, a digest of the graph replaces it."""
    identity = getattr(getattr(sampler, "solver", None), "identity", None)
    if identity is not None and getattr(identity, "version", None) is not None:
        return str(identity)
    name = sampler.properties.get("chip_id", type(sampler).__name__)
    return f"{name};graph={graph_digest(graph)}"
