"""An entropy coder behind the interface of writers: asymmetric numeral systems by ``constriction``.

A coded group is

    length of everything (varint) | length of the side bytes (varint) | side bytes | words of the coder | zeros

The side bytes hold, in the order of the parts, a tag for every stream and then its models, or the stream in plain
fields. All coded numbers of the group share one sequence of words, whose last zero bytes are left out; zeros fill up
to the length that was promised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.entropy_contexts import (
    CONTEXTS,
    Shape,
    contexts,
    drawn,
    in_order,
    mean_byte,
    mean_size,
)
from qubo_compress.menu.entropy_models import PLAIN, Floats, Model, best_model, bits_of, read_model
from qubo_compress.menu.packing import pack_codes, pack_mask, packed_size, unpack_codes, unpack_mask
from qubo_compress.menu.streams import Mask, PlainReader, PlainWriter, Streamed, Whole, code_bytes
from qubo_compress.optional import require

Integers = npt.NDArray[np.int64]

CODED, IN_CONTEXT = 1, 2
"""Tags of streams: one model, or one per context. ``PLAIN`` is 0."""

MOST_NUMBERS = 1024
"""Of wider ranges the low bits are stored plainly."""

MOST_IN_CONTEXT = 255
"""Numbers of a range for which contexts are tried: beyond, a model per context costs more than it saves."""

FEWEST_IN_CONTEXT = 512
SHORTEST_IN_PLANES = 32
PLANES = (2, 4, 8)
"""Bytes of a float: raw bytes are coded plane by plane, since exponents resemble each other."""

CHUNK = 1 << 15


@dataclass(frozen=True)
class Coding:
    """How one stream is coded.

    Attributes:
        models: none: plainly; one; or one per context.
        mean: byte of the mean size, where there are contexts.
        planes: of raw bytes; none: plainly.
    """

    models: tuple[Model, ...] = ()
    mean: int = 0
    planes: tuple[Coding, ...] = ()

    def header(self) -> bytes:
        """Tag and models as they are stored."""
        if not self.models:
            return bytes([PLAIN])
        made = b"".join(model.header() for model in self.models)
        return bytes([CODED]) + made if len(self.models) == 1 else bytes([IN_CONTEXT, self.mean]) + made

    @cached_property
    def probabilities(self) -> Floats:
        """(models, numbers) as the coder takes them."""
        return np.stack([model.probabilities() for model in self.models])

    @cached_property
    def bits(self) -> Floats:
        """(models, numbers) bits that each number takes."""
        return np.stack([bits_of(model) for model in self.models])


@dataclass(frozen=True)
class Numbers:
    """A stream of whole numbers, or a mask.

    Attributes:
        values: (n,).
        low: smallest possible.
        high: largest possible.
        shape: of the tensor that they are of, or None.
        present: (rows, channels, positions) where there are numbers, or None for everywhere.
        of_mask: whether they are a mask.
    """

    values: Integers
    low: int
    high: int
    shape: Shape | None = None
    present: Mask | None = None
    of_mask: bool = False

    @property
    def shift(self) -> int:
        """Low bits that are stored plainly."""
        return low_bits(self.low, self.high)

    @property
    def symbols(self) -> Integers:
        """(n,) what is coded, from 0 on."""
        return (self.values - self.low) >> self.shift

    @property
    def count(self) -> int:
        """Number of different symbols."""
        return ((self.high - self.low) >> self.shift) + 1

    def placed(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(rows, channels, positions) of values, zero where there are none."""
        assert self.shape is not None  # noqa: S101 - asked for streams with contexts only
        if self.present is None:
            return values.reshape(self.shape)
        whole = np.zeros(self.shape, dtype=values.dtype)
        whole[self.present] = values
        return whole

    def in_context(self, coding: Coding) -> Integers:
        """(n,) number of the model of every value."""
        if len(coding.models) == 1:
            return np.zeros(self.values.size, dtype=np.int64)
        assert self.shape is not None  # noqa: S101 - asked for streams with contexts only
        found = contexts(self.placed(np.abs(self.values)), mean_size(coding.mean), self.of_mask)
        return found.reshape(-1) if self.present is None else found[self.present]

    def plain(self) -> bytes:
        """In plain fields."""
        if self.of_mask:
            return pack_mask(self.values.astype(bool))
        writer = PlainWriter()
        writer.codes(self.values, self.low, self.high)
        return writer.data()

    def plain_size(self) -> int:
        """Length of :meth:`plain`."""
        return len(self.plain()) if self.of_mask else code_bytes(self.values.size, self.low, self.high)


