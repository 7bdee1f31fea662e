"""Numbers formatted for readers."""

from __future__ import annotations

import math


def size(count: float) -> str:
    """A number of bytes in B, kB or MB; 1 MB is a million bytes.

    Example:
        >>> size(25343), size(999), size(4_610_000)
        ('25.3 kB', '999 B', '4.61 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def number(value: float) -> str:
    """Three significant digits; a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:.3g}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """Like :func:`number`, always with a sign."""
    if math.isnan(value):
        return "–"
    return f"{value:+.{digits}g}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share in percent; a dash for NaN.

    Example:
        >>> percent(0.9875), percent(None)
        ('98.8 %', '–')
    """
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f} %"
