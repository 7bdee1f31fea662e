"""How stored values become bytes: operators say what they store, a writer says how.

An operator that writes its parts through a :class:`Writer` and reads them through a :class:`Reader` can be
stored plainly, in fields of fixed width, or by an entropy coder, without knowing which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.menu.coding.layout import CodeLayout
from qubo_compress.menu.storage.packing import (
    TRITS_PER_BYTE,
    mask_size,
    pack_codes,
    pack_mask,
    pack_ternary,
    packed_size,
    unpack_codes,
    unpack_mask,
    unpack_ternary,
)

Whole = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]

TERNARY = 3


class Writer(ABC):
    """Takes the parts of a stored group one after the other."""

    @abstractmethod
    def raw(self, data: bytes) -> None:
        """Bytes that are stored as they are: scales, headers."""

    @abstractmethod
    def mask(self, survivors: Mask) -> None:
        """(n,) which values are not pruned."""

    @abstractmethod
    def codes(self, values: Whole, low: int, high: int, layout: CodeLayout | None = None) -> None:
        """(n,) whole numbers from low to high, both included.

        Args:
            values: the numbers, in the tensor's own order.
            low: smallest that is allowed.
            high: largest that is allowed.
            layout: of the tensor that they are, for writers that code it; the reader must be given the same.
        """


class Reader(ABC):
    """Gives back what a writer took, in the same order."""

    @abstractmethod
    def raw(self, count: int) -> memoryview:
        """The next bytes."""

    @abstractmethod
    def mask(self, count: int) -> Mask:
        """The next mask of ``count`` values."""

    @abstractmethod
    def codes(self, count: int, low: int, high: int, layout: CodeLayout | None = None) -> npt.NDArray[np.int64]:
        """The next ``count`` whole numbers from low to high, written with that layout."""


def code_width(low: int, high: int) -> int:
    """Bits of a field for whole numbers from low to high.

    Example:
        >>> code_width(-7, 7), code_width(0, 1), code_width(3, 3)
        (4, 1, 0)
    """
    return int(high - low).bit_length()


def code_bytes(count: int, low: int, high: int) -> int:
    """Bytes of ``count`` plain codes: five to a byte for three values, else fields of fixed width."""
    if high - low + 1 == TERNARY:
        return -(-count // TRITS_PER_BYTE)
    return packed_size(count, code_width(low, high))


class PlainWriter(Writer):
    """Fields of fixed width; masks as bits or run lengths, whichever is shorter.

    Example:
        >>> writer = PlainWriter()
        >>> writer.codes(np.array([-3, 0, 3]), -3, 3)
        >>> PlainReader(memoryview(writer.data())).codes(3, -3, 3).tolist()
        [-3, 0, 3]
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def raw(self, data: bytes) -> None:
        self._parts.append(data)

    def mask(self, survivors: Mask) -> None:
        self._parts.append(pack_mask(survivors))

    def codes(self, values: Whole, low: int, high: int, layout: CodeLayout | None = None) -> None:
        shifted = values.astype(np.int64) - low
        if high - low + 1 == TERNARY:
            self._parts.append(pack_ternary(shifted).tobytes())
        else:
            self._parts.append(pack_codes(shifted, code_width(low, high)).tobytes())

    def data(self) -> bytes:
        """Everything written so far."""
        return b"".join(self._parts)


class PlainReader(Reader):
    """Inverse of :class:`PlainWriter`.

    Args:
        data: starts where the writer started and may go on beyond.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.used = 0

    def raw(self, count: int) -> memoryview:
        if count > len(self._data) - self.used:
            raise ValueError(f"{count} bytes are wanted where {max(0, len(self._data) - self.used)} are left")
        self.used += count
        return self._data[self.used - count : self.used]

    def mask(self, count: int) -> Mask:
        survivors, read = unpack_mask(self._data[self.used :], count)
        self.used += read
        return survivors

    def codes(self, count: int, low: int, high: int, layout: CodeLayout | None = None) -> npt.NDArray[np.int64]:
        stored = np.frombuffer(self.raw(code_bytes(count, low, high)), dtype=np.uint8)
        if high - low + 1 == TERNARY:
            return unpack_ternary(stored, count) + low
        return unpack_codes(stored, count, code_width(low, high)) + low


class ByteCounter(Writer):
    """Counts what :class:`PlainWriter` would write, without writing it."""

    def __init__(self) -> None:
        self.total = 0

    def raw(self, data: bytes) -> None:
        self.total += len(data)

    def mask(self, survivors: Mask) -> None:
        self.total += mask_size(survivors)

    def codes(self, values: Whole, low: int, high: int, layout: CodeLayout | None = None) -> None:
        self.total += code_bytes(values.size, low, high)
