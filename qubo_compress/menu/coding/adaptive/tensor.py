"""Codes of a tensor as binary decisions, column by column, each in several contexts.

A code is written as in DeepCABAC (Wiedemann et al., IEEE J. Sel. Top. Signal Process. 2020): whether it is zero,
whether its magnitude is above 1, 2, 3, 4, then above 5, 7, 11, 19, ..., its place among those, and its sign. DeepCABAC
has one context per decision, from the code before; here five contexts are mixed, and most of what they know is the
expected size.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled, compiled_part
from qubo_compress.menu.coding.adaptive.arithmetic import HALF, Bytes, Coder, coded_bit, wide
from qubo_compress.menu.coding.adaptive.mixing import INPUTS, BitMixture, Whole, decided, moved
from qubo_compress.menu.coding.adaptive.sizes import (
    ABOVE,
    BALANCE,
    LARGEST,
    LEVELS,
    LOWEST,
    SECOND,
    Sums,
    end_column,
    expected,
    observed,
    start_column,
)
from qubo_compress.menu.coding.adaptive.tables import ONE, RAREST
from qubo_compress.menu.coding.layout import NEXT_STATES, SECOND_QUANTIZER, CodeLayout

Integers = npt.NDArray[np.int64]

DECISIONS = 20
"""Magnitudes up to 4 + 2^15."""

SINGLE = 4
"""Magnitudes up to this have a decision of their own."""

MODELLED = 8
"""Places within a range of magnitudes have a model for their first three bits."""

SIZES = 36
"""Expected sizes in coarser steps."""

STARTS = np.cumsum([0, LEVELS, 12 * SIZES, 405, SIZES * 4, 16 * SIZES])
"""Where the slots of each context start, in units of ``DECISIONS``."""

ALL_MAGNITUDES = int(STARTS[-1]) * DECISIONS
"""Slots of one quantizer's magnitudes."""

SIGN_STARTS = 2 * ALL_MAGNITUDES + np.cumsum([0, 75, 81, 27, 27, 250])
"""Where the slots of each context of a sign start."""

SIGNS = 8 * DECISIONS
"""Set of mixing weights of signs; those of magnitudes are trellis state x DECISIONS + decision."""


class Geometry(NamedTuple):
    """A tensor and its numbers.

    Attributes:
        positions: of the kernel.
        width: of the kernel: the position above is this far back.
        low: smallest code.
        high: largest code.
        following: (states, 2) next trellis state by parity; one state without a trellis.
        second: (states,) 1 where codes are of the second quantizer.
        trellis: 1 with a trellis, else 0.
    """

    positions: int
    width: int
    low: int
    high: int
    following: npt.NDArray[np.uint8]
    second: npt.NDArray[np.uint8]
    trellis: int

    @classmethod
    def of(cls, layout: CodeLayout, low: int, high: int) -> Self:
        """The geometry of a layout; kernels that are not square have no rows."""
        side = math.isqrt(layout.positions)
        width = side if side * side == layout.positions else layout.positions
        if not layout.states:
            none = np.zeros((1, 2), dtype=np.uint8)
            return cls(layout.positions, width, low, high, none, none[0, :1], 0)
        following, second = NEXT_STATES[layout.states], SECOND_QUANTIZER[layout.states]
        return cls(layout.positions, width, low, high, following, second, 1)


class TensorCoding(NamedTuple):
    """Everything that one call reads and changes.

    Attributes:
        mixture: what is known of decisions.
        places: (DECISIONS x MODELLED,) slots of places within a range of magnitudes.
        counts: (2, LEVELS, DECISIONS, 2) quantizer, expected size and decision -> how often it was 0 and 1.
        sums: what is known of sizes.
        near: (7,) neighbours of a code: see ``BEFORE`` and what follows it.
        coder: state of the arithmetic coder.
        data: its bytes.
    """

    mixture: BitMixture
    places: Whole
    counts: Integers
    sums: Sums
    near: Integers
    coder: Coder
    data: Bytes


