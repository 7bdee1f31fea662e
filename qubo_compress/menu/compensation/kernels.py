"""The inner loop of code-by-code descent, compiled: one row after the other, one code at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled
from qubo_compress._internal.kernel_arguments import KernelArguments

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BookArguments(KernelArguments):
    """The available codes, for kernels.

    Attributes:
        low: smallest code.
        high: largest code.
        signs_only: 1 if codes are only -1 and 1.
        bits: (2 * reach + 1,) bits of the codes from -reach to reach; a single zero if bits do not count.
        reach: see ``bits``.
        price: of a bit, in units of the output error; signs have none.
    """

    low: float
    high: float
    signs_only: int
    bits: Floats
    reach: int
    price: float


@compiled
def descend_rows(
    codes: Floats,
    gradient: Floats,
    scale: Floats,
    kept: npt.NDArray[np.bool_],
    moments: Floats,
    book: BookArguments,
    sweeps: int,
) -> None:
    """Move every code to its best value given the others, until none moves; changes codes and gradient.

    Args:
        codes: (R, D) whole numbers.
        gradient: (R, D) half the derivative of the output error with respect to the values: (codes * scale - values) @
            moments.
        scale: (R,) steps.
        kept: (R, D) which codes may move.
        moments: (D, D).
        book: the available codes.
        sweeps: most passes over the columns.
    """
    rows, columns = codes.shape
    low, high, reach, price = book.low, book.high, book.reach, book.price
    for row in range(rows):
        step = scale[row]
        for _ in range(sweeps):
            moved = False
            for column in range(columns):
                curvature = moments[column, column]
                weight = step * step * curvature
                if not kept[row, column] or not weight > 0.0:
                    continue
                old = codes[row, column]
                target = old - gradient[row, column] / (step * curvature)
                found = (-1.0 if target < 0.0 else 1.0) if book.signs_only else min(max(np.rint(target), low), high)
                if price > 0.0:
                    found = min(max(found, -float(reach)), float(reach))
                    best = weight * (target - old) ** 2 + price * book.bits[int(old) + reach]
                    nearest, found = found, old
                    for tried in (nearest, nearest - np.sign(nearest), 0.0):
                        cost = weight * (target - tried) ** 2 + price * book.bits[int(tried) + reach]
                        if cost < best:
                            best, found = cost, tried
                elif not abs(target - found) < abs(target - old):
                    found = old  # a tie would move only because of rounding
                change = found - old
                if change != 0.0:
                    moved = True
                    codes[row, column] = found
                    for other in range(columns):
                        gradient[row, other] += change * step * moments[column, other]
            if not moved:
                break


@compiled
def descend_blocks(
    codes: Floats,
    gradient: Floats,
    scale: Floats,
    kept: npt.NDArray[np.bool_],
    moments: Floats,
    book: BookArguments,
    sweeps: int,
) -> None:
    """:func:`descend_rows` for blocks of rows with separate moments: all arrays have an additional leading axis."""
    for block in range(len(codes)):
        descend_rows(
            codes[block], gradient[block], scale[block], kept[block], moments[block], book, sweeps
        )  # fmt: skip
