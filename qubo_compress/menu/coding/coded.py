"""An entropy coder behind any choice whose parts are streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qubo_compress.calibration.statistics.statistic import Statistic
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.coding.adaptive.group import (
    MARK,
    AdaptiveReader,
    adaptive_body,
    adaptive_bytes,
    adaptive_sizes,
    can_be_adaptive,
    padded,
)
from qubo_compress.menu.coding.contexts import Shape, shapes_of
from qubo_compress.menu.coding.lengths import varint
from qubo_compress.menu.coding.parts import Coding, Numbers, Part, Sized, fitted, recorded, sized
from qubo_compress.menu.coding.rate import Moves, rate_aware
from qubo_compress.menu.coding.writer import CodedReader, coded_bytes
from qubo_compress.menu.low_rank.stages import Stage
from qubo_compress.menu.operator import ALREADY_STORED, Operator, choice_name, needs_data, operators, parse
from qubo_compress.menu.quantize import Quantize, QuantizedTensors
from qubo_compress.menu.storage.portable import Portable
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Writer
from qubo_compress.network.groups import Group

CODER_ENDS = 32.0
"""Bits that the coder may need beyond its models' sum, including its last byte: -2 to 22 were measured."""

CODER_LOSS = 3e-4
"""Extra bits allowed per number: none were measured up to 400,000 numbers, but the coder's own bound is 6e-3."""

FEW_NUMBERS = 2048
"""Up to this many values, a group is coded to know its size, because those bits matter."""

FLOAT_SLACK = 0.02
"""Spare share of coded raw bytes: changed floats have no codes that could be shortened."""

MORE = 1.05
"""Factor on the bits to save: moved codes change the contexts, so more are requested than are missing."""

COARSE = 0.03
"""Steps become wider a second time if this many bits per code are still missing."""
ATTEMPTS = 12
BISECTIONS = 7

LOWEST_PRICE = 0.02
"""Of a bit, in squared steps, where the codes weigh bits themselves; it rises until they fit."""
PRICE_RISES = 4.0
PRICE_BISECTIONS = 3


@dataclass(frozen=True)
class _Numbers:
    """The numbers of a stored group that are set and moved: its values, or its parameters.

    Attributes:
        of: the numbers of a stored group.
        stored: (form, numbers, refit) -> the nearest storable ones in that form.
    """

    of: Callable[[Stored], tuple[Tensor, ...]]
    stored: Callable[[Stored, Sequence[Tensor], bool], Stored]


_VALUES = _Numbers(lambda stored: stored.tensors(), lambda form, values, refit: form.project(values, refit))
_PARAMETERS = _Numbers(
    lambda stored: stored.parameters() or stored.tensors(),
    lambda form, numbers, refit: form.store(numbers, refit),
)


