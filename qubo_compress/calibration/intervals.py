"""Intervals, tests and corrections for the audit; distributions come from scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from qubo_compress.errors import InvalidBatches, unknown_name

NORMAL_95 = 1.959963984540054
"""Two-sided 95 % point of the normal distribution."""

Correction = Literal["holm", "benjamini-hochberg", "none"]
Values = npt.NDArray[np.float64]


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share.

    Example:
        >>> tuple(round(end, 3) for end in wilson(9, 10))
        (0.596, 0.982)
    """
    if total < 1:
        return 0.0, 1.0
    share, square = right / total, NORMAL_95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = NORMAL_95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_change(lost: int, gained: int, total: int) -> tuple[float, float]:
    """95 % interval of (gained - lost) / total over pairs: Bonett and Price (2012), Statistics in Medicine 31.

    A Wald interval after adding one to both counts of discordant pairs, which holds its level for small counts.

    Example:
        >>> tuple(round(end, 3) for end in paired_change(10, 2, 100))
        (-0.149, -0.008)
    """
    if total < 1:
        return -1.0, 1.0
    down, up = (lost + 1) / (total + 2), (gained + 1) / (total + 2)
    half = NORMAL_95 * math.sqrt(max(down + up - (up - down) ** 2, 0.0) / (total + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def mcnemar(lost: int, gained: int, mid: bool = True) -> float:
    """Two-sided exact McNemar test that losses and gains are equally likely.

    Under that hypothesis the smaller of the two is binomial (lost + gained, 1/2). The mid-p value gives the observed
    outcome half weight: less conservative, and recommended by Fagerland et al. (2013), BMC Medical Research Methodology
    13:91.

    Example:
        >>> round(mcnemar(8, 1), 4), round(mcnemar(8, 1, mid=False), 4)
        (0.0215, 0.0391)
    """
    total, few = lost + gained, min(lost, gained)
    if total == 0:
        return 1.0
    tail = float(stats.binom.cdf(few, total, 0.5))
    if mid:
        tail -= 0.5 * float(stats.binom.pmf(few, total, 0.5))
    return min(1.0, 2.0 * tail)


def corrected(p_values: Sequence[float], method: Correction = "holm") -> tuple[float, ...]:
    """P-values corrected for several tests, each to be compared with the level itself.

    ``"holm"`` bounds the chance of any false alarm (Holm 1979); ``"benjamini-hochberg"`` bounds the expected share of
    false alarms among the alarms (1995); ``"none"`` changes nothing.

    Raises:
        UnknownName: for another method.

    Example:
        >>> corrected([0.01, 0.04, 0.03], "holm"), corrected([0.01, 0.04, 0.03], "benjamini-hochberg")
        ((0.03, 0.06, 0.06), (0.03, 0.04, 0.04))
    """
    if method not in ("holm", "benjamini-hochberg", "none"):
        raise unknown_name("correction", method, ("holm", "benjamini-hochberg", "none"))
    values = np.asarray(p_values, dtype=np.float64)
    if method == "none" or values.size == 0:
        return tuple(values.tolist())
    order = np.argsort(values, kind="stable")
    ranked, count = values[order], values.size
    if method == "holm":
        raised = np.maximum.accumulate(ranked * (count - np.arange(count)))
    else:
        raised = np.minimum.accumulate((ranked * count / np.arange(1, count + 1))[::-1])[::-1]
    found = np.empty(count)
    found[order] = np.minimum(raised, 1.0)
    return tuple(found.tolist())


@dataclass(frozen=True)
class Correlation:
    """A rank correlation.

    Attributes:
        value: Spearman's rho, -1 to 1; NaN when one side is constant.
        interval: 95 % interval, by Fisher's z with the variance of Bonett and Wright (2000).
        p_value: two-sided, of no correlation.
        count: number of pairs.
    """

    value: float
    interval: tuple[float, float]
    p_value: float
    count: int


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> Correlation:
    """Spearman's rank correlation with a 95 % interval: variance (1 + rho^2 / 2) / (n - 3) on Fisher's scale.

    Pairs with a NaN, such as scores that could not be estimated, are skipped and not counted.

    Raises:
        InvalidBatches: when the two differ in length or are shorter than four.

    Example:
        >>> found = spearman([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
        >>> round(found.value, 3), found.count
        (0.9, 5)
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or x.size < 4:
        raise InvalidBatches(f"give two vectors of the same length, at least 4; got {x.shape} and {y.shape}")
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if x.size < 4:
        raise InvalidBatches(f"only {x.size} pairs are numbers; give at least 4")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(math.nan, (-1.0, 1.0), 1.0, x.size)
    result = stats.spearmanr(x, y)
    rho = float(result.statistic)
    if abs(rho) >= 1.0:
        return Correlation(rho, (rho, rho), float(result.pvalue), x.size)
    half = NORMAL_95 * math.sqrt((1 + rho**2 / 2) / (x.size - 3))
    ends = (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))
    return Correlation(rho, ends, float(result.pvalue), x.size)
