"""Adaptive probabilities of binary decisions, mixed in the logistic domain.

Each decision is predicted in several contexts at once. Every context has a probability that moves towards what is
observed, by 1/n of the error at first and at least by 1/256. The probabilities are mixed as logits, with weights that
follow the gradient of the code length (Mahoney, Adaptive weighing of context models for lossless data compression,
2005). A context that is new starts from the first one's probability, which is well known from the beginning.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import compiled_part
from qubo_compress.menu.coding.adaptive.arithmetic import Bytes, Coder, coded_bit, wide
from qubo_compress.menu.coding.adaptive.tables import (
    LEARNING,
    LOGIT,
    LONGEST_COUNT,
    ONE,
    RAREST,
    RATES,
    SQUASH,
    STRETCH,
)

Whole = npt.NDArray[np.int32]

INPUTS = 5
"""Contexts of a decision."""

NEW = 4
"""A context that is new counts its starting probability as this many observations."""

MAP_POINTS = 33
MAP_RATE = 6

WEIGHT = int(0.18 * ONE)
"""Mixing weights at the beginning, in 1/65536."""


class BitMixture(NamedTuple):
    """What is known about the probabilities of decisions.

    Attributes:
        slots: (n,) probability x 256 + number of observations, of every context.
        weights: (sets, INPUTS + 1) of the contexts in the mixture, in 1/65536, and the decisions so far.
        maps: (sets, MAP_POINTS) mixed logit -> probability, learned.
        chosen: (2 x INPUTS,) the slots of the next decision, the first of which is known, and room for their logits.
    """

    slots: Whole
    weights: Whole
    maps: Whole
    chosen: npt.NDArray[np.int64]


def new_mixture(slots: int, sets: int) -> BitMixture:
    """A mixture of which nothing is known."""
    weights = np.full((sets, INPUTS + 1), WEIGHT, dtype=np.int32)
    weights[:, INPUTS] = 0
    points = SQUASH[np.minimum(np.arange(MAP_POINTS) * 128, 4095)]
    return BitMixture(
        np.zeros(slots, dtype=np.int32), weights, np.tile(points, (sets, 1)), np.zeros(2 * INPUTS, dtype=np.int64)
    )


@compiled_part
def decided(bit: int, which: int, mixture: BitMixture, coder: Coder, data: Bytes) -> int:
    """Write or read a decision in the contexts of ``mixture.chosen``, and learn from it.

    Args:
        bit: 0 or 1; ignored when reading.
        which: set of mixing weights.
        mixture: what is known.
        coder: see :mod:`qubo_compress.menu.coding.adaptive.arithmetic`.
        data: its bytes.
    """
    slots, index, weights, maps = mixture.slots, mixture.chosen, mixture.weights, mixture.maps
    first = slots[index[0]]
    total = wide(0)
    for i in range(INPUTS):
        slot = slots[index[i]]
        if slot == 0:
            slot = (first & ~255) | NEW
            slots[index[i]] = slot
        logit = wide(STRETCH[slot >> 12])
        index[INPUTS + i] = logit
        total += weights[which, i] * logit
    logit = min(max(total >> 16, -LOGIT), LOGIT)
    mixed = wide(SQUASH[logit + 2048])
    # The map corrects what the mixture gets wrong: linear between two points.
    place = (logit + 2048) << 5
    left, part = place >> 12, place & 4095
    mapped = (maps[which, left] * (4096 - part) + maps[which, left + 1] * part) >> 12
    bit = coded_bit(bit, min(max((mixed + mapped) >> 1, RAREST), ONE - RAREST), coder, data)
    near = left + (part >> 11)
    maps[which, near] += (bit * (ONE - 1) - maps[which, near]) >> MAP_RATE
    seen = weights[which, INPUTS]
    step = (bit * ONE - mixed) * LEARNING[seen]
    weights[which, INPUTS] = min(seen + 1, LONGEST_COUNT)
    for i in range(INPUTS):
        weights[which, i] += (index[INPUTS + i] * step + (1 << 17)) >> 18
        slots[index[i]] = moved(slots[index[i]], bit)
    return bit


@compiled_part
def moved(slot: int, bit: int) -> int:
    """A slot after an observation."""
    count, probability = slot & 255, wide(slot >> 8)
    probability += ((bit * (ONE - 1) - probability) * RATES[count]) >> 16
    found: int = (probability << 8) | min(count + 1, LONGEST_COUNT)
    return found
