"""Any choice of whole numbers, with the layer's inputs rounded to a few bits as well.

``quantize(bits=8,activations=8)`` stores the weights as ``quantize(bits=8)`` does, and rounds the layer's inputs to 8
bits, so that runtimes can compute the layer in integers. The range of the inputs comes from the calibration examples:
see :mod:`qubo_compress.calibration.statistics.input_ranges`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from qubo_compress.calibration.statistics.input_ranges import InputRanges, ValueCounts
from qubo_compress.calibration.statistics.statistic import Statistic
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.operator import (
    ACTIVATIONS,
    ALREADY_STORED,
    PERCENTILE,
    Operator,
    choice_name,
    needs_data,
    operators,
    parse,
)
from qubo_compress.menu.storage.portable import Portable
from qubo_compress.menu.storage.stored import Grid, Stored
from qubo_compress.menu.storage.streams import Reader, Writer
from qubo_compress.network.groups import Group
from qubo_compress.network.rounding import InputRange

WITHOUT_INPUTS = (
    "Embedding", "EmbeddingBag", "MultiheadAttention", "NonDynamicallyQuantizableLinear", "Bilinear", "RNN", "LSTM",
    "GRU", "RNNCell", "LSTMCell", "GRUCell", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
)  # fmt: skip
"""Kinds of modules whose weights never take rounded inputs; of all others, :mod:`qubo_compress.network.roundable` tells
by trying."""

MOST_WEIGHT_BITS = 8
"""Integer kernels take weights of up to 8 bits."""


@dataclass(frozen=True, eq=False)
class RangedGroup(Stored):
    """A stored group and the ranges of its layers' inputs, which are written behind it.

    Attributes:
        inner: the group as its own operator stores it.
        ranges: one per member.
    """

    inner: Stored
    ranges: tuple[InputRange, ...]

    @property
    def nonzeros(self) -> int:
        return self.inner.nonzeros

    @property
    def weight_bits(self) -> int:
        return self.inner.weight_bits

    @property
    def activation_bits(self) -> int:
        return self.ranges[0].bits

    @property
    def input_ranges(self) -> tuple[InputRange, ...]:
        return self.ranges

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and five for every range."""
        return self.inner.nbytes + InputRange.NBYTES * len(self.ranges)

    def write(self, writer: Writer) -> None:
        self.inner.write(writer)
        for found in self.ranges:
            writer.raw(found.to_bytes())

    def tensors(self) -> tuple[Tensor, ...]:
        return self.inner.tensors()

    def portable(self, member: int) -> Portable | None:
        return self.inner.portable(member)

    def project(self, values: Sequence[Tensor], refit: bool = False) -> RangedGroup:
        """The nearest storable weights; ranges stay."""
        return replace(self, inner=self.inner.project(values, refit))

    def movable_masks(self) -> tuple[Tensor, ...]:
        return self.inner.movable_masks()

    def remasked(self, masks: Sequence[Tensor], numbers: Sequence[Tensor]) -> RangedGroup:
        return replace(self, inner=self.inner.remasked(masks, numbers))

    def grids(self) -> tuple[Grid, ...]:
        return self.inner.grids()

    def with_grids(self, grids: Iterator[Any]) -> Self:
        return replace(self, inner=self.inner.with_grids(grids))