Part = bytes | Numbers


def low_bits(low: int, high: int) -> int:
    """Bits of a range that are stored plainly, so that what is left has few numbers."""
    return max(0, int(high - low).bit_length() - MOST_NUMBERS.bit_length() + 1)


def planes_of(data: bytes, count: int) -> list[Numbers]:
    """Raw bytes as streams, one per byte of a float."""
    table = np.frombuffer(data, dtype=np.uint8).reshape(-1, count).astype(np.int64)
    return [Numbers(table[:, plane], 0, 255) for plane in range(count)]


class Recorder:
    """A writer that keeps the parts of a group, with what is known of their layout.

    Args:
        shapes: see :func:`~qubo_compress.menu.entropy_contexts.shapes_of`.
    """

    def __init__(self, shapes: Mapping[int, Shape]) -> None:
        self.parts: list[Part] = []
        self._shapes = shapes
        self._survivors: Mask | None = None

    def raw(self, data: bytes) -> None:
        """Keep the bytes."""
        self.parts.append(data)

    def mask(self, survivors: Mask) -> None:
        """Keep the mask: the codes of its survivors may follow."""
        shape = self._shapes.get(survivors.size)
        self._survivors = survivors.reshape(shape) if shape else None
        self.parts.append(Numbers(survivors.astype(np.int64), 0, 1, shape, of_mask=True))

    def codes(self, values: Whole, low: int, high: int) -> None:
        """Keep the numbers."""
        shape, present = placement(self._shapes, self._survivors, values.size)
        self.parts.append(Numbers(values.astype(np.int64), low, high, shape, present))


def placement(shapes: Mapping[int, Shape], survivors: Mask | None, count: int) -> tuple[Shape | None, Mask | None]:
    """Shape and places of so many numbers: a whole tensor, or the survivors of the last mask."""
    if survivors is not None and int(survivors.sum()) == count:
        return (survivors.shape[0], survivors.shape[1], survivors.shape[2]), survivors
    return shapes.get(count), None


def recorded(packed: Streamed, shapes: Mapping[int, Shape]) -> list[Part]:
    """The parts of a stored group."""
    recorder = Recorder(shapes)
    packed.write(recorder)
    return recorder.parts


def fitted(part: Part) -> Coding:
    """The coding of the fewest bytes, header included."""
    if isinstance(part, bytes):
        return _fitted_raw(part)
    plain = part.plain_size()
    # Signs cannot be made shorter when they change: they stay as they are.
    if part.values.size == 0 or (part.count == 2 and not part.of_mask) or part.count < 2:
        return Coding()
    best, least = Coding(), 8.0 * plain
    top = part.low + part.count - 1 if not part.shift else part.count - 1
    low = part.low if not part.shift else 0
    counts = np.bincount(part.symbols, minlength=part.count)
    model, bits = best_model(counts, low, top)
    bits += packed_size(part.values.size, part.shift) * 8
    if bits < least:
        best, least = Coding((model,)), bits
    if part.shape and part.count <= MOST_IN_CONTEXT and part.values.size >= FEWEST_IN_CONTEXT:
        found, bits = _fitted_contexts(part)
        if bits < least:
            best = found
    return best


def _fitted_contexts(part: Numbers) -> tuple[Coding, float]:
    mean = mean_byte(float(np.abs(part.values).sum()) / float(np.prod(part.shape or (1,))))
    where = contexts(part.placed(np.abs(part.values)), mean_size(mean), part.of_mask)
    where = where.reshape(-1) if part.present is None else where[part.present]
    counts = np.bincount(where * part.count + part.symbols, minlength=CONTEXTS * part.count)
    found = [best_model(row, part.low, part.high) for row in counts.reshape(CONTEXTS, part.count)]
    return Coding(tuple(model for model, _ in found), mean), 8.0 + sum(bits for _, bits in found)


def _fitted_raw(data: bytes) -> Coding:
    best, least = Coding(), 8.0 * len(data)
    if len(data) < SHORTEST_IN_PLANES:
        return best
    for count in PLANES:
        if len(data) % count:
            continue
        streams = planes_of(data, count)
        planes = tuple(fitted(stream) for stream in streams)
        taken = [sized(stream, plane) for stream, plane in zip(streams, planes, strict=True)]
        bits = 8.0 + sum(size.side + size.coded for size in taken)
        if bits < least:
            best, least = Coding(planes=planes), bits
    return best


