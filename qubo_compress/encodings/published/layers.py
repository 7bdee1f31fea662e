"""The numbers that the published objective needs of each layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.checks import whole
from qubo_compress.errors import InvalidProblem
from qubo_compress.problem.choice_problem import FloatArray, IntArray

MOST_CODE_BITS = 4
"""Most bits of a layer's code: 16 widths."""


@dataclass(frozen=True, eq=False)
class FilterLayer:
    """One layer: its filters, which may be pruned one by one, and its bit-width.

    Attributes:
        name: of the layer.
        scores: (F,) loss of each filter in L_p, at least zero: its mean absolute weight.
        filter_size: weights of one filter; all filters of a layer have equally many.
        bit_losses: (K, K) symmetric; the layer adds q . bit_losses q to L_q for its code q of K bits.
        unprunable: weights of the layer without a filter bit, such as those of an embedding.

    Raises:
        InvalidProblem: for values out of range.

    Example:
        >>> layer = FilterLayer("conv", [0.5, 0.1, 0.3], filter_size=9, bit_losses=squared_losses(0.1, 2))
        >>> layer.filters, layer.weights
        (3, 27)
    """

    name: str
    scores: FloatArray
    filter_size: int
    bit_losses: FloatArray
    unprunable: int = 0

    def __post_init__(self) -> None:
        scores = _finite(f"scores of {self.name!r}", self.scores, 1)
        losses = _finite(f"bit_losses of {self.name!r}", self.bit_losses, 2)
        if (scores < 0).any():
            raise InvalidProblem(f"scores of {self.name!r} must not be negative; got {scores.min()}")
        if losses.shape[0] != losses.shape[1] or not np.array_equal(losses, losses.T):
            raise InvalidProblem(f"bit_losses of {self.name!r} must be a symmetric square; got shape {losses.shape}")
        if not 1 <= len(losses) <= MOST_CODE_BITS:
            raise InvalidProblem(f"a layer's code has 1 to {MOST_CODE_BITS} bits; {self.name!r} has {len(losses)}")
        size = whole(f"filter_size of {self.name!r}", self.filter_size, 1 if scores.size else 0, InvalidProblem)
        unprunable = whole(f"unprunable of {self.name!r}", self.unprunable, 0, InvalidProblem)
        if not size * scores.size + unprunable:
            raise InvalidProblem(f"layer {self.name!r} has no weights")
        for name, value in {"scores": scores, "bit_losses": losses}.items():
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "filter_size", size)
        object.__setattr__(self, "unprunable", unprunable)

    @property
    def filters(self) -> int:
        """F, the number of filters with a bit."""
        return self.scores.size

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.filters * self.filter_size + self.unprunable


@dataclass(frozen=True, eq=False)
class Feed:
    """Filters of one layer whose outputs another one reads: pruning them makes the reading weights useless.

    With it, R also counts weights that read a pruned filter and belong to a filter that is not pruned. The exact saving
    is a product of three bits, p p q; it is made quadratic by counting these weights at the layer's *smallest* width,
    so that R never exceeds the true saving. That is our choice; files of this library store such weights.

    Attributes:
        producer, consumer: numbers of the layers.
        weights: (F of the consumer, F of the producer) how many weights of a consumer's filter read a producer's.

    Raises:
        InvalidProblem: for values out of range.
    """

    producer: int
    consumer: int
    weights: IntArray

    def __post_init__(self) -> None:
        counts = np.asarray(self.weights)
        if counts.ndim != 2 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
            raise InvalidProblem("weights of a feed must be a table of whole numbers that are not negative")
        counts = counts.astype(np.int64)
        counts.setflags(write=False)
        object.__setattr__(self, "weights", counts)
        for name in ("producer", "consumer"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 0, InvalidProblem))


def squared_losses(sensitivity: float, code_bits: int) -> FloatArray:
    """(K, K) bit losses of (sensitivity x removed bits)^2, the form analogous to L_p.

    Example:
        >>> squared_losses(0.5, 2).tolist()
        [[0.25, 0.5], [0.5, 1.0]]
    """
    steps = sensitivity * 2.0 ** np.arange(code_bits)
    return np.outer(steps, steps)


def _finite(name: str, values: npt.ArrayLike, axes: int) -> FloatArray:
    found = np.array(values, dtype=np.float64)
    if found.ndim != axes or not np.isfinite(found).all():
        raise InvalidProblem(f"{name} must be finite numbers along {axes} axes; got shape {found.shape}")
    return found
