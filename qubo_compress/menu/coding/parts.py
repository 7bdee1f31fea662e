"""The parts of a stored group as a coder sees them: what each one is, how it is coded, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.contexts import Shape, contexts, mean_byte, mean_size
from qubo_compress.menu.coding.kernels import CONTEXTS
from qubo_compress.menu.coding.models import PLAIN, Floats, Model, best_model, bits_of
from qubo_compress.menu.storage.packing import pack_mask, packed_size
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Mask, PlainWriter, Whole, Writer, code_bytes

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


class Recorder(Writer):
    """A writer that keeps the parts of a group, with what is known of their layout.

    Args:
        shapes: see :func:`~qubo_compress.menu.coding.contexts.shapes_of`.
    """

    def __init__(self, shapes: Mapping[int, Shape]) -> None:
        self.parts: list[Part] = []
        self._shapes = shapes
        self._survivors: Mask | None = None

    def raw(self, data: bytes) -> None:
        self.parts.append(data)

    def mask(self, survivors: Mask) -> None:
        """Keep the mask: the codes of its survivors may follow."""
        shape = self._shapes.get(survivors.size)
        self._survivors = survivors.reshape(shape) if shape else None
        self.parts.append(Numbers(survivors.astype(np.int64), 0, 1, shape, of_mask=True))

    def codes(self, values: Whole, low: int, high: int) -> None:
        shape, present = placement(self._shapes, self._survivors, values.size)
        self.parts.append(Numbers(values.astype(np.int64), low, high, shape, present))


def placement(shapes: Mapping[int, Shape], survivors: Mask | None, count: int) -> tuple[Shape | None, Mask | None]:
    """Shape and places of a number of values: a whole tensor, or the survivors of the last mask."""
    if survivors is not None and int(survivors.sum()) == count:
        return (survivors.shape[0], survivors.shape[1], survivors.shape[2]), survivors
    return shapes.get(count), None


def recorded(stored: Stored, shapes: Mapping[int, Shape]) -> list[Part]:
    """The parts of a stored group."""
    recorder = Recorder(shapes)
    stored.write(recorder)
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