@dataclass(frozen=True, eq=False)
class Sized:
    """A part, how it is coded, and what that takes.

    Attributes:
        part: the part.
        coding: its coding.
        where: (n,) number of the model of every value; None for parts that are plain or coded in planes.
        side: bits in the side bytes, exactly.
        coded: bits in the coder's words; their sum over the parts is right to a few bits.
    """

    part: Part
    coding: Coding
    where: Integers | None
    side: float
    coded: float


def sized(part: Part, coding: Coding) -> Sized:
    """What a part takes, without coding it."""
    if isinstance(part, bytes):
        if not coding.planes:
            return Sized(part, coding, None, 8.0 * (len(part) + (len(part) >= SHORTEST_IN_PLANES)), 0.0)
        pairs = zip(planes_of(part, len(coding.planes)), coding.planes, strict=True)
        planes = [sized(stream, plane) for stream, plane in pairs]
        return Sized(part, coding, None, 8.0 + sum(p.side for p in planes), sum(p.coded for p in planes))
    side = 8.0 * len(coding.header())
    if not coding.models:
        return Sized(part, coding, None, side + 8.0 * part.plain_size(), 0.0)
    where = part.in_context(coding)
    counts = np.bincount(where * part.count + part.symbols, minlength=coding.bits.size)
    side += 8.0 * packed_size(part.values.size, part.shift)
    return Sized(part, coding, where, side, float(coding.bits.reshape(-1) @ counts))


def varint(value: int) -> bytes:
    r"""A whole number, seven bits a byte, lowest first.

    Example:
        >>> varint(5), varint(300)
        (b'\x05', b'\xac\x02')
    """
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def read_varint(data: memoryview, start: int) -> tuple[int, int]:
    """Inverse of :func:`varint`: the number and where the next byte is."""
    value, shift = 0, 0
    while True:
        if start >= len(data) or shift > 35:
            raise ValueError("the coded bytes end in the middle of a length")
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start


class CodedWriter:
    """Codes the parts of a group.

    Args:
        shapes: see :func:`~qubo_compress.menu.entropy_contexts.shapes_of`.
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
        self._recorder = Recorder(shapes)
        self._codings = codings

    def raw(self, data: bytes) -> None:
        """Plainly, or by planes."""
        self._recorder.raw(data)

    def mask(self, survivors: Mask) -> None:
        """As a packed mask, or one number per value."""
        self._recorder.mask(survivors)

    def codes(self, values: Whole, low: int, high: int) -> None:
        """As plain fields, or coded."""
        self._recorder.codes(values, low, high)

    def codings(self) -> tuple[Coding, ...]:
        """How each part is coded."""
        parts = self._recorder.parts
        return tuple(fitted(part) for part in parts) if self._codings is None else tuple(self._codings)

    def data(self, capacity: int | None = None) -> bytes:
        """Everything written so far, filled up to ``capacity`` bytes where that is given.

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
        # The last word is never zero, so that its zero bytes can be put back.
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


class CodedReader:
    """Inverse of :class:`CodedWriter`.

    Args:
        data: starts where the writer started and may go on beyond.
        shapes: those of the writer.

    Attributes:
        used: bytes of the group.
        codings: how each part was coded that was read so far.

    Raises:
        ValueError: when the bytes are cut short or were altered in a way that can be noticed.
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
        """Check that nothing is left.

        Raises:
            ValueError: when something is.
        """
        if self._at != len(self._side) or not self._coder.is_empty():
            raise ValueError("the coded bytes hold more than their parts")

    def raw(self, count: int) -> memoryview:
        """The next bytes."""
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
        """The next mask."""
        shape = self._shapes.get(count)
        values, coding = self._numbers(count, 0, 1, shape, None, True)
        self.codings.append(coding)
        survivors = values.astype(bool)
        self._survivors = survivors.reshape(shape) if shape else None
        return survivors

    def codes(self, count: int, low: int, high: int) -> Integers:
        """The next numbers."""
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
    packed: Streamed, shapes: Mapping[int, Shape], codings: Sequence[Coding], capacity: int | None = None
) -> bytes:
    """A group's parts, coded."""
    writer = CodedWriter(shapes, codings)
    packed.write(writer)
    return writer.data(capacity)
