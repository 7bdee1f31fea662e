"""An entropy coder behind the interface of writers: range coding by ``constriction``.

A coded group is

    length of everything (varint) | length of the side bytes (varint) | side bytes | range-coded words | zeros

The side bytes hold, in the order of the parts, raw bytes and for every stream of numbers one tag with its model's
parameters; all coded numbers of the group share one sequence of words. Zeros fill up to the length that was
promised. The reader stops by itself, so it needs no length of the words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.entropy_models import PLAIN, best_model, read_model
from qubo_compress.menu.packing import pack_mask, unpack_mask
from qubo_compress.menu.streams import Mask, PlainReader, PlainWriter, Streamed, Whole, code_bytes
from qubo_compress.optional import require

Words = npt.NDArray[np.uint32]


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


class SizeWriter:
    """Counts the bytes of a coded group to within a few, without coding it."""

    def __init__(self) -> None:
        self.total = 8.0  # both lengths and the coder's last words

    def raw(self, data: bytes) -> None:
        """Their length."""
        self.total += len(data)

    def mask(self, survivors: Mask) -> None:
        """One number per value."""
        counts = np.array([survivors.size - int(survivors.sum()), int(survivors.sum())])
        self.total += best_model(counts, 0, 1, len(pack_mask(survivors)))[1]

    def codes(self, values: Whole, low: int, high: int) -> None:
        """By their counts."""
        plain = code_bytes(values.size, low, high)
        counts = np.bincount(values.astype(np.int64) - low, minlength=high - low + 1)
        self.total += best_model(counts, low, high, plain)[1]


class CodedWriter:
    """Codes every stream with the model that makes it shortest, or stores it plainly where that is shorter."""

    def __init__(self) -> None:
        self._stream: Any = require("constriction", "entropy").stream
        self._encoder = self._stream.queue.RangeEncoder()
        self._side = bytearray()

    def raw(self, data: bytes) -> None:
        """Into the side bytes."""
        self._side += data

    def mask(self, survivors: Mask) -> None:
        """One number per value, or the packed mask."""
        packed = pack_mask(survivors)
        self._coded(survivors.astype(np.int64), 0, 1, packed)

    def codes(self, values: Whole, low: int, high: int) -> None:
        """Coded, or as plain fields."""
        plain = PlainWriter()
        plain.codes(values, low, high)
        self._coded(values.astype(np.int64), low, high, plain.data())

    def _coded(self, values: npt.NDArray[np.int64], low: int, high: int, plain: bytes) -> None:
        counts = np.bincount(values - low, minlength=high - low + 1)
        model, _ = best_model(counts, low, high, len(plain))
        if model is None:
            self._side += bytes([PLAIN]) + plain
            return
        self._side += model.header()
        distribution = self._stream.model.Categorical(model.probabilities(), perfect=False)
        self._encoder.encode((values - low).astype(np.int32), distribution)

    def data(self, capacity: int | None = None) -> bytes:
        """Everything written so far, filled up to ``capacity`` bytes where that is given.

        Raises:
            ValueError: when it does not fit.
        """
        words: bytes = self._encoder.get_compressed().astype("<u4").tobytes()
        body = varint(len(self._side)) + bytes(self._side) + words
        size = len(body)
        for _ in range(3):  # the length counts its own bytes
            size = len(body) + len(varint(size if capacity is None else capacity))
        if capacity is None:
            return varint(size) + body
        if size > capacity:
            raise ValueError(f"{size} coded bytes do not fit into {capacity}")
        return (varint(capacity) + body).ljust(capacity, b"\0")


class CodedReader:
    """Inverse of :class:`CodedWriter`.

    Args:
        data: starts where the writer started and may go on beyond.

    Raises:
        ValueError: when the bytes are cut short or were altered in a way that can be noticed.
    """

    def __init__(self, data: memoryview) -> None:
        self._stream: Any = require("constriction", "entropy").stream
        self.used, start = read_varint(data, 0)
        length, start = read_varint(data, start)
        if self.used > len(data) or start + length > self.used:
            raise ValueError("the coded bytes are cut short")
        self._side = data[start : start + length]
        self._at = 0
        rest = data[start + length : self.used]
        words = np.frombuffer(rest[: len(rest) // 4 * 4], dtype="<u4").astype(np.uint32)
        self._decoder = self._stream.queue.RangeDecoder(words)

    def raw(self, count: int) -> memoryview:
        """The next side bytes."""
        found = self._side[self._at : self._at + count]
        if len(found) != count:
            raise ValueError("the coded bytes hold fewer side bytes than their parts need")
        self._at += count
        return found

    def mask(self, count: int) -> Mask:
        """The next mask."""
        tag = self.raw(1)[0]
        if tag == PLAIN:
            survivors, read = unpack_mask(self._side[self._at :], count)
            self.raw(read)
            return survivors
        return self._numbers(tag, count, 0, 1).astype(bool)

    def codes(self, count: int, low: int, high: int) -> npt.NDArray[np.int64]:
        """The next numbers."""
        tag = self.raw(1)[0]
        if tag == PLAIN:
            return PlainReader(self.raw(code_bytes(count, low, high))).codes(count, low, high)
        return self._numbers(tag, count, low, high)

    def _numbers(self, tag: int, count: int, low: int, high: int) -> npt.NDArray[np.int64]:
        header = np.frombuffer(self._side[self._at :], dtype=np.uint8)
        try:
            model, read = read_model(tag, header, low, high)
            self.raw(read)
            distribution = self._stream.model.Categorical(model.probabilities(), perfect=False)
            found: npt.NDArray[np.int64] = self._decoder.decode(distribution, count).astype(np.int64)
        except (AssertionError, IndexError) as cause:
            raise ValueError(f"the coded bytes do not fit their model ({cause})") from cause
        return found + low


def coded_bytes(packed: Streamed, capacity: int | None = None) -> bytes:
    """A group's parts, coded."""
    writer = CodedWriter()
    packed.write(writer)
    return writer.data(capacity)


def estimated_size(packed: Streamed) -> float:
    """About the length of :func:`coded_bytes`, at a fraction of its time."""
    counter = SizeWriter()
    packed.write(counter)
    return counter.total
