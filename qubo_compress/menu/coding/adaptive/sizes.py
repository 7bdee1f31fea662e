"""Expected sizes of codes, from those coded before: the context that matters most.

A code is expected to be as large as its column and its row, relative to the whole, and as its own kernel's earlier
positions and the codes just above. All means are adaptive and have 16 fractional bits; their products are sums of
logarithms in 1/16 of an octave.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled_part
from qubo_compress.menu.coding.adaptive.arithmetic import wide
from qubo_compress.menu.coding.adaptive.tables import EXPONENTIAL, LOGARITHM, OCTAVE, RATES

Integers = npt.NDArray[np.int64]

UNIT = 1 << 16
"""A size of one."""

LEVELS = 48
"""Expected sizes from 2^-6 to 2^6, in quarters of an octave."""

LOWEST = 6 * OCTAVE
LARGEST = 4000
"""Larger codes count as this."""

ROWS_BEFORE, COLUMNS_BEFORE, KERNELS_BEFORE = 5, 1, 2
"""Observations of what is expected that are believed to have come before."""

LONGEST_ROW, LONGEST_POSITION = 60, 24
"""Means of rows and of positions forget what lies further back."""

START_BITS, START_STEP, START_ZERO = 6, 4, 40
"""The mean size that a tensor starts with: 2^((number - 40) / 4), stored in 6 bits."""

MEAN, RECENT, ABOVE, SECOND, BALANCE, GROUND = range(6)
"""What is known within a column: mean size and that of the last few, the last two sizes, signs, mean of all rows."""


class Sums(NamedTuple):
    """What has been seen of a tensor.

    Attributes:
        row: (rows,) mean size.
        kernel: (rows,) sum of sizes in this kernel; for linear layers, the mean size of the last few columns.
        expected: (rows,) sum of the sizes that were expected in this kernel.
        sign: (rows,) balance of the last signs.
        position: (positions,) mean size at every kernel position.
        column: see ``MEAN`` and what follows it.
    """

    row: Integers
    kernel: Integers
    expected: Integers
    sign: Integers
    position: Integers
    column: Integers


def new_sums(rows: int, positions: int, start: int) -> Sums:
    """Sums of which only a mean size is known, in 1/65536."""
    zeros = [np.zeros(rows, dtype=np.int64) for _ in range(3)]
    kernel = zeros[0] if positions > 1 else np.full(rows, start)
    return Sums(
        np.full(rows, start), kernel, zeros[1], zeros[2], np.full(positions, start), np.zeros(6, dtype=np.int64)
    )


def start_number(codes: npt.NDArray[np.integer]) -> int:
    """The stored number of the mean size of codes; only writers choose it, so it may be rounded either way."""
    mean = float(np.abs(codes).sum()) / max(codes.size, 1)
    return int(np.clip(round(START_STEP * math.log2(max(mean, 1e-6))) + START_ZERO, 0, (1 << START_BITS) - 1))


def start_size(number: int) -> int:
    """The mean size of a stored number, in 1/65536."""
    octave, part = divmod(number - START_ZERO, START_STEP)
    size = int(EXPONENTIAL[part * (EXPONENTIAL.size // START_STEP)])
    return size << octave if octave >= 0 else max(size >> -octave, 1)


@compiled_part
def logarithm(size: int) -> int:
    """16 log2 of a size, to the nearest integer but one."""
    rest = max(size >> 8, 1)
    bits = 0
    for shift in (16, 8, 4, 2, 1):
        if rest >> shift:
            bits += shift
            rest >>= shift
    found: int = (bits - 8) * OCTAVE + LOGARITHM[((max(size >> 8, 1) << 5) >> bits) & 31]
    return found


@compiled_part
def exponential(level: int) -> int:
    """The size of a logarithm."""
    octave = level >> 4
    found = wide(EXPONENTIAL[level & 15])
    return (found << octave if octave >= 0 else found >> -octave) + 1


@compiled_part
def expected(row: int, positions: int, sums: Sums) -> tuple[int, int, int, int, int, int]:
    """What is expected of the next code of a row.

    Returns:
        Its level; the size that its row and column expect; and logarithms: of the expected size, of the column's, of
        this kernel's relative to what was expected of it, and of the last few sizes.
    """
    now = sums.column
    by_column, by_row = logarithm(now[MEAN]), logarithm(sums.row[row])
    usual = by_row + by_column - logarithm(now[GROUND])
    size = exponential(usual)
    if positions > 1:
        kernel = logarithm(sums.kernel[row] + 2 * size) - logarithm(sums.expected[row] + 2 * size)
    else:
        kernel = logarithm(sums.kernel[row]) - by_row
    recent, here = logarithm(now[RECENT]), usual + (kernel >> 1)
    level = min(max((here + ((recent - by_column) >> 2) + LOWEST) >> 2, 0), LEVELS - 1)
    return level, size, here, by_column, kernel, recent


@compiled_part
def start_column(column: int, positions: int, seen: Integers, sums: Sums) -> int:
    """Expected mean size of a column: that of its position, times how large this kernel's other columns were."""
    position = column % positions
    if position == 0:
        seen[0] = seen[1] = 0
        if positions > 1:
            for row in range(sums.row.size):
                sums.kernel[row] = sums.expected[row] = 0
    usual = sums.position[position]
    prior: int = usual * (seen[0] + (seen[1] >> 1) + 256) // (seen[1] + (seen[1] >> 1) + 256) if seen[1] else usual
    total = wide(0)
    for row in range(sums.row.size):
        total += sums.row[row]
    now = sums.column
    now[MEAN] = now[RECENT] = prior
    now[ABOVE] = now[SECOND] = now[BALANCE] = 0
    now[GROUND] = total // sums.row.size + 256
    return prior


@compiled_part
def end_column(column: int, positions: int, size: int, seen: Integers, sums: Sums) -> None:
    """Learn from the mean size of a column."""
    position, channel = column % positions, column // positions
    seen[0] += size
    seen[1] += sums.position[position]
    rate = RATES[min(channel, LONGEST_POSITION)]
    sums.position[position] += ((size - sums.position[position]) * rate) >> 16


@compiled_part
def observed(size: int, row: int, column: int, positions: int, expected: int, sums: Sums) -> None:
    """Learn from the size of a code."""
    now, size = sums.column, min(size, LARGEST) << 16
    now[SECOND] = now[ABOVE]
    now[ABOVE] = size >> 16
    now[MEAN] += ((size - now[MEAN]) * RATES[min(row + ROWS_BEFORE, 255)]) >> 16
    now[RECENT] += (size - now[RECENT]) >> 2
    rate = RATES[min(column, LONGEST_ROW) + COLUMNS_BEFORE]
    sums.row[row] += ((size - sums.row[row]) * rate) >> 16
    if positions > 1:
        sums.kernel[row] += size
        sums.expected[row] += expected
    else:
        sums.kernel[row] += (size - sums.kernel[row]) >> 2
