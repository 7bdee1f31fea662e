"""The published objective: its value for given bits, and the same as a binary quadratic model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import dimod
import numpy as np
import numpy.typing as npt

from qubo_compress._internal.checks import whole
from qubo_compress.encodings.published.layers import Feed, FilterLayer
from qubo_compress.encodings.quadratic import LARGEST_COUPLINGS
from qubo_compress.errors import InvalidAssignment, InvalidProblem, ProblemTooLarge
from qubo_compress.problem.choice_problem import FloatArray, IntArray

Bits = npt.NDArray[np.int8]


class Terms(NamedTuple):
    """The parts of the objective: H = pruning + beta quantization - gamma reduction."""

    pruning: float
    quantization: float
    reduction: float


@dataclass(frozen=True, eq=False)
class FiltersAndBits:
    """H(p, q) = L_p + beta L_q - gamma R of a network's layers; see :mod:`qubo_compress.encodings.published`.

    The bits are x = (P, Q): those of all filters, layer by layer, then the codes, K bits per layer. Every pattern is
    valid.

    Attributes:
        layers: of the network.
        gamma: price of size: energy per unit of R.
        beta: weight of L_q.
        most_bits: b_max, the width of a layer whose code is zero.
        feeds: which layers read which; none: only a pruned filter's own weights count as saved.

    Raises:
        InvalidProblem: for values out of range, and codes that remove all bits of a layer.

    Example:
        >>> layer = FilterLayer("conv", [0.5, 0.1], 9, [[0.01]])
        >>> objective = FiltersAndBits((layer,), gamma=1.0, most_bits=4)
        >>> bqm = objective.to_bqm()
        >>> bqm.num_variables, bool(abs(bqm.energy([0, 1, 1]) - objective.energy([0, 1, 1])) < 1e-12)
        (3, True)
        >>> objective.terms([0, 1, 1]).reduction  # one of two filters, at three of four bits
        0.625
    """

    layers: tuple[FilterLayer, ...]
    gamma: float
    beta: float = 1.0
    most_bits: int = 9
    feeds: tuple[Feed, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "feeds", tuple(self.feeds))
        if not self.layers:
            raise InvalidProblem("there are no layers; give at least one")
        for name in ("gamma", "beta"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float, np.number)) and math.isfinite(value) and value >= 0):
                raise InvalidProblem(f"{name} must be a finite number that is not negative; got {value!r}")
            object.__setattr__(self, name, float(value))
        most = whole("most_bits", self.most_bits, 2, InvalidProblem)
        object.__setattr__(self, "most_bits", most)
        lengths = {len(layer.bit_losses) for layer in self.layers}
        if len(lengths) > 1:
            raise InvalidProblem(f"all layers need codes of one length; got lengths {sorted(lengths)}")
        if self.smallest_bits < 1:
            raise InvalidProblem(
                f"codes of {self.code_bits} bits remove up to {2**self.code_bits - 1} bits of {most}: nothing would be "
                f"left; give most_bits of at least {2**self.code_bits}, or shorter codes"
            )
        self._refuse_wrong_feeds()

    def _refuse_wrong_feeds(self) -> None:
        seen: set[int] = set()
        for feed in self.feeds:
            ends = (feed.consumer, feed.producer)
            if max(ends) >= len(self.layers) or feed.consumer == feed.producer:
                raise InvalidProblem(f"a feed joins two different layers of {len(self.layers)}; got {ends}")
            shape = (self.layers[feed.consumer].filters, self.layers[feed.producer].filters)
            if feed.weights.shape != shape:
                raise InvalidProblem(f"weights of the feed {ends} must have shape {shape}; got {feed.weights.shape}")
            if (feed.weights.sum(axis=1) > self.layers[feed.consumer].filter_size).any():
                raise InvalidProblem(f"the feed {ends} reads with more weights than a filter of the consumer has")
            if feed.consumer in seen:
                raise InvalidProblem(
                    f"layer {feed.consumer} has two producers: products of their bits are not modelled"
                )
            seen.add(feed.consumer)

    @property
    def code_bits(self) -> int:
        """K, the bits of a layer's code."""
        return len(self.layers[0].bit_losses)

    @property
    def smallest_bits(self) -> int:
        """The width of a layer whose code is all ones."""
        return self.most_bits - ((1 << self.code_bits) - 1)

    @property
    def starts(self) -> IntArray:
        """(N + 1,) first filter bit of every layer, and their number."""
        return np.concatenate([[0], np.cumsum([layer.filters for layer in self.layers])]).astype(np.int64)

    @property
    def num_bits(self) -> int:
        """Number of bits: one per filter and K per layer."""
        return int(self.starts[-1]) + self.code_bits * len(self.layers)

    @property
    def num_weights(self) -> int:
        """Number of weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def separable(self) -> bool:
        """Whether H is a sum of one function per layer: only without feeds."""
        return not any(feed.weights.any() for feed in self.feeds)

    @property
    def largest_clique(self) -> int:
        """Bits of the largest layer, all coupled with each other: what an annealing chip would have to embed."""
        return max(layer.filters for layer in self.layers) + self.code_bits

    def with_gamma(self, gamma: float) -> FiltersAndBits:
        """The same layers at another price of size."""
        return replace(self, gamma=gamma)

    def checked(self, bits: Any) -> Bits:
        """(n,) bits from a sample: a mapping from 0, 1, ... or a row.

        Raises:
            InvalidAssignment: for another number of bits, or values other than 0 and 1.
        """
        if isinstance(bits, Mapping):
            bits = [bits.get(number, -1) for number in range(max(self.num_bits, len(bits)))]
        row = np.asarray(bits)
        if row.shape != (self.num_bits,) or not np.isin(row, (0, 1)).all():
            raise InvalidAssignment(f"a sample of this model has {self.num_bits} bits 0 or 1; got shape {row.shape}")
        return row.astype(np.int8)

    def pruned(self, bits: Any) -> list[npt.NDArray[np.bool_]]:
        """For every layer (F,) which filters are pruned."""
        row, starts = self.checked(bits), self.starts
        return np.split(row[: starts[-1]].astype(bool), starts[1:-1])

    def widths(self, bits: Any) -> IntArray:
        """(N,) bit-width of every layer."""
        codes = self.checked(bits)[self.starts[-1] :].reshape(len(self.layers), -1)
        return np.asarray(self.most_bits - codes @ (1 << np.arange(self.code_bits)), dtype=np.int64)

    def terms(self, bits: Any) -> Terms:
        """L_p, L_q and R, computed from their definitions."""
        row, gone, widths = self.checked(bits), self.pruned(bits), self.widths(bits)
        codes = row[self.starts[-1] :].reshape(len(self.layers), -1).astype(np.float64)
        pruning = quantization = left = 0.0
        for layer, pruned, width, code in zip(self.layers, gone, widths, codes, strict=True):
            pruning += float(layer.scores[pruned].sum()) ** 2
            quantization += float(code @ layer.bit_losses @ code)
            left += float(width) * (layer.weights - layer.filter_size * int(pruned.sum()))
        for feed in self.feeds:
            useless = feed.weights[~gone[feed.consumer]][:, gone[feed.producer]].sum()
            left -= self.smallest_bits * float(useless)
        return Terms(pruning, quantization, 1.0 - left / (self.most_bits * self.num_weights))

    def energy(self, bits: Any) -> float:
        """H of one sample, from the definitions."""
        found = self.terms(bits)
        return found.pruning + self.beta * found.quantization - self.gamma * found.reduction

    def loss(self, bits: Any) -> float:
        """L_p + beta L_q of one sample: what is lost, without the price of size."""
        found = self.terms(bits)
        return found.pruning + self.beta * found.quantization

    @property
    def price(self) -> float:
        """Energy of one stored bit: gamma / (b_max weights)."""
        return self.gamma / (self.most_bits * self.num_weights)

    def to_bqm(self) -> dimod.BinaryQuadraticModel:
        """The binary quadratic model over the bits 0, 1, ...; its energy is H.

        Raises:
            ProblemTooLarge: for more couplings than can be built.
        """
        couplings = sum(layer.filters**2 // 2 for layer in self.layers) + sum(feed.weights.size for feed in self.feeds)
        if couplings > LARGEST_COUPLINGS:
            raise ProblemTooLarge(
                f"the model would have {couplings:,} couplings; at most {LARGEST_COUPLINGS:,} are built"
            )
        fields = np.zeros(self.num_bits)
        found: list[tuple[IntArray, IntArray, FloatArray]] = []
        for number, layer in enumerate(self.layers):
            self._add_layer(number, layer, fields, found)
        for feed in self.feeds:
            self._add_feed(feed, fields, found)
        rows, columns, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        used = values != 0
        vectors = (rows[used], columns[used], values[used])
        return dimod.BinaryQuadraticModel.from_numpy_vectors(fields, vectors, 0.0, dimod.BINARY)

    def _add_layer(self, number: int, layer: FilterLayer, fields: FloatArray, found: list[Any]) -> None:
        """The layer's part of H: R = sum (b_max size p + weights r - size p r) / (b_max weights), r = sum 2^k q."""
        filters = np.arange(self.starts[number], self.starts[number + 1])
        code = int(self.starts[-1]) + self.code_bits * number + np.arange(self.code_bits)
        removed = 2.0 ** np.arange(self.code_bits)
        fields[filters] += layer.scores**2 - self.price * self.most_bits * layer.filter_size
        fields[code] += self.beta * np.diag(layer.bit_losses) - self.price * layer.weights * removed
        one, two = np.triu_indices(layer.filters, 1)
        found.append((filters[one], filters[two], 2.0 * layer.scores[one] * layer.scores[two]))
        one, two = np.triu_indices(self.code_bits, 1)
        found.append((code[one], code[two], 2.0 * self.beta * layer.bit_losses[one, two]))
        every = np.tile(self.price * layer.filter_size * removed, layer.filters)
        found.append((np.repeat(filters, self.code_bits), np.tile(code, layer.filters), every))

    def _add_feed(self, feed: Feed, fields: FloatArray, found: list[Any]) -> None:
        """Saved: the smallest width x weights of a kept filter that read a pruned one, p (1 - p')."""
        saved = self.price * self.smallest_bits * feed.weights.astype(np.float64)
        producer = np.arange(self.starts[feed.producer], self.starts[feed.producer + 1])
        consumer = np.arange(self.starts[feed.consumer], self.starts[feed.consumer + 1])
        fields[producer] -= saved.sum(axis=0)
        found.append((np.repeat(consumer, producer.size), np.tile(producer, consumer.size), saved.ravel()))
