"""The inner loops of rounding by rows, compiled: a row is tried at every scale while it is in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.compiling import FIRST, compiled, compiled_inline

Singles = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16: a row of tiny weights must not lose its scale to rounding."""

SMALLEST_NORMAL = 2.0**-14
LARGEST_SCALE = 65504.0
CLIPPING_SHARES = np.linspace(0.15, 1.0, 16, endpoint=False).astype(np.float32)
"""Shares of a row's largest magnitude that are tried as the end of its grid, beside the whole."""

REFINEMENTS = 3
CHUNK = 256
"""Sums are single precision over this many values, and double precision over these sums."""


@compiled
def half_of(value: np.float32) -> np.float32:
    """A positive number rounded to float16, never zero or infinite."""
    held = min(max(value, np.float32(SMALLEST_SCALE)), np.float32(LARGEST_SCALE))
    if held < np.float32(SMALLEST_NORMAL):
        return np.float32(np.rint(held / np.float32(SMALLEST_SCALE)) * np.float32(SMALLEST_SCALE))
    # The lowest 13 of single precision's 23 bits are rounded away, a tie to the even number.
    bits = np.float32(held).view(np.int32)
    return np.int32((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(np.float32)


@compiled_inline
def _error(row: Singles, count: int, scale: np.float32, level: np.float32, signs: bool, least: float) -> float:
    """Squared error of a row's nearest codes; any number above ``least`` where it is above that."""
    total = 0.0
    for start in range(0, count, CHUNK):
        part = np.float32(0.0)
        if signs:
            for i in range(start, min(start + CHUNK, count)):
                apart = row[i] - (-scale if row[i] < np.float32(0.0) else scale)
                part += apart * apart
        else:
            for i in range(start, min(start + CHUNK, count)):
                code = min(max(np.rint(row[i] / scale), -level), level)
                apart = row[i] - code * scale
                part += apart * apart
        total += float(part)
        if total > least:
            break
    return total


@compiled_inline
def _refitted(row: Singles, count: int, scale: np.float32, level: np.float32, signs: bool) -> np.float32:
    """Scale of least squared error for the nearest codes at another one, which is returned where there is none."""
    square = 0.0
    product = 0.0
    for start in range(0, count, CHUNK):
        squares = np.float32(0.0)
        products = np.float32(0.0)
        for i in range(start, min(start + CHUNK, count)):
            if signs:
                squares += np.float32(1.0)
                products += abs(row[i])
            else:
                code = min(max(np.rint(row[i] / scale), -level), level)
                squares += code * code
                products += code * row[i]
        square += float(squares)
        product += float(products)
    fitted = product / max(square, 1.0)
    return np.float32(fitted) if square > 0.0 and fitted > 0.0 else scale


@compiled
def _fitted(row: Singles, count: int, level: np.float32, signs: bool) -> np.float32:
    """The scale of a row, already rounded to float16."""
    largest = level * np.float32(SMALLEST_SCALE)
    for i in range(count):
        largest = max(largest, abs(row[i]))
    best = half_of(largest / level)
    least = _error(row, count, best, level, signs, np.inf)
    tried = best
    for share in CLIPPING_SHARES:
        scale = half_of(share * largest / level)
        if scale == tried:
            continue
        tried = scale
        found = _error(row, count, scale, level, signs, least)
        if found < least:
            best, least = scale, found
    for _ in range(REFINEMENTS):
        scale = half_of(_refitted(row, count, best, level, signs))
        if scale == best:
            break  # the same codes would give the same scale again
        found = _error(row, count, scale, level, signs, least)
        if not found < least:
            break
        best, least = scale, found
    return best


@compiled
def fit_rows(values: Singles, kept: Masks, level: float, signs: bool, scales: Singles) -> None:
    """Scales of least squared error, row by row.

    Args:
        values: (R, D); those that are pruned do not count.
        kept: (R, D) survivors, or (0, 0): all of them.
        level: largest code.
        signs: codes are -1 and 1 alone.
        scales: (R,) to be written.
    """
    rows, columns = values.shape
    held = np.empty(columns, np.float32)
    for row in range(rows):
        if kept.size:
            count = FIRST
            for i in range(columns):
                held[count] = values[row, i]
                count += kept[row, i]
            scales[row] = _fitted(held, count, np.float32(level), signs)
        else:
            scales[row] = _fitted(values[row], columns, np.float32(level), signs)


@compiled
def round_rows(values: Singles, kept: Masks, scales: Singles, level: float, signs: bool, codes: Any) -> None:
    """Nearest codes, zero where pruned; arguments as in :func:`fit_rows`, ``codes`` (R, D) to be written."""
    rows, columns = values.shape
    top = np.float32(level)
    for row in range(rows):
        scale = scales[row]
        for i in range(columns):
            if signs:
                code = np.float32(-1.0) if values[row, i] < np.float32(0.0) else np.float32(1.0)
            else:
                code = min(max(np.rint(values[row, i] / scale), -top), top)
            codes[row, i] = np.int16(code)
        if kept.size:
            for i in range(columns):
                codes[row, i] *= kept[row, i]


@compiled
def keep_largest(magnitudes: Singles, least: Singles, survivors: npt.NDArray[np.int64], kept: Masks) -> None:
    """Mark the largest magnitudes of every row; ties go to the earlier.

    Args:
        magnitudes: (R, D).
        least: (R,) magnitude of the last survivor.
        survivors: (R,) how many there are.
        kept: (R, D) to be written.
    """
    rows, columns = magnitudes.shape
    for row in range(rows):
        edge = least[row]
        above = 0
        for i in range(columns):
            kept[row, i] = magnitudes[row, i] > edge
            above += magnitudes[row, i] > edge
        left = survivors[row] - above
        for i in range(columns):
            if left <= 0:
                break
            if magnitudes[row, i] == edge:
                kept[row, i] = True
                left -= 1


@compiled
def mask_sizes(kept: Masks, sizes: npt.NDArray[np.int64]) -> None:
    """Bytes of every row's mask in the shortest form of :func:`qubo_compress.menu.storage.packing.pack_mask`.

    Args:
        kept: (R, D).
        sizes: (R,) to be written.
    """
    rows, columns = kept.shape
    for row in range(rows):
        fields = np.zeros(9, np.int64)
        run = 0
        for i in range(columns):
            if kept[row, i]:
                for bits in range(1, 9):
                    fields[bits] += run // ((1 << bits) - 1) + 1
                run = 0
            else:
                run += 1
        sizes[row] = 1 + (columns + 7) // 8
        for bits in range(1, 9):
            sizes[row] = min(sizes[row], 5 + (fields[bits] * bits + 7) // 8)