@operators.register
@dataclass(frozen=True)
class Activations(Operator):
    """Another choice, with the layer's inputs rounded to a range: write ``quantize(bits=8,activations=8)``.

    One range per layer: asymmetric, unsigned, with an exact zero; five bytes in the file. It has the least squared
    error on the calibration examples, relative to each, or lies between percentiles of the values:
    ``quantize(bits=8,activations=8,percentile=99.9)``. The layer's function changes with its inputs, so both metrics
    measure it: the network runs with rounded inputs. Layers whose inputs no module receives as its own, such as fused
    attention and embeddings, are not offered it.

    Integer kernels without 8-bit dot products of the processor (VNNI) may overflow with 8-bit weights; 7 bits never do.

    Args:
        of: name of the choice that stores the weights: whole numbers of at most 8 bits.
        bits: of the inputs, 2 to 8. Runtimes compute with 8; fewer save accuracy, not time.
        percentile: share of the inputs, in percent, at or below the upper end of the range, and at or above the lower
            one; above 50, and 100 for the extreme values. By default the range has the least squared error.

    Raises:
        InvalidMenu: for other bits and percentiles, and choices whose weights are not whole numbers.

    Example:
        >>> parse("quantize(bits=8, activations=8)").written
        'quantize(bits=8,activations=8)'
    """

    operator_name: ClassVar[str] = ACTIVATIONS
    codable: ClassVar[bool] = False
    of: str
    bits: int
    percentile: float | None = None
    inner: Operator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inner = parse(self.of)
        if not (isinstance(self.bits, int) and not isinstance(self.bits, bool) and 2 <= self.bits <= 8):
            raise InvalidMenu(f"activations must be a whole number of bits from 2 to 8; got {self.bits!r}")
        share = self.percentile
        if share is not None:
            if isinstance(share, bool) or not (isinstance(share, int | float) and 50 < share <= 100):
                raise InvalidMenu(
                    f"the range of activations ends at a percentile above 50, up to 100, such as 99.9; got {share!r}"
                )
            object.__setattr__(self, "percentile", float(share))
        if not takes_activations(inner):
            raise InvalidMenu(
                f"{self.of} takes no activations: integer kernels need weights that are whole numbers of at most "
                f"{MOST_WEIGHT_BITS} bits times a step per output row, such as quantize(bits=8)"
            )
        object.__setattr__(self, "of", choice_name(inner))  # one name per choice, however the user wrote it
        object.__setattr__(self, "inner", inner)

    @property
    def activation_bits(self) -> int:
        return self.bits

    @property
    def code_bits(self) -> int | None:
        return self.inner.code_bits

    @property
    def written(self) -> str:
        opened = f"{self.of[:-1]}," if self.of.endswith(")") else f"{self.of}("
        share = "" if self.percentile is None else f",{PERCENTILE}={self.percentile!r}"
        return f"{opened}{ACTIVATIONS}={self.bits}{share})"

    @classmethod
    def samples(cls) -> tuple[Activations, ...]:
        others = cls("quantize(bits=3,sparsity=0.5)", 4), cls("compensate(bits=4)", 8, percentile=99.9)
        return cls("quantize(bits=8)", 8), *others

    @classmethod
    def faithful(cls) -> tuple[Activations, float] | None:
        return cls("quantize(bits=8)", 8), 0.02

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (*self.inner.needs, InputRanges())

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """As the inner choice; a filter alone has no inputs of its own."""
        if any(member.rows is not None for member in group.members):
            return "inputs are rounded for all filters of a layer at once: group by layer"
        if group.module_type in WITHOUT_INPUTS:
            return f"a {group.module_type} has no input that is multiplied with its weight alone"
        return self.inner.refusal(group, parts)

    def encode(self, group: Group, parts: Sequence[Tensor]) -> RangedGroup:
        raise needs_data(self)

    def encode_with(self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, Any]) -> RangedGroup:
        """Store as the inner choice does, or take its stored form if available, and fit the ranges."""
        stored = evidence.get(ALREADY_STORED, {}).get(self.of)
        if stored is None:
            stored = self.inner.encode_with(group, parts, evidence)
        counts: tuple[ValueCounts, ...] = evidence[InputRanges()]
        return RangedGroup(stored, tuple(found.fitted(self.bits, self.percentile) for found in counts))

    def decode(self, group: Group, data: memoryview) -> tuple[RangedGroup, int]:
        stored, used = self.inner.decode(group, data)
        size = InputRange.NBYTES
        ends = [used + size * number for number in range(len(group.members) + 1)]
        pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
        if any(len(piece) != size for piece in pieces):
            raise ValueError("the ranges of the inputs are missing")
        return RangedGroup(stored, tuple(InputRange.of_bytes(piece, self.bits) for piece in pieces)), ends[-1]

    def read(self, group: Group, reader: Reader) -> RangedGroup:
        """Read the inner choice, then the ranges."""
        stored = self.inner.read(group, reader)
        ranges = tuple(InputRange.of_bytes(reader.raw(InputRange.NBYTES), self.bits) for _ in group.members)
        return RangedGroup(stored, ranges)


def takes_activations(operator: Operator) -> bool:
    """Whether a choice's weights are whole numbers that integer kernels take.

    Example:
        >>> takes_activations(parse("quantize(bits=8)")), takes_activations(parse("prune(sparsity=0.5)"))
        (True, False)
    """
    return (
        operator.whole_numbers and not operator.activation_bits and 2 <= (operator.code_bits or 0) <= MOST_WEIGHT_BITS
    )
