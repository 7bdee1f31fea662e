"""What every binary encoding of a choice problem is: a linear map from bits to choices, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import dimod
import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.errors import InvalidAssignment, InvalidProblem
from qubo_compress.problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.registry import Registry

LARGEST_COUPLINGS = 100_000_000
"""Most couplings that are built; at 24 bytes each while building, about 2.4 GB."""

PENALTY_SHARE = 0.1
"""Default penalty, as a share of the worst case. At the worst case itself single flips freeze: measured on
dense problems, samplers work between about 0.08 and 0.15 of it, and groups stay valid."""


class Decoded(NamedTuple):
    """Assignments read from samples.

    Attributes:
        assignments: (G,) or (N, G) local choices; invalid groups are repaired.
        invalid: () or (N,) how many groups of each sample had to be.
    """

    assignments: IntArray
    invalid: IntArray


@dataclass(frozen=True, eq=False)
class BitMap:
    """Selection indicators as a linear function of bits: x = matrix @ bits + start.

    Attributes:
        matrix: (V, n) sparse, entries -1, 0 and 1.
        start: (V,) what is selected when all bits are zero.
    """

    matrix: sparse.csr_array
    start: FloatArray


class Encoding(Protocol):
    """One way to write a choice per group in bits."""

    name: ClassVar[str]

    def bit_map(self, problem: ChoiceProblem) -> BitMap:
        """How bits select choices; valid patterns select exactly one per group."""
        ...

    def worst_case(self, problem: ChoiceProblem, coupling_sums: FloatArray, linear: FloatArray) -> FloatArray:
        """(G,) penalties at which every ground state is certainly valid."""
        ...

    def penalty_terms(self, problem: ChoiceProblem, penalties: FloatArray) -> tuple[FloatArray, Couplings, float]:
        """Linear terms, couplings and constant that add the penalty of every invalid group, and 0 if valid."""
        ...

    def decode(self, problem: ChoiceProblem, bits: npt.NDArray[np.int8]) -> Decoded:
        """Assignments of (N, n) bits, with invalid groups repaired and counted."""
        ...


class Couplings(NamedTuple):
    """Pairs of bits and their energies; each pair stands once."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    values: FloatArray


encodings: Registry[type[Encoding]] = Registry("encoding")


def pair_matrix(problem: ChoiceProblem) -> sparse.csr_array:
    """(V, V) pair energies, multiplied out when the problem has a factor.

    Raises:
        InvalidProblem: when that would take more couplings than :data:`LARGEST_COUPLINGS`.
    """
    if problem.pairs is not None:
        return problem.pairs
    if problem.factor is None:
        return sparse.csr_array((problem.num_choices, problem.num_choices))
    couplings = problem.num_choices**2 // 2
    if couplings > LARGEST_COUPLINGS:
        raise InvalidProblem(
            f"a binary quadratic model of this problem would take about {couplings:,} couplings; at most "
            f"{LARGEST_COUPLINGS:,} are built. Use a solver that reads the factor itself, such as 'annealer'"
        )
    factor = problem.factor.astype(np.float64)
    gram = factor @ factor.T
    groups = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    gram[groups[:, None] == groups[None, :]] = 0.0
    return sparse.csr_array(gram)


def build_bqm(
    problem: ChoiceProblem, encoding: Encoding, linear: FloatArray, constant: float, penalty: npt.ArrayLike | None
) -> dimod.BinaryQuadraticModel:
    """The binary quadratic model with given linear terms, from numpy vectors throughout."""
    pairs = pair_matrix(problem)
    penalties = _penalties(problem, encoding, pairs, linear, penalty)
    bits = encoding.bit_map(problem)
    selected = pairs @ bits.start
    fields = bits.matrix.T @ (linear + selected)
    offset = constant + float(linear @ bits.start) + 0.5 * float(bits.start @ selected)
    upper = sparse.triu(bits.matrix.T @ pairs @ bits.matrix, k=1).tocoo()
    extra_fields, extra, extra_offset = encoding.penalty_terms(problem, penalties)
    return dimod.BinaryQuadraticModel.from_numpy_vectors(
        np.asarray(fields, dtype=np.float64) + extra_fields,
        (
            np.concatenate([upper.row, extra.rows]),
            np.concatenate([upper.col, extra.columns]),
            np.concatenate([upper.data, extra.values]),
        ),
        offset + extra_offset,
        dimod.BINARY,
    )


def worst_case_penalties(problem: ChoiceProblem, encoding: Encoding, linear: FloatArray | None = None) -> FloatArray:
    """(G,) penalties at which every ground state is certainly valid; far too stiff to sample with."""
    pairs = pair_matrix(problem)
    return encoding.worst_case(problem, _coupling_sums(pairs), problem.linear if linear is None else linear)


def _coupling_sums(pairs: sparse.csr_array) -> FloatArray:
    return np.asarray(abs(pairs).sum(axis=1), dtype=np.float64).ravel()


def _penalties(
    problem: ChoiceProblem,
    encoding: Encoding,
    pairs: sparse.csr_array,
    linear: FloatArray,
    penalty: npt.ArrayLike | None,
) -> FloatArray:
    if penalty is None:
        return PENALTY_SHARE * encoding.worst_case(problem, _coupling_sums(pairs), linear)
    given = np.asarray(penalty, dtype=np.float64)
    if given.shape not in ((), (problem.num_groups,)) or not (np.isfinite(given).all() and (given >= 0).all()):
        raise InvalidProblem(
            f"penalty must be one non-negative number or one per group ({problem.num_groups}); got {penalty!r}"
        )
    return np.broadcast_to(given, problem.num_groups).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Decoder:
    """Reads assignments from a dimod sample set, one sample (a mapping or a row of bits) or many rows."""

    problem: ChoiceProblem
    encoding: Encoding
    num_bits: int

    def __call__(self, samples: Any) -> Decoded:
        """Assignments, with invalid groups repaired and counted.

        Raises:
            InvalidAssignment: when the samples have another number of bits.
        """
        rows = self._rows(samples)
        if rows.shape[-1] != self.num_bits:
            raise InvalidAssignment(f"samples of this model have {self.num_bits} bits; got {rows.shape[-1]}")
        decoded = self.encoding.decode(self.problem, np.atleast_2d(rows))
        if rows.ndim == 1:
            return Decoded(decoded.assignments[0], decoded.invalid[0])
        return decoded

    def _rows(self, samples: Any) -> npt.NDArray[np.int8]:
        if isinstance(samples, dimod.SampleSet):
            binary = samples.change_vartype(dimod.BINARY, inplace=False)  # type: ignore[no-untyped-call]
            order = np.argsort(np.array(list(binary.variables), dtype=np.int64))
            return np.asarray(binary.record.sample[:, order], dtype=np.int8)
        if isinstance(samples, Mapping):
            return np.array([samples[i] for i in range(self.num_bits) if i in samples], dtype=np.int8)
        return np.asarray(samples, dtype=np.int8)
