"""Counts, totals of budgets and changes as text."""

from __future__ import annotations

import math

from qubo_compress.budget import LATENCY
from qubo_compress.latency import UNITS
from qubo_compress.page.numbers import number, signed
from qubo_compress.selection.comparison import Estimate


def counted(examples: int) -> str:
    """The number of held-out examples, as text.

    Example:
        >>> counted(1), counted(1200)
        ('1 held-out example', '1,200 held-out examples')
    """
    return f"{examples:,} held-out example{'s' * (examples != 1)}"


def budget_name(name: str) -> str:
    """A limit's name as text."""
    special = {"harmful_flips": "harmful flips, millionths of the examples", LATENCY: "milliseconds of one run"}
    return special.get(name, name.replace("_", " "))


def amount(name: str, total: int) -> str:
    """A total of a budget in the unit that the user gave."""
    return f"{total / UNITS:.4g}" if name == LATENCY else f"{total:,}"


def points(share: float) -> str:
    """A change of a share in signed percentage points.

    Example:
        >>> points(-0.005), points(0.0)
        ('−0.5', '0.0')
    """
    value = round(100 * share, 1)
    return "0.0" if value == 0 else f"{value:+.1f}".replace("-", "−")


def plus_minus(found: Estimate, signs: bool = True) -> str:
    """A mean and two standard errors; only the mean if a single example gives no error.

    Example:
        >>> plus_minus(Estimate(0.0251, 0.004)), plus_minus(Estimate(0.5, math.inf), signs=False)
        ('+0.0251 ± 0.0080', '0.5')
    """
    mean = signed(found.mean) if signs else number(found.mean)
    if not math.isfinite(found.standard_error):
        return mean
    return f"{mean} ± {2 * found.standard_error:#.2g}".rstrip(".")
