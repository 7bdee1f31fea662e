r"""Groups in adaptive streams.

    0 (byte) | length of everything (varint) | bytes of the arithmetic coder | zeros

All parts of a group follow each other through one coder, and what is learned from one serves the next. Older groups
start with their length, which is never 0. Tensors have the layout that they are written with, or else that of a member
of their size; other numbers are read as one column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.adaptive.rates import bits_of_counts
from qubo_compress.menu.coding.adaptive.stream import LARGEST_MAGNITUDE, AdaptiveStream
from qubo_compress.menu.coding.contexts import Shape
from qubo_compress.menu.coding.layout import CodeLayout
from qubo_compress.menu.coding.lengths import read_varint, varint
from qubo_compress.menu.coding.parts import MOST_NUMBERS, Coding, Numbers, Part, Sized, placement
from qubo_compress.menu.storage.streams import Mask, Reader

Integers = npt.NDArray[np.int64]

MARK = b"\0"
"""First byte of a group in an adaptive stream."""

AHEAD = 4
"""Bytes that the arithmetic coder reads ahead."""

MOST_PER_BYTE = 1 << 14
"""A number takes at least one decision, of at least 0.0005 bits."""


def can_be_adaptive(parts: Sequence[Part]) -> bool:
    """Whether the adaptive coder takes all parts: all numbers up to 16 bits."""
    return all(isinstance(part, bytes) or max(-part.low, part.high) <= LARGEST_MAGNITUDE for part in parts)


def adaptive_bytes(parts: Sequence[Part], capacity: int | None = None) -> bytes:
    """The parts of a group in an adaptive stream, padded with zeros to ``capacity`` bytes if given.

    Raises:
        ValueError: when they do not fit.
    """
    return padded(_written(parts)[0], capacity)


def adaptive_body(parts: Sequence[Part]) -> tuple[bytes, int]:
    """The bytes of the arithmetic coder, and the bytes of those raw parts that take fewer than they hold."""
    body, stream = _written(parts)
    return body, stream.modelled


def adaptive_sizes(parts: Sequence[Part]) -> tuple[int, list[Sized]]:
    """The bytes of a group in an adaptive stream, exactly, and an estimate of what every code costs."""
    body, stream = _written(parts)
    found = []
    for part, levels in zip(parts, stream.levels, strict=True):
        if isinstance(part, bytes) or levels is None or part.count > MOST_NUMBERS:
            found.append(Sized(part, Coding(), None, 0.0, 0.0))
            continue
        trellis = _layout(part)[0].states > 0
        top = max(-part.low, part.high)
        of_magnitude = bits_of_counts(stream.coder.counts[trellis], trellis, top).reshape(-1, top + 1)
        bits = of_magnitude[:, np.abs(np.arange(part.low, part.high + 1))]
        found.append(Sized(part, Coding(), levels.astype(np.int64), 0.0, 0.0, bits))
    return len(padded(body)), found


def padded(body: bytes, capacity: int | None = None) -> bytes:
    """A group in an adaptive stream, from the bytes of its arithmetic coder; see :func:`adaptive_bytes`."""
    if capacity is None:
        size = len(body) + 1
        size += len(varint(size + len(varint(size))))
        return MARK + varint(size) + body
    data = MARK + varint(capacity) + body
    if len(data) > capacity:
        raise ValueError(f"{len(data)} coded bytes do not fit into {capacity}")
    return data.ljust(capacity, b"\0")


class _StreamedParts:
    """Parts of a group on their way into a stream, or out of it.

    Attributes:
        coder: the stream.
        levels: of the codes of every part, or None.
        modelled: bytes of raw parts that took fewer than they hold.
    """

    def __init__(self, coder: AdaptiveStream) -> None:
        self.coder = coder
        self.levels: list[npt.NDArray[np.uint8] | None] = []
        self.modelled = 0

    def raw(self, values: Integers) -> None:
        """Bytes."""
        before = self.coder.place
        self.coder.raw(values)
        taken = self.coder.place - before
        self.modelled += taken if taken < values.size else 0
        self.levels.append(None)

    def numbers(self, part: Numbers) -> Integers:
        """A part's numbers, or those that were coded in its place."""
        values = part.values.copy()
        found = None
        if part.low == part.high or values.size == 0:
            values[:] = part.low
        elif part.count == 2 and not part.of_mask:
            # Changed signs cannot be shortened, so they stay uncoded.
            values = self.coder.fields(values - part.low, 1) + part.low
        else:
            values, found = self._tensor(part, values)
        if values.size and not part.low <= int(values.min()) <= int(values.max()) <= part.high:
            raise ValueError(f"coded numbers are not from {part.low} to {part.high}")
        self.levels.append(found)
        return values

    def _tensor(self, part: Numbers, values: Integers) -> tuple[Integers, npt.NDArray[np.uint8]]:
        layout, present = _layout(part)
        if present is None:
            codes = values.reshape(layout.rows, layout.columns)
            levels = self.coder.tensor(codes, part.low, part.high, layout)
            return codes.reshape(-1), levels.reshape(-1)
        codes = np.zeros((layout.rows, layout.columns), dtype=np.int64)
        codes[present] = values
        levels = self.coder.tensor(codes, part.low, part.high, layout, present)
        return codes[present], levels[present]