@dataclass(frozen=True, eq=False)
class CodedGroup(Stored):
    """A stored group behind an entropy coder, in a capacity that later changes must fit.

    Attributes:
        inner: the group as its own operator stores it.
        shapes: number of values -> layout, of the group's members.
        codings: the model of every part, fixed when the values change; None in an adaptive stream, which needs none.
        capacity: bytes in the file; unused ones are zeros.
        written: these bytes, if they are known.
    """

    inner: Stored
    shapes: Mapping[int, Shape]
    codings: tuple[Coding, ...] | None
    capacity: int
    written: bytes | None = None

    @property
    def nbytes(self) -> int:
        return self.capacity

    @property
    def nonzeros(self) -> int:
        return self.inner.nonzeros

    @property
    def weight_bits(self) -> int:
        """Those of the inner group, once decoded."""
        return self.inner.weight_bits

    @cached_property
    def _data(self) -> bytes:
        if self.written is not None:
            return self.written
        if self.codings is None:
            return adaptive_bytes(recorded(self.inner, self.shapes), self.capacity)
        return coded_bytes(self.inner, self.shapes, self.codings, self.capacity)

    def to_bytes(self) -> bytes:
        """What the coder makes of the parts."""
        return self._data

    def write(self, writer: Writer) -> None:
        """What the coder makes of the parts."""
        writer.raw(self._data)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.inner.tensors()

    def within(self, capacity: int) -> CodedGroup:
        """The same group in the bytes of another one, which must suffice; unused ones are zeros."""
        return replace(self, capacity=capacity, written=None)

    def holding(self, inner: Stored) -> CodedGroup | None:
        """Other codes of the same form in the same bytes; None if they do not fit."""
        return replace(self, inner=inner, written=None) if self._judged(inner)[1] <= 0 else None

    def project(self, values: Sequence[Tensor], refit: bool = False) -> CodedGroup:
        """The nearest storable values whose coded bytes fit the capacity.

        If the nearest codes do not fit, the codes that save most bits for the least squared error move towards zero;
        with ``refit`` only while a bit costs less error than by wider steps, and then steps become wider. Values are
        compared in float32, even for float64 weights.
        """
        return self._moved(values, _VALUES, refit)

    def parameters(self) -> tuple[Tensor, ...]:
        return self.inner.parameters()

    def assemble(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.inner.assemble(parameters)

    def store(self, parameters: Sequence[Tensor], refit: bool = False) -> CodedGroup:
        """The nearest storable parameters whose coded bytes fit the capacity."""
        return self._moved(parameters, _PARAMETERS, refit)

    def portable(self, member: int) -> Portable | None:
        return self.inner.portable(member)

    def stages(self, member: int) -> tuple[Stage, ...]:
        return self.inner.stages(member)

    def _moved(self, values: Sequence[Tensor], numbers: _Numbers, refit: bool) -> CodedGroup:
        before = [value.float() for value in numbers.of(self.inner)]
        goal = [v.detach().cpu().float().reshape(b.shape) for v, b in zip(values, before, strict=True)]
        if all(torch.equal(old, new) for old, new in zip(before, goal, strict=True)):
            return self
        nearest = numbers.stored(self.inner, goal, refit)
        found = self._fitting(nearest, goal, numbers, refit)
        if found is None:
            found = self._furthest(before, goal, numbers, refit)
        # Among the codes that fit, the stored ones may be the nearest.
        stays = found is not nearest and _squared(before, goal) < _squared(numbers.of(found), goal)
        return self if stays else replace(self, inner=found, written=None)

    @cached_property
    def _own_sizes(self) -> list[Sized]:
        pairs = zip(recorded(self.inner, self.shapes), self.codings or (), strict=True)
        return [sized(part, coding) for part, coding in pairs]

    def _judged(self, packed: Stored) -> tuple[list[Sized], float]:
        """Sizes of all parts, and the bits above the capacity: zero or fewer certainly fit."""
        parts = recorded(packed, self.shapes)
        if self.codings is None:
            size, found = adaptive_sizes(parts)
            size += len(varint(self.capacity)) - len(varint(size))
            return found, 8.0 * (size - self.capacity)
        sizes = []
        for part, own in zip(parts, self._own_sizes, strict=True):
            stays = isinstance(part, Numbers) and part.of_mask and _same(part, own.part)
            sizes.append(own if stays else sized(part, own.coding))
        return sizes, self._excess(packed, sizes)

    def _excess(self, packed: Stored, sizes: Sequence[Sized]) -> float:
        numbers = sum(len(s.part) if isinstance(s.part, bytes) else s.part.values.size for s in sizes)
        if numbers > FEW_NUMBERS:
            side = sum(s.side for s in sizes)
            lengths = len(varint(int(side) // 8)) + len(varint(self.capacity))
            excess = side + sum(s.coded for s in sizes) + 8.0 * (lengths - self.capacity)
            doubt = CODER_ENDS + CODER_LOSS * numbers
            if excess > 0 or excess <= -doubt:
                return excess + doubt
        return 8.0 * (len(coded_bytes(packed, self.shapes, self.codings)) - self.capacity)

    def _fitting(self, near: Stored, goal: Sequence[Tensor], numbers: _Numbers, refit: bool) -> Stored | None:
        """Codes that fit and are near the goal; None if they cannot be made to fit."""
        sizes, excess = self._judged(near)
        asked = MORE
        for attempt in range(ATTEMPTS):
            if excess <= 0:
                return near
            moves = Moves.of(near, sizes, goal)
            missing = asked * excess - moves.saved_cheaply()
            wider = moves.widened(missing) if refit and missing > moves.codes * (attempt > 0) * COARSE else None
            if wider is None and not moves.any:
                return self._weighed(near, goal, refit)
            tried = moves.taken(asked * excess) if wider is None else numbers.stored(wider, goal, False)
            kept, (sizes, left) = sizes, self._judged(tried)
            if wider is None:
                # Moved codes change the contexts: the shortfall is added to the next request.
                asked *= float(np.clip(excess / max(excess - left, 1.0), 1.0, 2.0))
            elif left >= excess:
                refit, sizes = False, kept
                continue
            near, excess = tried, left
        return near if excess <= 0 else None

    def _weighed(self, near: Stored, goal: Sequence[Tensor], refit: bool) -> Stored | None:
        """Codes that fit at about the lowest price of a bit; None if the form has no codes that weigh bits."""
        low, high, best = 0.0, LOWEST_PRICE, None
        for _ in range(ATTEMPTS):
            tried = near.weighed(goal, high, refit)
            if tried is None:
                return None
            if self._judged(tried)[1] <= 0:
                best = tried
                break
            low, high = high, PRICE_RISES * high
        for _ in range(PRICE_BISECTIONS if best is not None else 0):
            middle = math.sqrt(low * high) if low > 0 else high / PRICE_RISES
            tried = near.weighed(goal, middle, refit)
            if tried is not None and self._judged(tried)[1] <= 0:
                best, high = tried, middle
            else:
                low = middle
        return best

    def _furthest(self, before: Sequence[Tensor], goal: Sequence[Tensor], numbers: _Numbers, refit: bool) -> Stored:
        """The largest step from the stored values towards the goal that fits; a zero step always does."""
        low, high, best = 0.0, 1.0, self.inner
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            moved = [b + middle * (g - b) for b, g in zip(before, goal, strict=True)]
            tried = numbers.stored(self.inner, moved, refit)
            if self._judged(tried)[1] <= 0:
                low, best = middle, tried
            else:
                high = middle
        return best


def _squared(values: Sequence[Tensor], goal: Sequence[Tensor]) -> float:
    return sum(float((v.float() - g).square().sum()) for v, g in zip(values, goal, strict=True))


def coded_group(inner: Stored, group: Group, name: str) -> CodedGroup:
    """A stored group behind the coder, with its present size as capacity.

    Args:
        inner: the group stored by its own operator.
        group: what is stored.
        name: of that choice, for messages.

    Raises:
        InvalidMenu: when it cannot be coded.
    """
    if inner.unreliable:
        raise InvalidMenu(f"{name} is stored in unreliable cells: one wrong bit would spoil all that is coded")
    shapes = shapes_of(group)
    parts = recorded(inner, shapes)
    if can_be_adaptive(parts):
        body, floats = adaptive_body(parts)
        capacity = _with_slack(len(padded(body)), floats)
        return CodedGroup(inner, shapes, None, capacity, padded(body, capacity))
    codings = tuple(fitted(part) for part in parts)
    slack = sum(sized(part, coding).coded for part, coding in zip(parts, codings, strict=True) if coding.planes)
    data = coded_bytes(inner, shapes, codings)
    return CodedGroup(inner, shapes, codings, _with_slack(len(data), slack / 8))


def _with_slack(size: int, floats: float) -> int:
    """Bytes of a group that leave some to spare for its coded floats."""
    capacity = size + math.ceil(FLOAT_SLACK * floats)
    # A larger length may need one more byte.
    return capacity + len(varint(capacity)) - len(varint(size))


def _same(part: Numbers, other: Part) -> bool:
    return isinstance(other, Numbers) and np.array_equal(part.values, other.values)


@operators.register
@dataclass(frozen=True)
class Coded(Operator):
    """Another choice behind an entropy coder: the same values in fewer bytes.

    The price is the exact size of the coded stream. Later changes (recovery) keep that size: values whose codes would
    need more bytes move towards zero. Files of older versions were coded otherwise: reading them, and coding numbers of
    more than 16 bits, needs ``pip install 'qubo_compress[entropy]'``.

    Args:
        of: name of the choice that is coded.
        rate: for ``quantize``: codes minimise squared error + rate x b x bits, with b = 2 ln 2 times the mean squared
            error of a weight without it, which is what a bit is worth there (6 dB per bit); 0: the nearest codes.

    Raises:
        InvalidMenu: when that choice cannot be coded, or not with a rate.

    Example:
        >>> Coded(of="quantize(bits=4)").inner
        Quantize(bits=4, sparsity=0.0)
    """

    operator_name: ClassVar[str] = "coded"
    codable: ClassVar[bool] = False
    of: str
    rate: float = 0.0
    inner: Operator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inner = parse(self.of)
        if not can_be_coded(inner):
            raise InvalidMenu(
                f"{self.of} cannot be coded: only choices that read their parts as streams can be, and not those in "
                "unreliable cells, where one wrong bit would spoil all that is coded"
            )
        if not (isinstance(self.rate, (int, float)) and 0 <= self.rate <= 10):
            raise InvalidMenu(f"rate must be a number from 0 to 10; got {self.rate!r}")
        if self.rate > 0 and not (isinstance(inner, Quantize) and not (inner.bits == 2 and inner.sparsity > 0)):
            raise InvalidMenu(f"rate moves the codes of quantize, which {self.of} has not; leave it out")
        object.__setattr__(self, "rate", float(self.rate))
        object.__setattr__(self, "of", choice_name(inner))  # one name per choice, however the user wrote it
        object.__setattr__(self, "inner", inner)

    @classmethod
    def samples(cls) -> tuple[Coded, ...]:
        names = ("quantize(bits=3)", "quantize(bits=2,sparsity=0.5)", "quantize(bits=12,sparsity=0.3)")
        rated = cls("quantize(bits=4)", 0.5)
        return (*map(cls, names), rated, cls("prune(sparsity=0.5)"))

    @classmethod
    def faithful(cls) -> tuple[Coded, float] | None:
        return cls("prune(sparsity=0.0)"), 0.0

    @property
    def code_bits(self) -> int | None:
        return self.inner.code_bits

    @property
    def whole_numbers(self) -> bool:  # type: ignore[override]
        return self.inner.whole_numbers

    @property
    def takes_unseen_inputs(self) -> bool:  # type: ignore[override]
        return self.inner.takes_unseen_inputs

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return self.inner.needs

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return self.inner.refusal(group, parts)

    def at_price(self, price: float) -> Coded | None:
        inner = self.inner.at_price(price)
        return None if inner is None else replace(self, of=choice_name(inner))

    def encode(self, group: Group, parts: Sequence[Tensor]) -> CodedGroup:
        """Store as the inner choice does, then code."""
        if self.needs:
            raise needs_data(self)
        stored = self.inner.encode(group, parts)
        if self.rate > 0 and isinstance(stored, QuantizedTensors):
            stored = rate_aware(stored, parts, self.rate, shapes_of(group))
        return coded_group(stored, group, self.of)

    def encode_with(self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, Any]) -> CodedGroup:
        """Store as the inner choice does, or take its stored form if available, then code."""
        if not self.needs:
            return self.encode(group, parts)
        stored = evidence.get(ALREADY_STORED, {}).get(self.of)
        if stored is None:
            stored = self.inner.encode_with(group, parts, evidence)
        return coded_group(stored, group, self.of)

    def decode(self, group: Group, data: memoryview) -> tuple[CodedGroup, int]:
        shapes = shapes_of(group)
        if bytes(data[:1]) == MARK:
            adaptive = AdaptiveReader(data, shapes)
            inner = self.inner.read(group, adaptive)
            adaptive.finish()
            return CodedGroup(inner, shapes, None, adaptive.used, bytes(data[: adaptive.used])), adaptive.used
        reader = CodedReader(data, shapes)
        inner = self.inner.read(group, reader)
        reader.finish()
        written = bytes(data[: reader.used])
        return CodedGroup(inner, shapes, tuple(reader.codings), reader.used, written), reader.used


def can_be_coded(operator: Operator) -> bool:
    """Whether ``coded(of=...)`` takes a choice.

    Example:
        >>> can_be_coded(Quantize(4)), can_be_coded(Coded("quantize(bits=4)"))
        (True, False)
    """
    return operator.codable and not operator.unreliable


def coded_name(choice: str) -> str:
    """Name of the coded form of a choice.

    Example:
        >>> coded_name("quantize(bits=4)")
        "coded(of='quantize(bits=4)')"
    """
    return f"coded(of={choice!r})"
