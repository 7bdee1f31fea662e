"""A binary range coder: decisions of known probability to bytes, and back.

The range has 32 bits and is kept above 2^24 by moving bytes out (G. N. N. Martin, Range encoding, 1979); a carry runs
back through the bytes already written. Integers only. Bytes beyond the end are zeros, so zeros at the end are not
stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled, compiled_part
from qubo_compress.menu.coding.adaptive.tables import ONE

Coder = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

LOW, RANGE, PLACE, CODE, READING = range(5)
"""Fields of a coder: start of the range, its length, next byte, what was read less the start, and the direction."""

WORD = 1 << 32
SMALLEST = 1 << 24
HALF = ONE // 2


def writing() -> Coder:
    """A coder that starts to write."""
    return np.array([0, WORD - 1, 0, 0, 0], dtype=np.int64)


def reading(data: Bytes) -> Coder:
    """A coder that starts to read."""
    first = int.from_bytes(data[:4].tobytes().ljust(4, b"\0"), "big")
    return np.array([0, WORD - 1, 4, first, 1], dtype=np.int64)


@compiled_part
def wide(value: int) -> int:
    """The same value in 64 bits: products of 32-bit numbers must not overflow."""
    return np.int64(value)  # type: ignore[return-value]


@compiled_part
def coded_bit(bit: int, probability: int, coder: Coder, data: Bytes) -> int:
    """Write a decision, or read it.

    Args:
        bit: 0 or 1; ignored when reading.
        probability: of 1, in 1/65536, neither 0 nor 65536.
        coder: see :func:`writing` and :func:`reading`.
        data: the bytes. Those that do not fit are counted only.
    """
    bound = (coder[RANGE] >> 16) * probability
    if coder[READING]:
        bit = 1 if coder[CODE] < bound else 0
        if not bit:
            coder[CODE] -= bound
    elif not bit:
        coder[LOW] += bound
        if coder[LOW] >= WORD:
            coder[LOW] -= WORD
            _carry(coder[PLACE], data)
    coder[RANGE] = bound if bit else coder[RANGE] - bound
    while coder[RANGE] < SMALLEST:
        coder[RANGE] <<= 8
        place = coder[PLACE]
        if coder[READING]:
            coder[CODE] = (coder[CODE] << 8) & (WORD - 1)
            if place < data.size:
                coder[CODE] |= data[place]
        else:
            if place < data.size:
                data[place] = coder[LOW] >> 24
            coder[LOW] = (coder[LOW] << 8) & (WORD - 1)
        coder[PLACE] = place + 1
    return bit


@compiled_part
def _carry(place: int, data: Bytes) -> None:
    """Add one to the bytes before a place; what does not fit is written again later anyway."""
    at = min(place, data.size) - 1
    while at >= 0 and data[at] == 255:
        data[at] = 0
        at -= 1
    if at >= 0:
        data[at] += 1


@compiled
def code_fields(values: npt.NDArray[np.int64], width: int, coder: Coder, data: Bytes) -> None:
    """Write or read unsigned numbers of a fixed width, without any model."""
    for i in range(values.size):
        found = 0
        for place in range(width - 1, -1, -1):
            found = found << 1 | coded_bit(values[i] >> place & 1, HALF, coder, data)
        values[i] = found


@compiled
def finish(coder: Coder, data: Bytes) -> int:
    """Write the shortest end: the number in the range with most zeros at its end. Returns the number of bytes."""
    low, top = coder[LOW], coder[LOW] + coder[RANGE] - 1
    for kept in range(5):
        ones = (1 << (32 - 8 * kept)) - 1
        value = (low + ones) & ~ones
        if value <= top:
            break
    if value >= WORD:
        value -= WORD
        _carry(coder[PLACE], data)
    for _ in range(kept):
        if coder[PLACE] < data.size:
            data[coder[PLACE]] = value >> 24
        value = (value << 8) & (WORD - 1)
        coder[PLACE] += 1
    end = wide(coder[PLACE])
    while 0 < end <= data.size and data[end - 1] == 0:
        end -= 1
    return end
