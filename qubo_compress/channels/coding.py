"""The price of an error-free bit in cells that flip: from real BCH codes, not a bound.

A binary BCH code of length n = 2^m - 1 corrects t flips with at most m t check bits (Bose and Ray-Chaudhuri 1960;
Hocquenghem 1959). It fails if more than t of its n bits flip, with a probability in closed form, so the price of
protected bits follows from the flip rate alone.
"""

from __future__ import annotations

import functools

from scipy import stats

from qubo_compress.errors import InvalidChannel

FAILURE = 1e-9
"""Largest probability that a block of a code cannot be corrected."""

DEGREES = range(5, 14)
"""m of the codes considered: blocks of 31 to 8191 bits, at most a page of a memory chip."""

MOST_COPIES = 31


def majority_flip_rate(flip_rate: float, copies: int) -> float:
    """Flip rate after a majority vote of an odd number of cells.

    sum over k > copies / 2 of C(copies, k) p^k (1 - p)^(copies - k).

    Raises:
        InvalidChannel: unless the rate is in 0 to 0.5 and the number of copies is odd.

    Example:
        >>> round(majority_flip_rate(0.1, 3), 6)
        0.028
    """
    if not 0 <= flip_rate <= 0.5:
        raise InvalidChannel(f"a flip rate is from 0 to 0.5; got {flip_rate!r}")
    if not (isinstance(copies, int) and copies >= 1 and copies % 2):
        raise InvalidChannel(f"a majority vote needs an odd number of copies; got {copies!r}")
    return _majority_flip_rate(float(flip_rate), int(copies))


@functools.lru_cache(maxsize=4096)
def _majority_flip_rate(flip_rate: float, copies: int) -> float:
    """Cached because scipy takes a fifth of a millisecond and every row of every layer needs the same few numbers."""
    return float(stats.binom.sf(copies // 2, copies, flip_rate))


def code_rate(flip_rate: float, failure: float = FAILURE) -> float:
    """Data bits per stored bit of the best BCH code that fails rarely enough; 0 if there is none."""
    best = 0.0
    for degree in DEGREES:
        length = (1 << degree) - 1
        corrected = int(stats.binom.isf(failure, length, flip_rate)) if flip_rate > 0 else 0
        best = max(best, (length - degree * corrected) / length)
    return best


@functools.lru_cache(maxsize=1024)
def cells_per_protected_bit(flip_rate: float, failure: float = FAILURE) -> float:
    """One-bit cells per error-free bit: the best BCH code, on top of majority votes if single cells flip too often.

    Raises:
        InvalidChannel: when no code considered can protect such cells.

    Example:
        >>> cells_per_protected_bit(0.0), round(cells_per_protected_bit(0.01), 2)
        (1.0, 1.29)
    """
    prices = []
    for copies in range(1, MOST_COPIES + 1, 2):
        rate = code_rate(majority_flip_rate(flip_rate, copies), failure)
        if rate > 0:
            prices.append(copies / rate)
    if not prices:
        raise InvalidChannel(f"cells that flip at a rate of {flip_rate:g} cannot be protected; use better cells")
    return min(prices)
