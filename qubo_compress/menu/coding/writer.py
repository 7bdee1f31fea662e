"""An entropy coder behind the interface of writers: asymmetric numeral systems by ``constriction``.

A coded group is

    length of everything (varint) | length of the side bytes (varint) | side bytes | words of the coder | zeros

The side bytes hold, in the order of the parts, a tag for every stream and then its models, or the stream in plain
fields. All coded numbers of the group share one sequence of words without its last zero bytes; zeros pad it to the
promised length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.optional import require
from qubo_compress.menu.coding.contexts import Shape, drawn, in_order, mean_size
from qubo_compress.menu.coding.kernels import CONTEXTS
from qubo_compress.menu.coding.layout import CodeLayout
from qubo_compress.menu.coding.lengths import read_varint, varint
from qubo_compress.menu.coding.models import PLAIN, Model, read_model
from qubo_compress.menu.coding.parts import (
    CODED,
    IN_CONTEXT,
    MOST_IN_CONTEXT,
    PLANES,
    SHORTEST_IN_PLANES,
    Coding,
    Numbers,
    Part,
    PartRecorder,
    fitted,
    low_bits,
    placement,
    planes_of,
)
from qubo_compress.menu.storage.packing import pack_codes, packed_size, unpack_codes, unpack_mask
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Mask, PlainReader, Reader, Whole, Writer, code_bytes

Integers = npt.NDArray[np.int64]

CHUNK = 1 << 15
"""Numbers passed to the coder at a time."""


class CodedWriter(Writer):
    """Codes the parts of a group.

    Args:
        shapes: see :func:`~qubo_compress.menu.coding.contexts.shapes_of`.
        codings: one per part, or None: each part's best.

    Example:
        >>> writer = CodedWriter({})
        >>> writer.codes(np.array([0, 1, 0, -2, 0, 1] * 50), -7, 7)
        >>> data = writer.data()
        >>> len(data) < 75, CodedReader(memoryview(data), {}).codes(300, -7, 7)[:6].tolist()
        (True, [0, 1, 0, -2, 0, 1])
    """

    def __init__(self, shapes: Mapping[int, Shape], codings: Sequence[Coding] | None = None) -> None:
        self._stream: Any = require("constriction", "entropy").stream
        self._recorder = PartRecorder(shapes)
        self._codings = codings

    def raw(self, data: bytes) -> None:
        self._recorder.raw(data)

    def mask(self, survivors: Mask) -> None:
        """As a packed mask, or one number per value."""
        self._recorder.mask(survivors)

    def codes(self, values: Whole, low: int, high: int, layout: CodeLayout | None = None) -> None:
        self._recorder.codes(values, low, high, layout)

    def codings(self) -> tuple[Coding, ...]:
        """The coding of each part written so far."""
        parts = self._recorder.parts
        return tuple(fitted(part) for part in parts) if self._codings is None else tuple(self._codings)

    def data(self, capacity: int | None = None) -> bytes:
        """Everything written so far, padded to ``capacity`` bytes if given.

        Raises:
            ValueError: when it does not fit.
        """
        side = bytearray()
        coded: list[tuple[Numbers, Coding]] = []
        for part, coding in zip(self._recorder.parts, self.codings(), strict=True):
            self._add(part, coding, side, coded)
        coder = self._stream.stack.AnsCoder()
        for part, coding in reversed(coded):
            self._push(coder, part, coding)
        # The last word is never zero, so its zero bytes can be restored.
        words: bytes = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        body = varint(len(side)) + bytes(side) + words
        size = len(body)
        for _ in range(3):  # the length counts its own bytes
            size = len(body) + len(varint(size if capacity is None else capacity))
        if capacity is None:
            return varint(size) + body
        if size > capacity:
            raise ValueError(f"{size} coded bytes do not fit into {capacity}")
        return (varint(capacity) + body).ljust(capacity, b"\0")

    def _add(self, part: Part, coding: Coding, side: bytearray, coded: list[tuple[Numbers, Coding]]) -> None:
        if isinstance(part, bytes):
            if len(part) >= SHORTEST_IN_PLANES:
                side.append(len(coding.planes))
            if not coding.planes:
                side += part
                return
            for stream, plane in zip(planes_of(part, len(coding.planes)), coding.planes, strict=True):
                self._add(stream, plane, side, coded)
            return
        side += coding.header()
        if not coding.models:
            side += part.plain()
            return
        if part.shift:
            side += pack_codes((part.values - part.low) & ((1 << part.shift) - 1), part.shift).tobytes()
        coded.append((part, coding))

    def _push(self, coder: Any, part: Numbers, coding: Coding) -> None:
        symbols = part.symbols.astype(np.int32)
        if len(coding.models) == 1:
            coder.encode_reverse(symbols, self._stream.model.Categorical(coding.probabilities[0], perfect=False))
            return
        family = self._stream.model.Categorical(perfect=False)
        symbols = in_order(part.placed(symbols), part.present)
        where = in_order(part.placed(part.in_context(coding)), part.present)
        for start in reversed(range(0, symbols.size, CHUNK)):
            here = slice(start, start + CHUNK)
            coder.encode_reverse(np.ascontiguousarray(symbols[here]), family, coding.probabilities[where[here]])


class CodedReader(Reader):
    """Inverse of :class:`CodedWriter`.

    Args:
        data: starts where the writer started, and may continue after its end.
        shapes: the writer's.

    Attributes:
        used: bytes of the group.
        codings: of the parts read so far.

    Raises:
        ValueError: when the bytes are cut short or visibly altered.
    """

    def __init__(self, data: memoryview, shapes: Mapping[int, Shape]) -> None:
        self._stream: Any = require("constriction", "entropy").stream
        self.used, start = read_varint(data, 0)
        length, start = read_varint(data, start)
        if self.used > len(data) or start + length > self.used:
            raise ValueError("the coded bytes are cut short")
        self._side = data[start : start + length]
        self._at = 0
        words = bytes(data[start + length : self.used]).rstrip(b"\0")
        words = words.ljust(-(-len(words) // 4) * 4, b"\0")
        self._coder = self._stream.stack.AnsCoder(np.frombuffer(words, dtype="<u4").astype(np.uint32))
        self._shapes = shapes
        self._survivors: Mask | None = None
        self.codings: list[Coding] = []

    def finish(self) -> None:
        """Check that all bytes were read.

        Raises:
            ValueError: when some were not.
        """
        if self._at != len(self._side) or not self._coder.is_empty():
            raise ValueError("the coded bytes hold more than their parts")

    def raw(self, count: int) -> memoryview:
        planes = self._take(1)[0] if count >= SHORTEST_IN_PLANES else 0
        if not planes:
            self.codings.append(Coding())
            return self._take(count)
        if planes not in PLANES or count % planes:
            raise ValueError(f"{count} raw bytes cannot have been coded in {planes} planes")
        found = [self._numbers(count // planes, 0, 255, None, None, False) for _ in range(planes)]
        self.codings.append(Coding(planes=tuple(coding for _, coding in found)))
        return memoryview(np.stack([values for values, _ in found], 1).astype(np.uint8).tobytes())

    def mask(self, count: int) -> Mask:
        shape = self._shapes.get(count)
        values, coding = self._numbers(count, 0, 1, shape, None, True)
        self.codings.append(coding)
        survivors = values.astype(bool)
        self._survivors = survivors.reshape(shape) if shape else None
        return survivors

    def codes(self, count: int, low: int, high: int, layout: CodeLayout | None = None) -> Integers:
        shape, present = placement(self._shapes, self._survivors, count)
        values, coding = self._numbers(count, low, high, shape, present, False)
        self.codings.append(coding)
        return values

    def _take(self, count: int) -> memoryview:
        found = self._side[self._at : self._at + count]
        if len(found) != count:
            raise ValueError("the coded bytes hold fewer side bytes than their parts need")
        self._at += count
        return found

    def _numbers(
        self, count: int, low: int, high: int, shape: Shape | None, present: Mask | None, of_mask: bool
    ) -> tuple[Integers, Coding]:
        tag = self._take(1)[0]
        if tag == PLAIN:
            if of_mask:
                survivors, read = unpack_mask(self._side[self._at :], count)
                self._take(read)
                return survivors.astype(np.int64), Coding()
            return PlainReader(self._take(code_bytes(count, low, high))).codes(count, low, high), Coding()
        shift = low_bits(low, high)
        if tag == CODED:
            bottom, top = (0, (high - low) >> shift) if shift else (low, high)
            coding = Coding((self._model(bottom, top),))
            rest = unpack_codes(np.frombuffer(self._take(packed_size(count, shift)), dtype=np.uint8), count, shift)
            distribution = self._stream.model.Categorical(coding.probabilities[0], perfect=False)
            found = self._coder.decode(distribution, count).astype(np.int64)
            return (found << shift) + rest + low, coding
        if tag != IN_CONTEXT or shape is None or high - low + 1 > MOST_IN_CONTEXT:
            raise ValueError(f"{tag} is no way to code {count} numbers from {low} to {high}")
        mean = self._take(1)[0]
        coding = Coding(tuple(self._model(low, high) for _ in range(CONTEXTS)), mean)
        return self._in_context(coding, low, shape, present, of_mask), coding

    def _model(self, low: int, high: int) -> Model:
        found, read = read_model(self._side[self._at :], low, high)
        self._take(read)
        return found

    def _in_context(self, coding: Coding, low: int, shape: Shape, present: Mask | None, of_mask: bool) -> Integers:
        family = self._stream.model.Categorical(perfect=False)

        def draw(where: Integers) -> Integers:
            if where.size == 0:
                return where
            found: Integers = self._coder.decode(family, coding.probabilities[where]).astype(np.int64) + low
            return found

        return drawn(shape, present, mean_size(coding.mean), of_mask, draw)


def coded_bytes(
    stored: Stored,
    shapes: Mapping[int, Shape] | None = None,
    codings: Sequence[Coding] | None = None,
    capacity: int | None = None,
) -> bytes:
    """A group's parts as coded bytes.

    Args:
        stored: the group.
        shapes: layouts of its members, or None: no contexts.
        codings: of every part, or None: each part's best.
        capacity: see :meth:`CodedWriter.data`.
    """
    writer = CodedWriter(shapes or {}, codings)
    stored.write(writer)
    return writer.data(capacity)
