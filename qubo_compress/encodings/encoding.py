"""The interface of binary encodings of a choice problem: a linear map from bits to choices, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import dimod
import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress._internal.registry import Registry
from qubo_compress.encodings.budgets import Square
from qubo_compress.encodings.quadratic import PairEnergies, binary_model, coupling_sums, pair_energies
from qubo_compress.errors import InvalidAssignment, InvalidProblem
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray

PENALTY_SHARE = 0.1
"""Default penalty, as a share of the worst case. At the worst case itself, single flips freeze; on dense problems,
samplers were measured to work between about 0.08 and 0.15 of it, and groups stay valid."""


class Decoded(NamedTuple):
    """Assignments read from samples.

    Attributes:
        assignments: (G,) or (N, G) local choices; invalid groups are repaired.
        invalid: () or (N,) how many groups of each sample were repaired.
    """

    assignments: IntArray
    invalid: IntArray


@dataclass(frozen=True, eq=False)
class BitMap:
    """Selection indicators as a linear function of bits: x = matrix @ bits + start.

    Attributes:
        gains: (n,) the choice that each bit selects.
        losses: (n,) the choice that it deselects, or None if bits deselect nothing.
        start: (V,) the selection when all bits are zero.
    """

    gains: IntArray
    losses: IntArray | None
    start: FloatArray

    @property
    def matrix(self) -> sparse.csr_array:
        """(V, n) sparse, entries -1, 0 and 1."""
        bit, rows, signs = np.arange(self.gains.size), [self.gains], [np.ones(self.gains.size)]
        if self.losses is not None:
            rows.append(self.losses)
            signs.append(-np.ones(self.losses.size))
        columns = np.tile(bit, len(rows))
        entries = (np.concatenate(signs), (np.concatenate(rows), columns))
        return sparse.coo_array(entries, shape=(self.start.size, bit.size)).tocsr()

    def of_choices(self, values: FloatArray) -> FloatArray:
        """(n,) matrix.T @ values: how each bit changes a sum over the selected choices."""
        return values[self.gains] if self.losses is None else values[self.gains] - values[self.losses]

    def of_pairs(self, pairs: PairEnergies) -> PairEnergies:
        """(n, n) matrix.T @ pairs @ matrix."""
        if not isinstance(pairs, np.ndarray):
            matrix = self.matrix
            return sparse.csr_array(matrix.T @ pairs @ matrix)
        if self.losses is None:
            return pairs[np.ix_(self.gains, self.gains)]
        rows = pairs[self.gains]
        rows -= pairs[self.losses]
        columns = np.take(rows, self.gains, axis=1)
        columns -= np.take(rows, self.losses, axis=1)
        return columns


class Encoding(ABC):
    """One way to write a choice per group in bits.

    Attributes:
        name: as it is registered.
        single_flips: whether one flip leads from each choice to the next; otherwise a change must cross a penalty.
    """

    name: ClassVar[str]
    single_flips: ClassVar[bool] = False

    @abstractmethod
    def num_bits(self, problem: ChoiceProblem) -> int:
        """The number of bits that the choices take."""

    @abstractmethod
    def bit_map(self, problem: ChoiceProblem) -> BitMap:
        """How bits select choices; valid patterns select exactly one per group."""

    @abstractmethod
    def worst_case(self, problem: ChoiceProblem, coupling_sums: FloatArray, linear: FloatArray) -> FloatArray:
        """(G,) penalties at which every ground state is guaranteed to be valid."""

    @abstractmethod
    def penalty_terms(self, problem: ChoiceProblem, penalties: FloatArray) -> tuple[FloatArray, Couplings, float]:
        """Linear terms, couplings and a constant that sum to the penalties of invalid groups, 0 if all are valid."""

    @abstractmethod
    def decode(self, problem: ChoiceProblem, bits: npt.NDArray[np.int8]) -> Decoded:
        """Assignments from (N, n) bits, with invalid groups repaired and counted."""


class Couplings(NamedTuple):
    """Pairs of bits and their energies; each pair is listed once."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    values: FloatArray


encodings: Registry[type[Encoding]] = Registry("encoding")


def build_bqm(
    problem: ChoiceProblem,
    encoding: Encoding,
    linear: FloatArray,
    constant: float,
    penalty: npt.ArrayLike | None,
    *,
    squares: tuple[Square, ...] = (),
    pairs: PairEnergies | None = None,
) -> dimod.BinaryQuadraticModel:
    """The binary quadratic model with given linear terms, built with numpy vectors.

    Args:
        problem: the problem.
        encoding: how choices become bits.
        linear: (V,) energies of the choices, including the budgets' terms.
        constant: energy of every assignment.
        penalty: of an invalid group, one number or one per group; None for the default rule of :func:`penalties_of`.
        squares: of the budgets; their slack bits follow the bits of the choices.
        pairs: of the problem, if they are already computed, and of the budgets.

    Raises:
        InvalidProblem: for a penalty out of range.
        ProblemTooLarge: if there would be too many couplings.
    """
    if pairs is None:
        pairs = pair_energies(problem, dense=True if squares else None)
    elif squares and not isinstance(pairs, np.ndarray):
        pairs = pairs.toarray()
    bits = encoding.bit_map(problem)
    selected = np.asarray(pairs @ bits.start)
    fields = bits.of_choices(linear + selected)
    offset = constant + float(linear @ bits.start) + 0.5 * float(bits.start @ selected)
    couplings = bits.of_pairs(pairs)
    penalties = penalties_of(problem, encoding, pairs, linear, penalty, squares)
    extra_fields, extra, extra_offset = encoding.penalty_terms(problem, penalties)
    couplings = _with_couplings(couplings, extra)
    fields, offset = fields + extra_fields, offset + extra_offset
    if squares:
        fields, couplings, offset = _with_squares(bits, fields, couplings, offset, squares)
    return binary_model(fields, couplings, offset)


