"""Tables of the adaptive coder, made by integer arithmetic only: they are the same on every machine.

Kernels take these tables as constants (a NamedTuple or an argument would cost time in every call). Exponentials of a
mathematics library may differ in the last digit, and one different probability would spoil all that
follows. Probabilities have 16 bits. Their logits, ln(p / (1 - p)), are whole numbers of 1/256 from -2047 to 2047.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int32]

ONE = 1 << 16
"""A probability of one."""

RAREST = 24
"""The smallest probability that the coder uses: 24 / 65536."""

LOGIT = 2047
"""The largest logit, in 1/256."""

LONGEST_COUNT = 255
"""Probabilities move by at least 1 / 256.6 of the error."""

OCTAVE = 16
"""Logarithms to base two are whole numbers of 1/16."""

_FIXED = 60
"""Fractional bits of the numbers from which the tables are made."""


def _root(degree: int) -> int:
    """The root of two of a degree that is a power of two, in fixed point."""
    found = 2 << _FIXED
    while degree > 1:
        found = _square_root(found << _FIXED)
        degree //= 2
    return found


def _square_root(value: int) -> int:
    guess = 1 << (value.bit_length() + 1) // 2
    while True:
        better = (guess + value // guess) // 2
        if better >= guess:
            return guess
        guess = better


def _powers(factor: int, count: int) -> list[int]:
    found = [1 << _FIXED]
    for _ in range(count - 1):
        found.append(found[-1] * factor >> _FIXED)
    return found


def _exponential_of(divisor: int) -> int:
    """e^(1/divisor) in fixed point, by its series."""
    term, total, order = 1 << _FIXED, 0, 0
    while term:
        total, order = total + term, order + 1
        term = term // (divisor * order)
    return total


def _squash() -> Table:
    powers = _powers(_exponential_of(256), LOGIT + 1)
    found = np.zeros(4096, dtype=np.int32)
    for logit in range(-2048, 2048):
        power = powers[min(abs(logit), LOGIT)]
        top = power if logit >= 0 else 1 << _FIXED
        found[logit + 2048] = min(max(ONE * top // (power + (1 << _FIXED)), RAREST), ONE - RAREST)
    return found


def _stretch() -> Table:
    found: Table = np.searchsorted(SQUASH, np.arange(4096) * 16 + 8).clip(1, 4095).astype(np.int32) - 2048
    return found


def _logarithm() -> Table:
    # Halfway between two entries, so that numbers are rounded to the nearest.
    middles = [((2 * i + 65) << _FIXED) // 64 for i in range(32)]
    return np.array([sum(_STEPS[2 * k - 1] <= middle for k in range(1, OCTAVE + 1)) for middle in middles], np.int32)


_STEPS = _powers(_root(2 * OCTAVE), 2 * OCTAVE + 1)

SQUASH = _squash()
"""(4096,) logit + 2048 -> probability."""

STRETCH = _stretch()
"""(4096,) probability in 1/4096 -> logit."""

LOGARITHM = _logarithm()
"""(32,) the five bits behind a number's leading one -> 1/16 of an octave."""

EXPONENTIAL = np.array([_STEPS[2 * k] >> (_FIXED - 16) for k in range(OCTAVE)], dtype=np.int32)
"""(16,) inverse of the former, with 16 fractional bits."""

RATES = np.array([5 * ONE // (5 * n + 8) for n in range(LONGEST_COUNT + 1)], dtype=np.int64)
"""(256,) number of observations -> share of the error by which an estimate moves, in 1/65536."""

LEARNING = np.array([8 + 120 // (n + 4) for n in range(LONGEST_COUNT + 1)], dtype=np.int64)
"""(256,) number of observations -> learning rate of the mixing weights."""
