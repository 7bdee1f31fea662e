"""The order in which integer codes are coded, and the trellis states that come with it.

A tensor is read as (rows, columns): its outputs, and its inputs times kernel positions. Codes are stored in the
tensor's own order, row by row, but coded column by column: all rows of column 0 from top to bottom, then column 1.
Compensation works in the same order, so the error of one column is known before the next column's codes are chosen.

In dependent quantization (VVC, ITU-T H.266, 8.7.3; NNC, ISO/IEC 15938-17) two quantizers share one step: Q0 has the
even multiples of the step, 2k, and Q1 the odd ones and zero, 2k - sign(k). Which of them a code k belongs to is decided
by a state, and the next state depends on this one and on the parity of k. Every column starts in state 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled

Integers = npt.NDArray[np.int64]

NEXT_STATES = {
    4: np.array([[0, 2], [2, 0], [1, 3], [3, 1]], dtype=np.uint8),
    8: np.array([[0, 2], [7, 5], [1, 3], [6, 4], [2, 0], [5, 7], [3, 1], [4, 6]], dtype=np.uint8),
}
"""Number of states -> (states, 2) the next state, by the parity of the code."""

SECOND_QUANTIZER = {
    4: np.array([0, 0, 1, 1], dtype=np.uint8),
    8: np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=np.uint8),
}
"""Number of states -> (states,) 1 where codes belong to Q1."""


@dataclass(frozen=True)
class CodeLayout:
    """A tensor of codes, and the order in which they are coded: column by column.

    Attributes:
        rows: of the tensor: its outputs.
        columns: of the tensor: channels x positions, a column being channel * positions + position.
        positions: of the kernel; 1 for linear layers.
        states: 0 for plain codes; 4 or 8 for those of a trellis, whose states are contexts.

    Raises:
        ValueError: when the numbers are not those of a tensor.

    Example:
        >>> CodeLayout.of((16, 8, 3, 3))
        CodeLayout(rows=16, columns=72, positions=9, states=0)
    """

    rows: int
    columns: int
    positions: int = 1
    states: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.positions < 1 or self.columns % self.positions:
            raise ValueError(f"{self.rows} x {self.columns} codes at {self.positions} positions are not a tensor's")
        if self.states not in (0, *NEXT_STATES):
            raise ValueError(f"a trellis has 4 or 8 states, and plain codes have 0; got {self.states}")

    @classmethod
    def of(cls, shape: Sequence[int], states: int = 0) -> CodeLayout:
        """The layout of a tensor: its first axis has the rows, the second the channels; a vector is one row.

        Args:
            shape: of the tensor.
            states: of the trellis, or 0.
        """
        if len(shape) < 2:
            return cls(1, math.prod(shape), 1, states)
        return cls(shape[0], math.prod(shape[1:]), math.prod(shape[2:]), states)

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.rows * self.columns

    @property
    def channels(self) -> int:
        """Number of inputs."""
        return self.columns // self.positions


def states_of(codes: npt.NDArray[np.integer], states: int) -> npt.NDArray[np.uint8]:
    """(rows, columns) trellis state before each code.

    Args:
        codes: (rows, columns) integers.
        states: 4 or 8; with 0 there is no trellis, and all states are 0.

    Raises:
        ValueError: when there is no such trellis.

    Example:
        >>> states_of(np.array([[1], [2], [3]]), 4).T
        array([[0, 2, 1]], dtype=uint8)
    """
    found = np.zeros(codes.shape, dtype=np.uint8)
    if states == 0 or found.size == 0:
        return found
    if states not in NEXT_STATES:
        raise ValueError(f"a trellis has 4 or 8 states; got {states}")
    _walk(np.ascontiguousarray(codes, dtype=np.int64), NEXT_STATES[states], found)
    return found


def multiples(codes: npt.NDArray[np.integer], states: int) -> Integers:
    """(rows, columns) multiples of the step that the codes of a trellis stand for.

    Without a trellis a code is its own multiple.

    Args:
        codes: (rows, columns) integers.
        states: 0, 4 or 8.

    Raises:
        ValueError: when there is no such trellis.

    Example:
        >>> multiples(np.array([[1], [2], [3]]), 4).T
        array([[2, 3, 6]])
    """
    whole: Integers = np.asarray(codes, dtype=np.int64)
    if states == 0:
        return whole
    odd = SECOND_QUANTIZER[states][states_of(whole, states)]
    found: Integers = 2 * whole - odd * np.sign(whole)
    return found


@compiled
def _walk(codes: Integers, following: npt.NDArray[np.uint8], found: npt.NDArray[np.uint8]) -> None:
    """Write the state before each code. Rows are outside, so that memory is read in order."""
    rows, columns = codes.shape
    for column in range(columns):
        found[0, column] = 0
    for row in range(1, rows):
        for column in range(columns):
            found[row, column] = following[found[row - 1, column], codes[row - 1, column] & 1]
