"""From a model over spins to a chip and back: reduce, embed, submit, read, and account for each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dimod
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import spsolve

from qubo_compress._internal.optional import require
from qubo_compress.encodings.encoding import BitMap, Decoder, Encoding
from qubo_compress.errors import QuboCompressError
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.solvers.dwave.connection import seconds
from qubo_compress.solvers.dwave.qpu_device import Device
from qubo_compress.solvers.dwave.qpu_embedding import Chains
from qubo_compress.solvers.dwave.qpu_options import QpuOptions
from qubo_compress.solvers.samplers.loop import SampleRequest, Samples

CONTROL_NOISE = 0.015
"""Approximate error of a field or coupling on a chip, as a share of the full range (0.01 to 0.02 are reported)."""

_IDLE_ROUNDS = 20
"""Most rounds per submission while reduction alone fixes every bit."""


def chain_strength(bqm: dimod.BinaryQuadraticModel, factor: float) -> float:
    """Uniform torque compensation, factor x root mean square coupling x sqrt(mean degree), over spins.

    Over bits the couplings are four times as large, and chains four times as strong would push everything else below
    the chip's noise; so a model over bits is converted first.

    Example:
        >>> bqm = dimod.BinaryQuadraticModel({0: 1.0, 1: 0.0, 2: 0.0}, {(0, 1): 4.0, (1, 2): -4.0}, 0.0, "BINARY")
        >>> round(chain_strength(bqm, 1.0), 4), round(chain_strength(bqm.change_vartype("SPIN"), 1.0), 4)
        (1.1547, 1.1547)
    """
    spins = bqm if bqm.vartype is dimod.SPIN else bqm.change_vartype(dimod.SPIN, inplace=False)
    compensation = require("dwave.embedding.chain_strength").uniform_torque_compensation
    return float(compensation(spins, prefactor=factor))


def automatic_scale(bqm: dimod.BinaryQuadraticModel, properties: Mapping[str, Any]) -> float:
    """The divisor that brings all fields, couplings and each qubit's sum of couplings into the chip's range.

    Args:
        bqm: over spins on qubits, chains included.
        properties: of the solver: ``h_range``, ``extended_j_range`` or ``j_range``, ``per_qubit_coupling_range``.

    Example:
        >>> bqm = dimod.BinaryQuadraticModel({0: 2.0, 1: 0.0}, {(0, 1): -6.0}, 0.0, "SPIN")
        >>> automatic_scale(bqm, {"h_range": [-4, 4], "extended_j_range": [-2, 1]})
        3.0
    """
    vectors = bqm.to_numpy_vectors(variable_order=list(bqm.variables))
    fields, (rows, columns, couplings) = vectors.linear_biases, vectors.quadratic
    sums = np.zeros(len(fields))
    np.add.at(sums, rows, couplings)
    np.add.at(sums, columns, couplings)
    ranges = (
        (fields, properties.get("h_range", (-4.0, 4.0))),
        (couplings, properties.get("extended_j_range", properties.get("j_range", (-1.0, 1.0)))),
        (sums, properties.get("per_qubit_coupling_range", (-np.inf, np.inf))),
    )
    factors = [
        extreme / bound
        for values, (low, high) in ranges
        for extreme, bound in ((values.min(initial=0.0), low), (values.max(initial=0.0), high))
    ]
    return float(max(factors)) or 1.0


@dataclass(frozen=True)
class DynamicRange:
    """The size of the objective's terms on the chip, as shares of the full range, without chains and penalties.

    Attributes:
        coupling: median over couplers that carry pair energies, relative to the largest ``j_range``.
        field: median over qubits, relative to the largest ``h_range``.
    """

    coupling: float
    field: float


def dynamic_range(
    embedded: dimod.BinaryQuadraticModel, chains: Mapping[int, Any], owner: IntArray, properties: Mapping[str, Any]
) -> DynamicRange:
    """Measure the size of the objective's terms on the chip.

    Args:
        embedded: over spins on qubits, chains included.
        chains: qubits of each variable.
        owner: (n,) group of each variable; couplings within a group are penalties.
        properties: of the solver.
    """
    scale = automatic_scale(embedded, properties)
    group = {qubit: int(owner[variable]) for variable, chain in chains.items() for qubit in chain}
    order = list(embedded.variables)
    vectors = embedded.to_numpy_vectors(variable_order=order)
    of_qubit = np.array([group[qubit] for qubit in order], dtype=np.int64)
    rows, columns, couplings = vectors.quadratic
    between = (of_qubit[rows] != of_qubit[columns]) & (couplings != 0)
    largest_j = float(max(map(abs, properties.get("j_range", (-1.0, 1.0)))))
    largest_h = float(max(map(abs, properties.get("h_range", (-4.0, 4.0)))))
    strengths, fields = np.abs(couplings[between]), np.abs(vectors.linear_biases)
    return DynamicRange(
        coupling=float(np.median(strengths)) / scale / largest_j if strengths.size else 0.0,
        field=float(np.median(fields)) / scale / largest_h if fields.size else 0.0,
    )


def owners(problem: ChoiceProblem, bits: BitMap) -> IntArray:
    """(n,) the group of each bit."""
    first = bits.matrix.tocsc()
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    return np.asarray(group[first.indices[first.indptr[:-1]]], dtype=np.int64)


def bits_of_assignment(problem: ChoiceProblem, encoding: Encoding, assignment: npt.ArrayLike) -> npt.NDArray[np.int8]:
    """(n,) the valid bit pattern of an assignment: the inverse of decoding.

    Example:
        >>> from qubo_compress.encodings import DomainWall
        >>> problem = ChoiceProblem.random(kind="dense", groups=2, choices=4, seed=0)
        >>> bits_of_assignment(problem, DomainWall(), [0, 2]).tolist()
        [1, 1, 1, 1, 0, 0]
    """
    bits = encoding.bit_map(problem)
    selection = -bits.start.copy()
    selection[problem.selected(assignment)] += 1.0
    # The map has full column rank and the selection is in its image, so least squares is exact.
    normal = sparse.csc_array(bits.matrix.T @ bits.matrix)
    solved = spsolve(normal, bits.matrix.T @ selection) if normal.shape[0] else np.zeros(0)
    return np.asarray(np.rint(np.atleast_1d(solved)), dtype=np.int8)


@dataclass
class Account:
    """Costs and results of the submissions of one search."""

    submissions: int = 0
    samples: int = 0
    valid: int = 0
    broken: list[float] = field(default_factory=list)
    ranges: list[DynamicRange] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    fixed: list[int] = field(default_factory=list)
    qubits: int = 0
    longest_chain: int = 0
    best: float = np.inf
    access: float = 0.0
    stages: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("embed", "queue", "programming", "anneal", "readout", "decode"), 0.0)
    )
    failure: QuboCompressError | None = None

    def add_times(self, info: Mapping[str, Any], reads: int, wall: float) -> None:
        """Split the wall clock of one submission by the chip's own figures; the rest is queue and network."""
        timing = seconds(info.get("timing", {}))
        stages = self.stages
        access = timing.get("qpu_access_time", 0.0)
        stages["programming"] += timing.get("qpu_programming_time", 0.0)
        stages["anneal"] += reads * timing.get("qpu_anneal_time_per_sample", 0.0)
        stages["readout"] += reads * timing.get("qpu_readout_time_per_sample", 0.0)
        stages["queue"] += max(0.0, wall - access)
        self.access += access


