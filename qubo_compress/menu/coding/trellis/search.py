"""Codes of a trellis with the least output error plus price of bits, column by column.

For weights W, stored values Q and input moments S the output error is the sum over rows of (q - w) S (q - w)^T. Within
one column the rows are independent, so a Viterbi search finds the best codes of a whole column:

- :func:`propagated` takes the columns in rising order. With U^T U = S^-1, the best later columns change the error of
  one column to (w_j - q_j)^2 / U_jj^2, and their targets are moved to compensate for it (GPTQ, Frantar et al., ICLR
  2023);
- :func:`descended` takes every column again, with all others as they are: its error is S_jj (t_j - q_j)^2 around the
  target t_j = q_j - g_j / S_jj, with the gradient g. Error plus price of bits never rises.

Columns are taken in blocks: later blocks learn of a block's changes by one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress.calibration.statistics.input_moments import Moments
from qubo_compress.menu.coding.layout import NEXT_STATES, SECOND_QUANTIZER, CodeLayout, multiples
from qubo_compress.menu.coding.trellis.kernels import (
    Memory,
    TrellisArguments,
    descend_block,
    nearest_columns,
    propagate_block,
)
from qubo_compress.menu.coding.trellis.rates import FIRST_QUANTIZER, Rates

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BLOCK = 64
"""Columns of a block."""

ONE_STATE = np.zeros((1, 2), dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Target:
    """Weights, and the moments in which the error of their outputs is measured.

    Attributes:
        values: (columns, rows) float64.
        moments: (spans, columns, columns) damped input moments.
        uppers: (spans, columns, columns) U with U^T U their inverse.
        spans: (spans + 1,) first row of every span, and the number of rows.
    """

    values: Floats
    moments: Floats
    uppers: Floats
    spans: Integers

    @classmethod
    def of(cls, values: Floats, moments: Moments, damping: float) -> Target:
        """The target of (rows, columns) values.

        Args:
            values: of the weights.
            moments: of their inputs.
            damping: share of the mean moment that is added to every input's.
        """
        spans = moments.spans(len(values))
        numbers = [block for block, _, _ in spans]
        stacked = moments.damped_stack(numbers, damping).numpy()
        uppers = moments.inverse_factors(numbers, damping).numpy()
        firsts = np.array([*(first for _, first, _ in spans), len(values)], dtype=np.int64)
        return cls(np.ascontiguousarray(values.T, dtype=np.float64), stacked, uppers, firsts)

    def parts(self) -> Iterator[tuple[int, slice]]:
        """(number, rows) of every span."""
        for number, (first, last) in enumerate(zip(self.spans[:-1].tolist(), self.spans[1:].tolist(), strict=True)):
            yield number, slice(first, last)

    def gradient(self, stored: Floats) -> Floats:
        """(columns, rows) half the derivative of the output error with respect to the stored values."""
        apart, found = stored - self.values, np.empty_like(stored)
        for number, rows in self.parts():
            found[:, rows] = self.moments[number] @ apart[:, rows]
        return found

    def error(self, stored: Floats) -> float:
        """The output error of (columns, rows) stored values, summed over the rows."""
        return float(((stored - self.values) * self.gradient(stored)).sum())


@dataclass(frozen=True)
class Quantizers:
    """The quantizers of a trellis.

    Attributes:
        layout: of the tensor; its states are 4 or 8, or 0 for plain codes.
        width: distance between two values of one quantizer.
        reach: largest magnitude of a code.
    """

    layout: CodeLayout
    width: float
    reach: int

    @property
    def states(self) -> int:
        """Of the trellis."""
        return self.layout.states

    @property
    def unit(self) -> float:
        """What multiples are multiplied by; see :func:`qubo_compress.menu.coding.layout.multiples`."""
        return self.width / 2 if self.states else self.width

    def values(self, codes: Integers) -> Floats:
        """The values of (columns, rows) codes."""
        values: Floats = multiples(codes.T, self.states).T.astype(np.float64) * self.unit
        return values

    def for_kernels(self, spans: Integers, rates: Rates) -> TrellisArguments:
        """The trellis for kernels.

        Args:
            spans: see :class:`Target`.
            rates: the prices of the codes.
        """
        following = NEXT_STATES[self.states] if self.states else ONE_STATE
        second = SECOND_QUANTIZER[self.states] if self.states else FIRST_QUANTIZER
        bits, classes = np.ascontiguousarray(rates.bits), np.ascontiguousarray(rates.classes)
        return TrellisArguments(following, second, self.width / 2, self.reach, bits, classes, spans)

    def free(self) -> Rates:
        """Bits that cost nothing."""
        return Rates.free(self.layout, self.reach)

    def rates(self, codes: Integers) -> Rates:
        """The bits that (columns, rows) codes suggest."""
        return Rates.of(codes, self.layout, self.reach)


def memory_for(rows: int, states: int) -> Memory:
    """Memory of a search over columns of some rows."""
    count = max(states, 1)
    return Memory(
        np.zeros((rows, count), dtype=np.uint8), np.zeros((rows, count), dtype=np.int16),
        np.zeros((4, 3), dtype=np.int64), np.zeros((4, 3)), np.zeros(4), np.zeros(4, dtype=np.int64),
        np.zeros((2, count)),
    )  # fmt: skip


def nearest(values: Floats, quantizers: Quantizers, rates: Rates) -> Integers:
    """(columns, rows) codes of least squared error plus price of bits.

    Args:
        values: (columns, rows).
        quantizers: of the codes.
        rates: prices of the codes.
    """
    rows, codes = values.shape[1], np.zeros(values.shape, dtype=np.int64)
    trellis = quantizers.for_kernels(np.array([0, rows]), rates)
    nearest_columns(np.ascontiguousarray(values), codes, trellis, memory_for(rows, quantizers.states))
    return codes


def propagated(target: Target, quantizers: Quantizers, rates: Rates) -> Integers:
    """(columns, rows) codes, column by column; later columns compensate the error of earlier ones.

    Args:
        target: the weights.
        quantizers: of the codes.
        rates: prices of the codes.
    """
    columns, rows = target.values.shape
    left, codes = target.values.copy(), np.zeros((columns, rows), dtype=np.int64)
    trellis, memory = quantizers.for_kernels(target.spans, rates), memory_for(rows, quantizers.states)
    errors = np.empty((min(BLOCK, columns), rows))
    for block in _blocks(columns):
        made = errors[: block.stop - block.start]
        upper = np.ascontiguousarray(target.uppers[:, block, block])
        propagate_block(left[block], made, codes[block], block.start, upper, trellis, memory)
        if block.stop < columns:
            for number, part in target.parts():
                left[block.stop :, part] -= target.uppers[number][block, block.stop :].T @ made[:, part]
    return codes


def descended(target: Target, codes: Integers, quantizers: Quantizers, rates: Rates) -> float:
    """Take every column to its best codes, given all others; changes codes, and returns by how much the sum fell.

    Args:
        target: the weights.
        codes: (columns, rows), changed.
        quantizers: of the codes.
        rates: prices of the codes.
    """
    columns, rows = codes.shape
    stored = np.ascontiguousarray(quantizers.values(codes))
    gradient, fallen = target.gradient(stored), 0.0
    trellis, memory = quantizers.for_kernels(target.spans, rates), memory_for(rows, quantizers.states)
    moved = np.empty((min(BLOCK, columns), rows))
    for block in _blocks(columns):
        change = moved[: block.stop - block.start]
        inner = np.ascontiguousarray(target.moments[:, block, block])
        fallen += descend_block(
            stored[block], gradient[block], change, codes[block], block.start, inner, trellis, memory
        )  # fmt: skip
        if block.stop < columns:
            for number, part in target.parts():
                gradient[block.stop :, part] += target.moments[number][block.stop :, block] @ change[:, part]
    return fallen


def _blocks(columns: int) -> list[slice]:
    return [slice(first, min(first + BLOCK, columns)) for first in range(0, columns, BLOCK)]
