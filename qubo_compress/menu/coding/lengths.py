"""Lengths in as few bytes as they need."""

from __future__ import annotations


def varint(value: int) -> bytes:
    r"""An integer in seven bits per byte, lowest first.

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
    """Inverse of :func:`varint`: the number, and the position after it."""
    value, shift = 0, 0
    while True:
        if start >= len(data) or shift > 35:
            raise ValueError("the coded bytes end in the middle of a length")
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start