BEFORE, CHANNEL, LEFT, UPPER, UPPER_RIGHT, UPPER_LEFT, SECOND_BEFORE = range(7)
"""Neighbours in the same row: one and two columns before, one channel before, and those around it in its kernel."""


@compiled_part
def _clipped(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


@compiled_part
def _sign(value: int) -> int:
    """0, 1 or 2 for zero, positive and negative."""
    return 1 if value > 0 else 2 if value < 0 else 0


@compiled_part
def _columns_near(column: int, shape: Geometry, none: int, found: Integers) -> None:
    """Set the columns of all neighbours; ``none`` is a column of zeros, for those that are not there."""
    place, width = column % shape.positions, shape.width
    beside, upper = place % width, place >= width
    found[BEFORE] = column - 1 if column > 0 else none
    found[SECOND_BEFORE] = column - 2 if column > 1 else none
    found[CHANNEL] = column - shape.positions if column >= shape.positions else none
    found[LEFT] = column - 1 if beside > 0 else none
    found[UPPER] = column - width if upper else none
    found[UPPER_RIGHT] = column - width + 1 if upper and beside < width - 1 else none
    found[UPPER_LEFT] = column - width - 1 if upper and beside > 0 else none


@compiled_part
def _guess(near: Integers) -> int:
    """Six times what a smooth kernel would have next: its plane through the neighbours."""
    left, upper = _clipped(near[LEFT], -4, 4), _clipped(near[UPPER], -4, 4)
    return 3 * (left + upper) + _clipped(near[UPPER_RIGHT], -4, 4) - _clipped(near[UPPER_LEFT], -4, 4)


@compiled_part
def _expect(row: int, guess: int, positions: int, offset: int, work: TensorCoding) -> tuple[int, int]:
    """Set the contexts of a magnitude. Returns its level and the size that its row and column expect."""
    now, near, index = work.sums.column, work.near, work.mixture.chosen
    level, size, here, by_column, kernel, recent = expected(row, positions, work.sums)
    coarse = _clipped((here + LOWEST) // 5, 0, SIZES - 1)
    other = abs(near[UPPER] if positions > 1 else near[SECOND_BEFORE])
    around = (min(now[ABOVE], 4) * 3 + min(now[SECOND], 2)) * 5 + min(abs(near[BEFORE]), 4)
    index[0] = level
    index[1] = STARTS[1] + _clipped(abs(guess) >> 1, 0, 11) * SIZES + coarse
    index[2] = STARTS[2] + (around * 3 + min(abs(near[CHANNEL]), 2)) * 3 + min(other, 2)
    index[3] = STARTS[3] + _clipped((by_column + LOWEST) // 5, 0, SIZES - 1) * 4 + _clipped((kernel + 12) >> 3, 0, 3)
    index[4] = STARTS[4] + _clipped((recent + 80) // 10, 0, 15) * SIZES + coarse
    for i in range(INPUTS):
        index[i] = offset + index[i] * DECISIONS
    return level, size


@compiled_part
def most_before(step: int) -> int:
    """The largest magnitude that does not pass a decision."""
    return step if step <= SINGLE else SINGLE + (1 << (step - SINGLE)) - 1


@compiled_part
def _magnitude(size: int, top: int, quantizer: int, state: int, level: int, work: TensorCoding) -> int:
    """Write or read a magnitude up to ``top``."""
    index, step = work.mixture.chosen, 0
    while step < DECISIONS - 1:
        limit = most_before(step)
        if limit >= top:
            break
        which = state * DECISIONS + step
        bit = decided(1 if size > limit else 0, which, work.mixture, work.coder, work.data)
        work.counts[quantizer, level, step, bit] += 1
        if not bit:
            break
        step += 1
        for i in range(INPUTS):
            index[i] += 1
    return step if step <= SINGLE + 1 else _placed(size, step, work)


@compiled_part
def _placed(size: int, step: int, work: TensorCoding) -> int:
    """Write or read the place of a magnitude within its range."""
    bits = step - SINGLE - 1
    start, place = SINGLE + (1 << bits), 1
    for shift in range(bits - 1, -1, -1):
        bit, at = (size - start) >> shift & 1, step * MODELLED + place
        if place < MODELLED:
            chance = wide(work.places[at] >> 8)
            bit = coded_bit(bit, _clipped(chance, RAREST, ONE - RAREST), work.coder, work.data)
            work.places[at] = moved(work.places[at], bit)
        else:
            bit = coded_bit(bit, HALF, work.coder, work.data)
        place = place * 2 + bit
    return start + place - (1 << bits)


@compiled_part
def _signed(value: int, size: int, row: int, guess: int, place: int, work: TensorCoding) -> int:
    """Write or read the sign of a code of known magnitude. Returns the code."""
    index, near, sums = work.mixture.chosen, work.near, work.sums
    few = min(size, 3) - 1
    around = (_sign(near[SECOND_BEFORE]) * 3 + _sign(near[BEFORE])) * 3 + _sign(near[CHANNEL])
    beside = (_clipped(near[LEFT], -2, 2) + 2) * 5 + _clipped(near[UPPER], -2, 2) + 2
    index[0] = SIGN_STARTS[0] + _clipped((guess + 24) >> 1, 0, 24) * 3 + few
    index[1] = SIGN_STARTS[1] + around * 3 + _sign(near[UPPER])
    index[2] = SIGN_STARTS[2] + _clipped((sums.column[BALANCE] + 8) >> 1, 0, 8) * 3 + few
    index[3] = SIGN_STARTS[3] + _clipped((sums.sign[row] + 64) >> 4, 0, 8) * 3 + few
    index[4] = SIGN_STARTS[4] + beside * 10 + min(place, 9)
    negative = decided(1 if value < 0 else 0, SIGNS, work.mixture, work.coder, work.data)
    sign = 1 - 2 * negative
    sums.column[BALANCE] = _clipped(sums.column[BALANCE] + sign, -10, 10)
    sums.sign[row] += (sign * 64 - sums.sign[row]) >> 4
    return sign * size


@compiled_part
def in_steps(size: int, quantizer: int, trellis: int) -> int:
    """Multiples of the step that a magnitude stands for: in a trellis even ones, or odd ones and zero."""
    return 2 * size - quantizer * min(size, 1) if trellis else size


@compiled
def code_tensor(
    codes: Integers, present: npt.NDArray[np.bool_], shape: Geometry, work: TensorCoding, levels: npt.NDArray[np.uint8]
) -> None:
    """Write the codes of a tensor, or read them into place.

    Args:
        codes: (columns + 1, rows); the last column is of zeros.
        present: (columns, rows) which of them are coded; if empty, all are.
        shape: of the tensor.
        work: the model and the coder.
        levels: (columns, rows) filled with quantizer x ``LEVELS`` + level of every code; if empty, it is not wanted.
    """
    columns, rows = codes.shape[0] - 1, codes.shape[1]
    at, kernel = np.zeros(7, np.int64), np.zeros(2, np.int64)
    near, top = work.near, max(-shape.low, shape.high)
    for column in range(columns):
        mean, state, total = start_column(column, shape.positions, kernel, work.sums), wide(0), wide(0)
        _columns_near(column, shape, columns, at)
        place = column % shape.positions
        for row in range(rows):
            if present.size and not present[column, row]:
                continue
            for i in range(7):
                near[i] = codes[at[i], row]
            value, quantizer, guess = codes[column, row], wide(shape.second[state]), _guess(near)
            level, usual = _expect(row, guess, shape.positions, quantizer * ALL_MAGNITUDES, work)
            size = _magnitude(abs(value), top, quantizer, state, level, work)
            if size > shape.high or size > -shape.low:
                value = size if size > -shape.low else -size
            elif size:
                value = _signed(value, size, row, guess, place, work)
            else:
                value = 0
            codes[column, row] = value
            if levels.size:
                levels[column, row] = quantizer * LEVELS + level
            multiple = in_steps(size, quantizer, shape.trellis)
            observed(multiple, row, column, shape.positions, usual, work.sums)
            total += min(multiple, LARGEST)
            state = wide(shape.following[state, value & 1])
        end_column(column, shape.positions, ((total << 16) + mean) // (rows + 1), kernel, work.sums)
