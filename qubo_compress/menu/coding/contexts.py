"""Contexts of coded numbers: the expected size of a weight, from those coded before it.

A tensor is read as (rows, channels, positions): for a convolution, its outputs, inputs and kernel positions. Rows are
coded one after the other; within a row, all channels at the first position, then at the next. The expected size of a
weight comes from its channel's weights in earlier rows and its own kernel's weights at earlier positions. For masks,
the row's survivors so far also count. Sums are integers, and contexts are computed from them with + - * / only, so that
the reader finds the same contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.kernels import (
    CHANNEL_PRIOR,
    CONTEXTS,
    KERNEL_PRIOR,
    ROOT_OF_TWO,
    ROW_PRIOR,
    Integers,
    contexts_of_place,
)
from qubo_compress.network.groups import Group

Shape = tuple[int, int, int]
"""Rows, channels, positions."""

Mask = npt.NDArray[np.bool_]


def shapes_of(group: Group) -> dict[int, Shape]:
    """Number of values -> their layout, for the group's members of two or more axes."""
    found: dict[int, Shape] = {}
    for member in group.members:
        shape = member.part_shape
        if len(shape) > 1:
            found.setdefault(member.numel, (shape[0], shape[1], member.numel // (shape[0] * shape[1])))
    return found


def mean_size(byte: int) -> float:
    """The mean size that a byte encodes, from 1/32 to 1984."""
    return float((16 + byte % 16) * 2.0 ** (byte // 16 - 9))


def mean_byte(mean: float) -> int:
    """The byte whose mean size is nearest."""
    return int(np.abs(np.array([mean_size(byte) for byte in range(256)]) - mean).argmin())


def contexts(sizes: Integers, mean: float, of_mask: bool) -> Integers:
    """(rows, channels, positions) context, 0 to ``CONTEXTS`` - 1, of every weight.

    Args:
        sizes: (rows, channels, positions) magnitudes; 0 and 1 for masks.
        mean: of the sizes, before any is known.
        of_mask: whether they are of a mask.
    """
    rows, channels, positions = sizes.shape
    channel = sizes.sum(2)
    channel = np.cumsum(channel, 0) - channel
    row = sizes.sum(1)
    row = np.cumsum(row, 1) - row
    # Only what a reader knows: sums over earlier numbers.
    total, kernel, position = channel.sum(1)[:, None, None], np.cumsum(sizes, 2) - sizes, np.arange(positions)
    channel, row_number, in_row = channel[:, :, None], np.arange(rows)[:, None, None], row[:, None, :]
    usual = (total + mean * (channels * positions)) / ((row_number + 1.0) * (channels * positions))
    by_channel = (channel + CHANNEL_PRIOR * positions * usual) / ((row_number + CHANNEL_PRIOR) * positions * usual)
    by_kernel = (kernel + KERNEL_PRIOR * usual) / ((position + KERNEL_PRIOR) * usual)
    expected = by_channel * by_channel * by_kernel
    if of_mask:
        expected = expected * ((in_row + ROW_PRIOR * usual) / ((position * channels + ROW_PRIOR) * usual))
    # The exponent of a float64 is its logarithm, exactly.
    exponents = ((expected * ROOT_OF_TWO).view(np.int64) >> 52) - 1023
    found: Integers = np.clip(exponents + CONTEXTS // 2, 0, CONTEXTS - 1)
    return found


def in_order(values: npt.NDArray[Any], present: Mask | None) -> npt.NDArray[Any]:
    """Values of a (rows, channels, positions) array in the order in which they are coded."""
    turned = values.transpose(0, 2, 1)
    return turned.reshape(-1) if present is None else turned[present.transpose(0, 2, 1)]


def drawn(
    shape: Shape, present: Mask | None, mean: float, of_mask: bool, draw: Callable[[Integers], Integers]
) -> Integers:
    """Inverse of :func:`contexts`: draws the numbers of one position of one row after the other.

    Args:
        shape: of the tensor.
        present: where there are numbers, or None for everywhere.
        mean: as for :func:`contexts`.
        of_mask: as for :func:`contexts`.
        draw: (n,) contexts -> the next n numbers, whose magnitudes are the sizes.

    Returns:
        The present numbers, in the tensor's own order.
    """
    rows, channels, positions = shape
    found = np.zeros(shape, dtype=np.int64)
    if found.size == 0:
        return found.reshape(-1)
    channel, total = np.zeros(channels, dtype=np.int64), 0
    for row in range(rows):
        kernel, in_row = np.zeros(channels, dtype=np.int64), 0
        for position in range(positions):
            before = in_row if of_mask else -1
            here = contexts_of_place(channel, kernel, total, before, row, position, positions, mean)
            if present is None:
                values = draw(here)
            else:
                values = np.zeros(channels, dtype=np.int64)
                where = present[row, :, position]
                values[where] = draw(here[where])
            found[row, :, position] = values
            sizes = np.abs(values)
            kernel += sizes
            in_row += int(sizes.sum())
        channel += kernel
        total += in_row
    return found.reshape(-1) if present is None else found[present]
