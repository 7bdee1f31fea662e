"""Coefficients of a linear rule as integers: exactly, or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from qubo_compress.problem.checks import LARGEST_TOTAL

_LARGEST_DENOMINATOR = 10**6
"""A float is read as a fraction with at most this denominator if there is one as close as float arithmetic gets."""

_ROUNDING = Fraction(1, 2**50)
"""Relative error of a few operations in float64: 0.1 + 0.2 counts as 3/10."""


def as_fraction(value: float) -> Fraction:
    """The number that somebody wrote to get this float: a simple fraction, or else its decimals.

    Raises:
        ValueError: when it is not finite.

    Example:
        >>> as_fraction(0.1 + 0.2), as_fraction(1 / 3), as_fraction(-2.0)
        (Fraction(3, 10), Fraction(1, 3), Fraction(-2, 1))
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"it has the coefficient {number}, which is not finite")
    exact = Fraction(number)
    simple = exact.limit_denominator(_LARGEST_DENOMINATOR)
    return simple if abs(simple - exact) <= _ROUNDING * abs(exact) else Fraction(repr(number))


def common_unit(values: Iterable[Fraction]) -> Fraction:
    """The largest number that divides all values; 1 if all are zero.

    Raises:
        ValueError: when some value is more than 2**53 of it, which float64 cannot count.

    Example:
        >>> common_unit([Fraction(3, 10), Fraction(-1, 2)])
        Fraction(1, 10)
    """
    unit, largest = Fraction(0), Fraction(0)
    for value in values:
        size = abs(value)
        largest = max(largest, size)
        common = math.lcm(unit.denominator, size.denominator)
        unit = Fraction(math.gcd(int(unit * common), int(size * common)), common)
        if unit and largest / unit > LARGEST_TOTAL:
            raise ValueError(
                "its coefficients have no common unit: the largest would be more than 2**53 of it, which cannot be "
                "counted exactly. Round them, for example to three decimals"
            )
    return unit or Fraction(1)
