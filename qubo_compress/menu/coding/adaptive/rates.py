"""Bits of codes, estimated from what an adaptive stream counted: for choices that trade bits against error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.adaptive.counting import count_tensor
from qubo_compress.menu.coding.adaptive.prior import PRIOR
from qubo_compress.menu.coding.adaptive.sizes import LEVELS, new_sums, start_number, start_size
from qubo_compress.menu.coding.adaptive.stream import refuse_too_large
from qubo_compress.menu.coding.adaptive.tables import ONE
from qubo_compress.menu.coding.adaptive.tensor import DECISIONS, SINGLE, Geometry
from qubo_compress.menu.coding.layout import CodeLayout

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

PRIOR_COUNTS = 30.0
"""Observations that a stream's first probabilities count as, beside those that were counted."""


@dataclass(frozen=True, eq=False)
class RateTable:
    """What a code of any magnitude costs, by its quantizer and its expected size.

    Attributes:
        bits: (quantizers, levels, magnitudes) bits, sign included; one quantizer for plain codes, two for a trellis.
        levels: (rows, columns) level of every code: the logarithm of its expected size, in quarters of an octave.
    """

    bits: Floats
    levels: npt.NDArray[np.uint8]


def rate_table(codes: npt.NDArray[np.integer], layout: CodeLayout, largest: int | None = None) -> RateTable:
    """Bits of codes as the adaptive coder would take them, averaged over what it knows beside their expected size.

    Args:
        codes: (rows, columns) like those whose bits are asked for.
        layout: of their tensor.
        largest: magnitude up to which bits are wanted; that of the codes if none is given.

    Raises:
        ValueError: when codes are too large for the coder.

    Example:
        >>> rates = rate_table(np.array([[0, 1, 0, -1], [0, 0, 2, 0]]), CodeLayout(2, 4))
        >>> rates.bits.shape, rates.levels.shape
        ((1, 48, 3), (2, 4))
    """
    turned = np.ascontiguousarray(codes.reshape(layout.rows, layout.columns).T, dtype=np.int64)
    top = int(np.abs(turned).max(initial=0))
    refuse_too_large(-top, top)
    counts, levels = np.zeros((2, LEVELS, DECISIONS, 2), dtype=np.int64), np.zeros(turned.shape, dtype=np.uint8)
    sums = new_sums(layout.rows, layout.positions, start_size(start_number(turned)))
    count_tensor(turned, Geometry.of(layout, -top, top), sums, counts, levels)
    return RateTable(bits_of_counts(counts, layout.states > 0, top if largest is None else largest), levels.T)


def bits_of_counts(counts: Integers, trellis: bool, largest: int) -> Floats:
    """(quantizers, levels, magnitudes) bits from 0 to ``largest``, sign included.

    Args:
        counts: (2, levels, decisions, 2) of an adaptive stream.
        trellis: whether there are two quantizers.
        largest: magnitude.
    """
    prior = PRIOR[1:] if trellis else PRIOR[:1]
    seen = counts[: len(prior)].astype(np.float64)
    above = (seen[..., 1] + PRIOR_COUNTS * prior / ONE) / (seen.sum(-1) + PRIOR_COUNTS)
    up, stay = -np.log2(above), -np.log2(1.0 - above)
    magnitudes = np.arange(largest + 1)
    steps = _steps(magnitudes)
    reached = np.concatenate([np.zeros((*up.shape[:2], 1)), np.cumsum(up, -1)], -1)[..., steps]
    places = np.maximum(steps - SINGLE - 1, 0)
    found: Floats = reached + stay[..., np.minimum(steps, DECISIONS - 1)] + places + (magnitudes > 0)
    return found


def _steps(magnitudes: Integers) -> Integers:
    """Decisions that a magnitude passes."""
    beyond = np.floor(np.log2(np.maximum(magnitudes - SINGLE, 1))).astype(np.int64) + SINGLE + 1
    return np.where(magnitudes <= SINGLE, magnitudes, beyond)
