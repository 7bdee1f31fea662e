"""A pool of the distinct good assignments found by a search."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qubo_compress.problem.choice_problem import IntArray

_SPARE = 8
"""The worst are dropped once the pool holds this many times its size: sorting at every find would be slower."""


class Pool:
    """The best assignments and their energies.

    Args:
        size: how many are returned.

    Attributes:
        energy: the least energy; infinite at first.
        best: (G,) the assignment with that energy, or None.

    Example:
        >>> pool = Pool(size=2)
        >>> [pool.add(np.array([0, choice]), energy) for choice, energy in enumerate([3.0, 1.0, 2.0])]
        [True, True, False]
        >>> [energy for energy, _ in pool.ranked()]
        [1.0, 2.0]
    """

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.energy = np.inf
        self.best: IntArray | None = None
        self._found: dict[bytes, tuple[float, IntArray]] = {}

    def add(self, assignment: IntArray, energy: float) -> bool:
        """Add a copy of an assignment; returns whether it is the best so far."""
        chosen = np.array(assignment, dtype=np.int64)
        self._found.setdefault(chosen.tobytes(), (energy, chosen))
        if len(self._found) > _SPARE * self.size:
            self._found = _keyed(self.ranked())
        better = energy < self.energy
        if better:
            self.energy, self.best = energy, chosen
        return better

    def join(self, others: list[tuple[float, IntArray]]) -> None:
        """Add all assignments of another pool's :meth:`ranked`; in a tie they come first."""
        self._found = {**_keyed(others), **self._found}
        self.size = max(self.size, len(self._found))
        for energy, chosen in others:
            if energy < self.energy:
                self.energy, self.best = energy, chosen

    def ranked(self) -> list[tuple[float, IntArray]]:
        """Energies and assignments, best first."""
        return sorted(self._found.values(), key=lambda found: found[0])[: self.size]


def _keyed(found: Iterable[tuple[float, IntArray]]) -> dict[bytes, tuple[float, IntArray]]:
    return {chosen.tobytes(): (energy, chosen) for energy, chosen in found}
