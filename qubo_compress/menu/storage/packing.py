"""Bits to bytes and back: fixed-width codes, ternary digits, and masks.

All functions are exact inverses of each other and vectorised over the values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

TRITS_PER_BYTE = 5
"""Five ternary digits fit in a byte, because 3^5 = 243 <= 256: 1.6 bits per digit."""

LONGEST_RUN_BITS = 8


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack_codes(codes: npt.NDArray[np.integer], bits: int) -> Bytes:
    """Pack non-negative codes below 2^bits, most significant bit first.

    Example:
        >>> pack_codes(np.array([1, 2, 3]), bits=4).tolist()
        [18, 48]
    """
    values = codes.astype(np.uint64 if bits > 16 else np.uint16)
    shifts = np.arange(bits - 1, -1, -1).astype(values.dtype)
    return np.packbits(((values[:, None] >> shifts) & 1).astype(np.uint8).ravel())


def unpack_codes(data: Bytes, count: int, bits: int) -> npt.NDArray[np.int64]:
    """The codes from their bytes: inverse of :func:`pack_codes`."""
    digits = np.unpackbits(data, count=count * bits).reshape(count, bits).astype(np.int64)
    return digits @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def pack_ternary(digits: npt.NDArray[np.integer]) -> Bytes:
    """Pack digits 0, 1, 2, five to a byte.

    Example:
        >>> pack_ternary(np.array([2, 2, 2, 2, 2, 1])).tolist()
        [242, 1]
    """
    padded = np.zeros(-(-digits.size // TRITS_PER_BYTE) * TRITS_PER_BYTE, dtype=np.int64)
    padded[: digits.size] = digits
    return (padded.reshape(-1, TRITS_PER_BYTE) @ (3 ** np.arange(TRITS_PER_BYTE))).astype(np.uint8)


def unpack_ternary(data: Bytes, count: int) -> npt.NDArray[np.int64]:
    """The digits from their bytes: inverse of :func:`pack_ternary`."""
    digits = data.astype(np.int64)[:, None] // (3 ** np.arange(TRITS_PER_BYTE)) % 3
    return digits.ravel()[:count]


def run_fields(survivors: npt.NDArray[np.bool_], bits: int) -> npt.NDArray[np.int64]:
    """Run lengths of zeros before each survivor, in fields of ``bits`` bits.

    A field below 2^bits - 1 counts zeros and ends with a survivor; the largest value means 2^bits - 1 zeros without
    one. Zeros after the last survivor are not stored.
    """
    positions = np.flatnonzero(survivors)
    runs = np.diff(positions, prepend=-1) - 1
    escape = (1 << bits) - 1
    repeats = runs // escape
    fields = np.full(int((repeats + 1).sum()), escape, dtype=np.int64)
    fields[np.cumsum(repeats + 1) - 1] = runs % escape
    return fields


def survivors_of(fields: npt.NDArray[np.int64], bits: int, count: int) -> npt.NDArray[np.bool_]:
    """Inverse of :func:`run_fields` for a tensor of ``count`` values."""
    ends = fields != (1 << bits) - 1
    positions = np.cumsum(fields + ends) - 1
    mask = np.zeros(count, dtype=bool)
    mask[positions[ends]] = True
    return mask


def pack_mask(survivors: npt.NDArray[np.bool_]) -> bytes:
    """The positions of survivors, by the cheaper of a bit mask and run lengths.

    The first byte is 0 for the bit mask, otherwise the bits of a run-length field; run lengths are preceded by their
    number in four bytes.

    Example:
        >>> mask = np.zeros(1000, dtype=bool); mask[[5, 700]] = True
        >>> len(pack_mask(mask)), bool((unpack_mask(pack_mask(mask), 1000)[0] == mask).all())
        (9, True)
    """
    bits, fields, _ = _cheapest(survivors)
    if bits == 0:
        return bytes([0]) + np.packbits(survivors).tobytes()
    return bytes([bits]) + fields.to_bytes(4, "little") + pack_codes(run_fields(survivors, bits), bits).tobytes()


def mask_size(survivors: npt.NDArray[np.bool_]) -> int:
    """Length of :func:`pack_mask`, computed without packing.

    Example:
        >>> mask = np.zeros(1000, dtype=bool); mask[[5, 700]] = True
        >>> mask_size(mask)
        9
    """
    return _cheapest(survivors)[2]


def _cheapest(survivors: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """(bits of a run-length field, or 0 for a bit mask; fields; bytes) of the shortest form."""
    best = 0, 0, 1 + packed_size(survivors.size, 1)
    positions = np.flatnonzero(survivors)
    counts = np.zeros(0, dtype=np.int64)
    for bits in range(1, LONGEST_RUN_BITS + 1):
        # No form has fewer fields than there are survivors.
        if 5 + packed_size(positions.size, bits) >= best[2]:
            continue
        if not counts.size:
            counts = np.bincount(np.concatenate([positions[:1], positions[1:] - positions[:-1] - 1]))
        fields = int(counts @ (np.arange(counts.size) // ((1 << bits) - 1) + 1))
        size = 5 + packed_size(fields, bits)
        if size < best[2]:
            best = bits, fields, size
    return best


def unpack_mask(data: bytes | memoryview, count: int) -> tuple[npt.NDArray[np.bool_], int]:
    """Inverse of :func:`pack_mask`: the mask of ``count`` values, and the bytes read.

    Raises:
        ValueError: when the bytes are cut short, or are not a mask of ``count`` values.
    """
    bits = data[0] if len(data) else LONGEST_RUN_BITS + 1
    # Every field covers at least one value, so altered bytes cannot request much memory.
    fields = int.from_bytes(data[1:5], "little") if bits else 0
    used = 1 + packed_size(count, 1) if bits == 0 else 5 + packed_size(fields, bits)
    if bits > LONGEST_RUN_BITS or fields > count or used > len(data):
        raise ValueError(f"the bytes are no mask of {count} values")
    if bits == 0:
        stored = np.frombuffer(data[1:used], dtype=np.uint8)
        return np.unpackbits(stored, count=count).astype(bool), used
    stored = np.frombuffer(data[5:used], dtype=np.uint8)
    try:
        return survivors_of(unpack_codes(stored, fields, bits), bits, count), used
    except IndexError as cause:
        raise ValueError(f"the bytes are a mask of more than {count} values") from cause
