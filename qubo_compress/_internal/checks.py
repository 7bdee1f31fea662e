"""Arguments that are checked before any work is spent on them."""

from __future__ import annotations

import operator
from typing import Any

from qubo_compress.errors import InvalidOption


def whole(name: str, value: Any, least: int = 0) -> int:
    """A whole number as Python's own, whatever kind of integer was given.

    Raises:
        InvalidOption: for anything else, and below ``least``.

    Example:
        >>> import numpy as np
        >>> whole("seed", np.int64(3))
        3
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if isinstance(value, bool) or found < least:
        raise InvalidOption(f"{name} must be a whole number of at least {least}; got {value!r}")
    return found
