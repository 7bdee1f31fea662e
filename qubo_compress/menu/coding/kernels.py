"""Contexts of one place after the other, compiled: a reader learns each row only once the row before has been read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled

Integers = npt.NDArray[np.int64]

CONTEXTS = 9
"""The expected size relative to the mean, squared: below 2^-3.5, to 2^-2.5, ..., above 2^3.5."""

ROOT_OF_TWO = 1.4142135623730951
CHANNEL_PRIOR, KERNEL_PRIOR, ROW_PRIOR = 4.0, 2.0, 8.0
"""Rows, positions and weights of mean size that are believed to have come before."""


@compiled
def contexts_of_place(
    channel: Integers, kernel: Integers, total: int, in_row: int, row: int, position: int, positions: int, mean: float
) -> Integers:  # fmt: skip
    """(channels,) contexts of all channels at one position of one row; masks alone count what lies ``in_row`` before.

    ``in_row`` is -1 for numbers, whose rows count for nothing.

    The order of operations is that of :func:`qubo_compress.menu.coding.contexts.contexts`, so that both round alike.
    """
    channels = channel.size
    expected = np.empty(channels)
    usual = (total + mean * (channels * positions)) / ((row + 1.0) * (channels * positions))
    for c in range(channels):
        by_channel = (channel[c] + CHANNEL_PRIOR * positions * usual) / ((row + CHANNEL_PRIOR) * positions * usual)
        by_kernel = (kernel[c] + KERNEL_PRIOR * usual) / ((position + KERNEL_PRIOR) * usual)
        expected[c] = by_channel * by_channel * by_kernel
        if in_row >= 0:
            expected[c] *= (in_row + ROW_PRIOR * usual) / ((position * channels + ROW_PRIOR) * usual)
        expected[c] *= ROOT_OF_TWO
    # The exponent of a float64 is its logarithm, exactly.
    found = (expected.view(np.int64) >> 52) - 1023 + CONTEXTS // 2
    for c in range(channels):
        found[c] = min(max(found[c], 0), CONTEXTS - 1)
    return found
