"""Bits of codes by trellis state and magnitude, estimated from codes for rate-distortion decisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.layout import SECOND_QUANTIZER, states_of

Floats = npt.NDArray[np.float64]

POOLED = 8.0
"""Weight, in codes, of what a state's codes have in common with those of the other states of its quantizer."""

UNSEEN = 0.05
"""Codes of a magnitude that is believed to have been seen before any was."""


def bits_of_magnitudes(codes: npt.NDArray[np.integer[Any]], states: int, reach: int) -> Floats:
    """(max(states, 1), reach + 1) bits of every magnitude after each state, the sign included.

    Args:
        codes: (rows, columns) codes of a trellis.
        states: of the trellis; 0: plain codes.
        reach: largest magnitude.

    Example:
        >>> bits_of_magnitudes(np.array([[0, 1], [0, -1]]), 0, 2).round(1).tolist()
        [[1.0, 2.0, 8.0]]
    """
    count = max(states, 1)
    where = states_of(codes, states).astype(np.int64) * (reach + 1) + np.minimum(np.abs(codes), reach)
    seen = np.bincount(where.reshape(-1), minlength=count * (reach + 1)).reshape(count, -1).astype(np.float64)
    second = SECOND_QUANTIZER[states] if states else np.zeros(1, dtype=np.uint8)
    shares = np.stack([seen[second == quantizer].sum(0) for quantizer in second]) + UNSEEN
    seen += POOLED * shares / shares.sum(1, keepdims=True)
    bits: Floats = -np.log2(seen / seen.sum(1, keepdims=True))
    bits[:, 1:] += 1.0
    return bits