def _layout(part: Numbers) -> tuple[CodeLayout, Mask | None]:
    """Layout of a part's tensor, and which of its codes there are."""
    layout = part.layout
    if layout is None and part.shape is not None:
        rows, channels, positions = part.shape
        layout = CodeLayout(rows, channels * positions, positions)
    count = part.values.size if part.present is None else part.present.size
    if layout is not None and layout.size != count:
        raise ValueError(f"{count} codes are not those of a tensor of {layout.size}")
    if layout is None or layout.rows == 1:
        layout = CodeLayout(count, 1)  # a trellis of one row is always in state 0: its codes are plain
    present = None if part.present is None else part.present.reshape(layout.rows, layout.columns)
    return layout, present


def _written(parts: Sequence[Part]) -> tuple[bytes, _StreamedParts]:
    room = 64 + sum(len(part) if isinstance(part, bytes) else part.values.size for part in parts)
    while True:
        found = _StreamedParts(AdaptiveStream.writer(room))
        for part in parts:
            if isinstance(part, bytes):
                found.raw(np.frombuffer(part, dtype=np.uint8).astype(np.int64))
            else:
                found.numbers(part)
        body = found.coder.finish()
        if body is not None:
            return body, found
        room *= 2


class AdaptiveReader(Reader):
    """Reads a group from an adaptive stream.

    Args:
        data: starts with the group, and may continue after its end.
        shapes: see :func:`~qubo_compress.menu.coding.contexts.shapes_of`.

    Attributes:
        used: bytes of the group.

    Raises:
        ValueError: when the bytes are cut short or visibly altered.
    """

    def __init__(self, data: memoryview, shapes: Mapping[int, Shape]) -> None:
        self.used, start = read_varint(data, len(MARK))
        if not start <= self.used <= len(data):
            raise ValueError("the coded bytes are cut short")
        body = bytes(data[start : self.used]).rstrip(b"\0")
        self._size = len(body)
        self._parts = _StreamedParts(AdaptiveStream.reader(memoryview(body)))
        self._shapes = shapes
        self._survivors: Mask | None = None

    def finish(self) -> None:
        """Check that all bytes were read.

        Raises:
            ValueError: when some were not.
        """
        if self._size > self._parts.coder.place:
            raise ValueError("the coded bytes hold more than their parts")

    def raw(self, count: int) -> memoryview:
        values = self._room(count)
        self._parts.raw(values)
        return memoryview(values.astype(np.uint8).tobytes())

    def mask(self, count: int) -> Mask:
        shape = self._shapes.get(count)
        values = self._parts.numbers(Numbers(self._room(count), 0, 1, shape, of_mask=True))
        survivors = values.astype(bool)
        self._survivors = survivors.reshape(shape) if shape else None
        return survivors

    def codes(self, count: int, low: int, high: int, layout: CodeLayout | None = None) -> Integers:
        shape, present = placement(self._shapes, self._survivors, count)
        return self._parts.numbers(Numbers(self._room(count), low, high, shape, present, layout=layout))

    def _room(self, count: int) -> Integers:
        """Zeros, for no more numbers than so many bytes can hold, or a member has."""
        if count not in self._shapes and count > MOST_PER_BYTE * (self._size + AHEAD):
            raise ValueError(f"{count} numbers are wanted of a group of {self.used} bytes")
        return np.zeros(count, dtype=np.int64)
