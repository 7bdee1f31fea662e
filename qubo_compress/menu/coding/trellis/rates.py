"""Bits of codes, estimated from other codes of the same tensor for rate-distortion decisions.

An adaptive coder knows from the codes before which rows and columns are small. Here the expected magnitude of a code
is the mean of its row times that of its column over the mean of all, and codes of similar expected magnitude make a
class. Bits come from how often each magnitude occurs in a class, after a state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.layout import SECOND_QUANTIZER, states_of

Floats = npt.NDArray[np.float64]

CLASSES = 8
"""Classes of expected magnitudes, each a factor of the root of two wide, around the mean."""

SMALLEST = 0.05
"""Magnitude added to every code, so that a row of zeros expects something."""

POOLED = 8.0
"""Weight, in codes, of the frequencies of the class as a whole, and there of all classes."""

UNSEEN = 0.05
"""Codes of a magnitude that is believed to have been seen before any was."""


@dataclass(frozen=True, eq=False)
class Rates:
    """The bits, or prices, of the codes of a tensor.

    Attributes:
        bits: (classes, max(states, 1), reach + 1) of every magnitude after each state, the sign included.
        classes: (columns, rows) class of every code.
    """

    bits: Floats
    classes: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, codes: npt.NDArray[np.integer[Any]], states: int, reach: int) -> Rates:
        """The rates that codes of a trellis suggest.

        Args:
            codes: (columns, rows).
            states: of the trellis; 0: plain codes.
            reach: largest magnitude.

        Example:
            >>> codes = np.array([[0, 0], [1, -1]] * 100)
            >>> 200 < Rates.of(codes, 0, 2).total(codes) < 260  # a bit for the sign of every second code
            True
        """
        before = states_of(codes.T, states).T
        sizes = np.minimum(np.abs(codes), reach)
        classes = _classes(sizes)
        count = max(states, 1)
        where = (classes.astype(np.int64) * count + before) * (reach + 1) + sizes
        seen = np.bincount(where.reshape(-1), minlength=CLASSES * count * (reach + 1)).astype(np.float64)
        return cls(_bits(seen.reshape(CLASSES, count, -1), states), classes)

    @classmethod
    def free(cls, shape: tuple[int, int], states: int, reach: int) -> Rates:
        """Bits that cost nothing, for (columns, rows) codes."""
        return cls(np.zeros((1, max(states, 1), reach + 1)), np.zeros(shape, dtype=np.uint8))

    def priced(self, price: float) -> Rates:
        """The same codes at a price per bit."""
        return replace(self, bits=price * self.bits)

    def total(self, codes: npt.NDArray[np.integer[Any]]) -> float:
        """Sum over (columns, rows) codes."""
        count = self.bits.shape[1]
        before = states_of(codes.T, count if count > 1 else 0).T
        return float(self.bits[self.classes, before, np.abs(codes)].sum())


def _classes(sizes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """The class of every code, by the means of its row and its column."""
    positive = sizes + SMALLEST
    mean = positive.mean()
    share = (positive.mean(0)[None, :] / mean) * (positive.mean(1)[:, None] / mean)
    numbers = np.round(2.0 * np.log2(share)) + CLASSES // 2
    found: npt.NDArray[np.uint8] = np.clip(numbers, 0, CLASSES - 1).astype(np.uint8)
    return found


def _bits(seen: Floats, states: int) -> Floats:
    """Bits from counts by class, state and magnitude, which share what they have in common."""
    second = SECOND_QUANTIZER[states] if states else np.zeros(1, dtype=np.uint8)
    # The states of a quantizer are alike, and so are classes.
    by_class = np.stack([seen[:, second == quantizer].sum(1) for quantizer in second], axis=1)
    shares = by_class.sum(0) + UNSEEN
    by_class += POOLED * shares / shares.sum(-1, keepdims=True)
    seen = seen + POOLED * by_class / by_class.sum(-1, keepdims=True)
    bits: Floats = -np.log2(seen / seen.sum(-1, keepdims=True))
    bits[..., 1:] += 1.0
    return bits
