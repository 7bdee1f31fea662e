"""What may happen to a file: edits, made by hypothesis or by a generator of random numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
"""Lengths, places and counts that overflow something."""

SNIPPETS = (
    b"[", b"[[[[[[[[" * 400, b'{"a":' * 3000, b"(" * 3000, b"-" * 3000, b"9" * 5000, b"1e999", b"NaN", b"null", b"true",
    b"-1", b'"', b"\\", b"\0", b"\xff\xfe", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY\1\0", b"|V0", b"|O", b"<U9",
    b"F8_E8M0", b"U8", b"keep", b"quantize(bits=4)", b"custom:", b"layer", b"(10000000000,)", b"\x1b[2J", b"\n",
)  # fmt: skip
"""Text that means something to a reader."""

KINDS = ("flip", "set", "cut", "extend", "drop", "repeat", "move", "zero", "number", "snippet", "splice", "digit")


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
        kind: one of ``KINDS``.
        place: where, as a share of the length.
        value: a whole number that the kind interprets.
    """

    kind: str
    place: float
    value: int


def random_edits(chance: random.Random) -> list[Edit]:
    """A few edits: mostly one, as disks do."""
    count = chance.choice((1, 1, 1, 2, 3, 8))
    return [Edit(chance.choice(KINDS), chance.random(), chance.getrandbits(32)) for _ in range(count)]


def damaged(data: bytes, edits: Sequence[Edit], other: bytes) -> bytes:
    """The bytes after some edits; ``other`` is another file, from which pieces are taken."""
    for edit in edits:
        data = _edited(data, edit, other)
    return data


def _edited(data: bytes, edit: Edit, other: bytes) -> bytes:
    at, value = int(edit.place * len(data)), edit.value
    length = 1 + value % 64
    if edit.kind == "flip":
        return _changed(data, at, lambda byte: byte ^ 1 << value % 8)
    if edit.kind == "set":
        return _changed(data, at, lambda byte: value % 256)
    if edit.kind == "digit":
        places = [n for n in range(at, min(len(data), at + 400)) if data[n : n + 1].isdigit()]
        return _changed(data, places[0], lambda byte: 48 + value % 10) if places else data
    if edit.kind == "cut":
        return data[:at]
    if edit.kind == "extend":
        return data + bytes([value % 256]) * length
    if edit.kind == "drop":
        return data[:at] + data[at + length :]
    if edit.kind == "repeat":
        return data[: at + length] + data[at:]
    if edit.kind == "move":
        to = value % (len(data) + 1)
        return data[:to] + data[at : at + length] + data[to + length :]
    if edit.kind == "zero":
        return data[:at] + bytes(min(length, len(data) - at)) + data[at + length :]
    if edit.kind == "number":
        size = (2, 4, 8)[value % 3]
        number = (NUMBERS[value // 3 % len(NUMBERS)] % 256**size).to_bytes(size, "little")
        return data[:at] + number + data[at + size :]
    if edit.kind == "snippet":
        piece = SNIPPETS[value % len(SNIPPETS)]
        return data[:at] + piece + data[at + (len(piece) if value % 2 else 0) :]
    cut = int((value % 1000) / 1000 * len(other))
    return data[:at] + other[cut:]


def _changed(data: bytes, at: int, change: object) -> bytes:
    if at >= len(data):
        return data
    return data[:at] + bytes([change(data[at])]) + data[at + 1 :]  # type: ignore[operator]