class EmbeddedSampler:
    """Draws samples for :class:`~qubo_compress.solvers.samplers.loop.SamplingLoop` from a chip.

    Args:
        device: the chip.
        problem: the problem that is encoded.
        encoding: how.
        options: of the solver.
        minor: chains of an embedding of the whole model; None for cliques.
        deadline: of ``time.perf_counter()``.
        state: returns the assignment that the next reverse anneal starts from, or None.
    """

    def __init__(
        self,
        device: Device,
        problem: ChoiceProblem,
        encoding: Encoding,
        options: QpuOptions,
        minor: Chains | None,
        deadline: float,
        state: Callable[[], IntArray] | None = None,
    ) -> None:
        self.device, self.problem, self.encoding = device, problem, encoding
        self.options, self.parameters = options, device.supported(options.parameters())
        self.minor, self.deadline, self.state = minor, deadline, state
        bits = encoding.bit_map(problem)
        self.owner = owners(problem, bits)
        self.decode = Decoder(problem, encoding, bits.matrix.shape[1])
        self.account = Account()
        self._structures: dict[tuple[int, ...], Any] = {}

    def __call__(self, request: SampleRequest) -> Samples | None:
        """One round: at most one submission; None when the search must end."""
        account = self.account
        if account.submissions >= self.options.submissions or request.round >= _IDLE_ROUNDS * self.options.submissions:
            return None
        begin = time.perf_counter()
        fixed = fixed_spins(request.bqm) if self.options.roof_duality else {}
        free = request.bqm.copy()  # type: ignore[no-untyped-call]
        free.fix_variables(fixed)
        account.fixed.append(len(fixed))
        account.stages["embed"] += time.perf_counter() - begin
        if not free.num_variables:
            return Samples(self._rows(fixed, [], np.zeros((1, 0), dtype=np.int8)), 0)
        try:
            return self._sample(free, fixed, request)
        except QuboCompressError as failure:
            if account.submissions == 0:
                raise
            account.failure = failure
            return None

    def _sample(
        self, free: dimod.BinaryQuadraticModel, fixed: Mapping[int, int], request: SampleRequest
    ) -> Samples | None:
        account = self.account
        begin = time.perf_counter()
        structure = self._structure([v for v in range(self.owner.size) if v not in fixed])
        if structure is None:
            return None
        strength = chain_strength(free, self.options.chain_strength_factor)
        embedded = structure.embed_bqm(free, chain_strength=strength, smear_vartype=dimod.SPIN)
        parameters = self._parameters(structure, embedded.num_variables)
        measured = dynamic_range(embedded, structure, self.owner, self.device.properties)
        sent = time.perf_counter()
        account.stages["embed"] += sent - begin
        access = self.device.access_seconds(embedded.num_variables, parameters)
        if access is not None and sent + access > self.deadline and account.submissions:
            return None
        samples = self.device.submit(embedded, parameters, self.deadline, request.stop)
        if samples is None:
            return None
        received = time.perf_counter()
        unembedded = require("dwave.embedding").unembed_sampleset(samples, structure, free, chain_break_fraction=True)
        counts = unembedded.record.num_occurrences
        rows = np.repeat(unembedded.record.sample, counts, axis=0)
        bits = self._rows(fixed, list(unembedded.variables), rows)
        account.submissions += 1
        account.qubits = max(account.qubits, embedded.num_variables)
        account.longest_chain = max(account.longest_chain, structure.max_chain_length)
        account.strengths.append(strength)
        account.ranges.append(measured)
        account.broken.append(float(np.average(unembedded.record.chain_break_fraction, weights=counts)))
        self._judge(bits)
        account.add_times(samples.info, int(counts.sum()), received - sent)
        account.stages["decode"] += time.perf_counter() - received
        return Samples(bits, 1)

    def _structure(self, variables: list[int]) -> Any | None:
        """Chains for the free variables: a clique of their number, or their part of the whole model's embedding."""
        embedded = require("dwave.embedding").EmbeddedStructure
        if self.minor is not None:
            return embedded(self.device.graph.edges, {v: self.minor[v] for v in variables})
        size = len(variables)
        if size > self.device.largest_clique:  # at another price, reduction left fewer variables variables
            return None
        chains = self.device.clique(size)
        key = tuple(variables)
        if key not in self._structures:
            named = dict(zip(variables, chains, strict=True))
            self._structures[key] = embedded(self.device.graph.edges, named)
        return self._structures[key]

    def _parameters(self, structure: Any, qubits: int) -> dict[str, Any]:
        parameters = dict(self.parameters)
        if self.state is not None:
            spins = 2 * bits_of_assignment(self.problem, self.encoding, self.state()) - 1
            parameters["initial_state"] = {q: int(spins[v]) for v, chain in structure.items() for q in chain}
        self.device.check(qubits, parameters)
        return parameters

    def _rows(
        self, fixed: Mapping[int, int], variables: list[Any], spins: npt.NDArray[np.int8]
    ) -> npt.NDArray[np.int8]:
        """(N, n) bits, fixed ones included."""
        rows = np.zeros((len(spins), self.owner.size), dtype=np.int8)
        rows[:, list(fixed)] = [spin > 0 for spin in fixed.values()]
        rows[:, variables] = spins > 0
        return rows

    def _judge(self, bits: npt.NDArray[np.int8]) -> None:
        """Count the raw samples, before any repair."""
        assignments, invalid = self.decode(bits)
        valid = np.asarray(invalid) == 0
        self.account.samples += len(bits)
        self.account.valid += int(valid.sum())
        for assignment in np.unique(assignments[valid], axis=0):
            if self.problem.is_feasible(assignment):
                self.account.best = min(self.account.best, self.problem.energy(assignment))


def fixed_spins(bqm: dimod.BinaryQuadraticModel) -> dict[int, int]:
    """Values of the variables 0, 1, ... that roof duality proves to be equal in all ground states."""
    if not bqm.num_variables:
        return {}
    _, fixed = require("dwave.preprocessing").roof_duality(bqm, strict=True)
    return {variable: int(fixed[variable]) for variable in range(bqm.num_variables) if variable in fixed}
