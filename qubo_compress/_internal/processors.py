"""How many processors this process may use: in containers and under schedulers, fewer than the machine has."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Processors that the operating system lets this process run on; at least 1.

    All of the machine's where affinity is unknown, as on macOS and Windows.

    Example:
        >>> 1 <= usable_processors() <= (os.cpu_count() or 1)
        True
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
