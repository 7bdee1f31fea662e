"""The parts of a stored group as a coder sees them: their content, their coding, and their size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.contexts import Shape, contexts, mean_byte, mean_size
from qubo_compress.menu.coding.kernels import CONTEXTS
from qubo_compress.menu.coding.layout import CodeLayout
from qubo_compress.menu.coding.models import PLAIN, Floats, Model, best_model, bits_of
from qubo_compress.menu.storage.packing import pack_mask, packed_size
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import Mask, PlainWriter, Whole, Writer, code_bytes

Integers = npt.NDArray[np.int64]

CODED, IN_CONTEXT = 1, 2
"""Tags of streams: one model, or one per context. ``PLAIN`` is 0."""

MOST_NUMBERS = 1024
"""In wider ranges the low bits are stored uncoded."""

MOST_IN_CONTEXT = 255
"""Contexts are tried for ranges of up to this many numbers: beyond, a model per context costs more than it saves."""

FEWEST_IN_CONTEXT = 512
SHORTEST_IN_PLANES = 32
PLANES = (2, 4, 8)
"""Bytes of a float: raw bytes are coded plane by plane, because exponents are similar."""


@dataclass(frozen=True)
class Coding:
    """How one stream is coded.

    Attributes:
        models: none for uncoded; one; or one per context.
        mean: byte of the mean size, if there are contexts.
        planes: of raw bytes; none for uncoded.
    """

    models: tuple[Model, ...] = ()
    mean: int = 0
    planes: tuple[Coding, ...] = ()

    def header(self) -> bytes:
        """The tag and the models, as bytes of the file."""
        if not self.models:
            return bytes([PLAIN])
        made = b"".join(model.header() for model in self.models)
        return bytes([CODED]) + made if len(self.models) == 1 else bytes([IN_CONTEXT, self.mean]) + made

    @cached_property
    def probabilities(self) -> Floats:
        """(models, numbers) probabilities for the coder."""
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
        layout: of the tensor that they are, as their writer gave it.
    """

    values: Integers
    low: int
    high: int
    shape: Shape | None = None
    present: Mask | None = None
    of_mask: bool = False
    layout: CodeLayout | None = None

    @property
    def shift(self) -> int:
        """Number of low bits that are stored uncoded."""
        return low_bits(self.low, self.high)

    @property
    def symbols(self) -> Integers:
        """(n,) the coded symbols, starting at 0."""
        return (self.values - self.low) >> self.shift

    @property
    def count(self) -> int:
        """Number of different symbols."""
        return ((self.high - self.low) >> self.shift) + 1

    def placed(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(rows, channels, positions) of values, zero where none are present."""
        assert self.shape is not None  # noqa: S101 - called only for streams with contexts
        if self.present is None:
            return values.reshape(self.shape)
        whole = np.zeros(self.shape, dtype=values.dtype)
        whole[self.present] = values
        return whole

    def in_context(self, coding: Coding) -> Integers:
        """(n,) number of the model of every value."""
        if len(coding.models) == 1:
            return np.zeros(self.values.size, dtype=np.int64)
        assert self.shape is not None  # noqa: S101 - called only for streams with contexts
        found = contexts(self.placed(np.abs(self.values)), mean_size(coding.mean), self.of_mask)
        return found.reshape(-1) if self.present is None else found[self.present]

    def plain(self) -> bytes:
        """The numbers in fixed-width fields, uncoded."""
        if self.of_mask:
            return pack_mask(self.values.astype(bool))
        writer = PlainWriter()
        writer.codes(self.values, self.low, self.high)
        return writer.data()

    def plain_size(self) -> int:
        """Length of :meth:`plain`, computed without building it."""
        return len(self.plain()) if self.of_mask else code_bytes(self.values.size, self.low, self.high)


Part = bytes | Numbers


def low_bits(low: int, high: int) -> int:
    """Number of low bits of a range to store uncoded, so that few symbols are left."""
    return max(0, int(high - low).bit_length() - MOST_NUMBERS.bit_length() + 1)


def planes_of(data: bytes, count: int) -> list[Numbers]:
    """Raw bytes as streams, one per byte of a float."""
    table = np.frombuffer(data, dtype=np.uint8).reshape(-1, count).astype(np.int64)
    return [Numbers(table[:, plane], 0, 255) for plane in range(count)]


class PartRecorder(Writer):
    """A writer that collects the parts of a group and their layout.

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

    def codes(self, values: Whole, low: int, high: int, layout: CodeLayout | None = None) -> None:
        shape, present = placement(self._shapes, self._survivors, values.size)
        self.parts.append(Numbers(values.astype(np.int64), low, high, shape, present, layout=layout))


def placement(shapes: Mapping[int, Shape], survivors: Mask | None, count: int) -> tuple[Shape | None, Mask | None]:
    """Shape and positions of the given number of values: a whole tensor, or the survivors of the last mask."""
    if survivors is not None and int(survivors.sum()) == count:
        return (survivors.shape[0], survivors.shape[1], survivors.shape[2]), survivors
    return shapes.get(count), None


def recorded(stored: Stored, shapes: Mapping[int, Shape]) -> list[Part]:
    """The parts that a stored group writes."""
    recorder = PartRecorder(shapes)
    stored.write(recorder)
    return recorder.parts


def fitted(part: Part) -> Coding:
    """The coding with the fewest bytes, header included."""
    if isinstance(part, bytes):
        return _fitted_raw(part)
    plain = part.plain_size()
    # Changed signs cannot be shortened, so they stay uncoded.
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
    """A part, its coding, and the resulting size.

    Attributes:
        part: the part.
        coding: its coding.
        where: (n,) number of the model of every value; None for parts that are plain or coded in planes.
        side: bits in the side bytes, exactly.
        coded: bits in the coder's words; their sum over the parts is right to a few bits.
        bits: (models, numbers) bits that each number takes; None for parts whose numbers are not modelled.
    """

    part: Part
    coding: Coding
    where: Integers | None
    side: float
    coded: float
    bits: Floats | None = None


def sized(part: Part, coding: Coding) -> Sized:
    """The size of a part, without coding it."""
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
    return Sized(part, coding, where, side, float(coding.bits.reshape(-1) @ counts), coding.bits)