def _with_couplings(pairs: PairEnergies, extra: Couplings) -> PairEnergies:
    """Add couplings in the upper triangle, the only part that a model reads."""
    if isinstance(pairs, np.ndarray):
        pairs[extra.rows, extra.columns] += extra.values
        return pairs
    added = sparse.coo_array((extra.values, (extra.rows, extra.columns)), shape=pairs.shape)
    return sparse.csr_array(sparse.csr_array(pairs) + added.tocsr())


def _with_squares(
    bits: BitMap, fields: FloatArray, pairs: PairEnergies, offset: float, squares: tuple[Square, ...]
) -> tuple[FloatArray, PairEnergies, float]:
    """Add squares: each is a vector over all bits, and its couplings are that vector's outer product."""
    chosen = fields.size
    total = chosen + sum(square.slack.size for square in squares)
    wide = np.zeros((total, total))
    wide[:chosen, :chosen] = pairs
    all_fields = np.concatenate([fields, np.zeros(total - chosen)])
    place = chosen
    for square in squares:
        vector = np.zeros(total)
        vector[:chosen] = bits.of_choices(square.costs)
        vector[place : place + square.slack.size] = square.slack
        place += square.slack.size
        rest = square.offset + float(square.costs @ bits.start)
        wide += np.outer(2.0 * square.weight * vector, vector)
        all_fields += square.weight * (vector**2 + 2.0 * rest * vector)
        offset += square.weight * rest**2
    return all_fields, wide, offset


def worst_case_penalties(problem: ChoiceProblem, encoding: Encoding, linear: FloatArray | None = None) -> FloatArray:
    """(G,) penalties at which every ground state is guaranteed to be valid; far too stiff to sample with.

    Squares of budgets are not included: if a model has some (``slack``, ``unbalanced``), add the largest
    energy that breaking a group could save, such as :func:`~qubo_compress.encodings.budgets.energy_spread`.
    """
    sums = coupling_sums(pair_energies(problem))
    return encoding.worst_case(problem, sums, problem.linear if linear is None else linear)


def penalties_of(
    problem: ChoiceProblem,
    encoding: Encoding,
    pairs: PairEnergies,
    linear: FloatArray,
    penalty: npt.ArrayLike | None = None,
    squares: tuple[Square, ...] = (),
) -> FloatArray:
    """(G,) penalties: as given, or :data:`PENALTY_SHARE` of each group's own worst case.

    They are per group because energies of layers differ by orders of magnitude. The worst case includes the budgets'
    squares, which are couplings between choices.
    """
    if penalty is None:
        sums, fields = coupling_sums(pairs), linear
        for square in squares:
            magnitude = np.abs(square.costs)
            everything = float(np.maximum.reduceat(magnitude, problem.group_offsets[:-1]).sum())
            sums = sums + 2.0 * square.weight * magnitude * everything
            fields = fields + square.weight * (square.costs**2 + 2.0 * square.offset * square.costs)
        return PENALTY_SHARE * encoding.worst_case(problem, sums, fields)
    given = np.asarray(penalty, dtype=np.float64)
    if given.shape not in ((), (problem.num_groups,)) or not (np.isfinite(given).all() and (given >= 0).all()):
        raise InvalidProblem(
            f"penalty must be one non-negative number or one per group ({problem.num_groups}); got {penalty!r}"
        )
    return np.broadcast_to(given, problem.num_groups).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Decoder:
    """Reads assignments from a dimod sample set, one sample (a mapping or a row of bits) or many rows.

    Attributes:
        problem: the problem.
        encoding: of the choices in bits.
        num_bits: of the model; those after the choices' bits are slack bits, which are not read.
    """

    problem: ChoiceProblem
    encoding: Encoding
    num_bits: int

    def __call__(self, samples: Any) -> Decoded:
        """Assignments, with invalid groups repaired and counted.

        Raises:
            InvalidAssignment: if the samples have another number of bits.
        """
        rows = self._rows(samples)
        if rows.shape[-1] != self.num_bits:
            raise InvalidAssignment(f"samples of this model have {self.num_bits} bits; got {rows.shape[-1]}")
        decoded = self.encoding.decode(self.problem, np.atleast_2d(rows)[:, : self.encoding.num_bits(self.problem)])
        if rows.ndim == 1:
            return Decoded(decoded.assignments[0], decoded.invalid[0])
        return decoded

    def _rows(self, samples: Any) -> npt.NDArray[np.int8]:
        if isinstance(samples, dimod.SampleSet):
            # Samples of constrained models may call their bits integers. Bits are 0 and 1, spins -1 and 1.
            order = np.argsort(np.array(list(samples.variables), dtype=np.int64))
            return np.asarray(samples.record.sample[:, order] > 0, dtype=np.int8)
        if isinstance(samples, Mapping):
            return np.array([samples[i] for i in range(self.num_bits) if i in samples], dtype=np.int8)
        return np.asarray(samples, dtype=np.int8)
