"""How many processors this process may use, which containers and schedulers make fewer than the machine has."""

from __future__ import annotations

import os


def usable_processors() -> int:
    """Processors that the operating system lets this process run on; at least 1.

    Where no affinity is known, as on macOS and Windows, all of the machine.

    Example:
        >>> 1 <= usable_processors() <= (os.cpu_count() or 1)
        True
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
