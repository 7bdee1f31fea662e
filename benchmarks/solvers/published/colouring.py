"""Graph colouring: vertices are groups, colours are choices, and an edge of one colour costs one.

The graphs are those of DIMACS' second challenge, from their formulas. Mycielski graphs (``myciel3`` needs 4 colours)
are edge-critical, so that with one colour fewer exactly one edge need be violated. ``queenN_N`` has the squares of a
board, joined where a queen moves; their chromatic numbers are 5, 7, 7 and 9 for N = 5, 6, 7 and 8 (M. Trick's list of
the challenge's graphs, https://mat.tepper.cmu.edu/COLOR/instances.html).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from qubo_compress import ChoiceProblem


def graph(name: str) -> np.ndarray:
    """(n, n) the adjacency of ``mycielK`` or ``queenN_N``.

    Example:
        >>> [(len(graph(name)), int(graph(name).sum()) // 2) for name in ("myciel3", "queen5_5")]
        [(11, 20), (25, 160)]
    """
    if name.startswith("queen"):
        side = int(name.removeprefix("queen").partition("_")[0])
        row, column = np.divmod(np.arange(side * side), side)
        down, across = np.subtract.outer(row, row), np.subtract.outer(column, column)
        joined = (down == 0) | (across == 0) | (np.abs(down) == np.abs(across))
        return joined & ~np.eye(side * side, dtype=bool)
    adjacency = np.array([[False, True], [True, False]])
    for _ in range(int(name.removeprefix("myciel")) - 1):
        adjacency = _mycielskian(adjacency)
    return adjacency


def _mycielskian(adjacency: np.ndarray) -> np.ndarray:
    """A shadow for every vertex, joined to its neighbours, and one vertex joined to all shadows."""
    size = len(adjacency)
    larger = np.zeros((2 * size + 1, 2 * size + 1), dtype=bool)
    larger[:size, :size] = adjacency
    larger[:size, size : 2 * size] = larger[size : 2 * size, :size] = adjacency
    larger[-1, size : 2 * size] = larger[size : 2 * size, -1] = True
    return larger


def colouring_problem(name: str, colours: int) -> ChoiceProblem:
    """The choice problem; its energy is the number of edges whose ends have one colour.

    Example:
        >>> colouring_problem("myciel3", 3)
        ChoiceProblem(11 groups, 33 choices, 60 pair energies, no budget)
    """
    adjacency = graph(name)
    total = len(adjacency) * colours
    return ChoiceProblem(
        linear=np.zeros(total),
        group_offsets=np.arange(len(adjacency) + 1) * colours,
        costs=np.zeros((0, total), dtype=np.int64),
        limits=np.zeros(0, dtype=np.int64),
        pairs=sparse.csr_array(sparse.kron(adjacency.astype(float), np.eye(colours), format="csr")),
        group_names=tuple(f"vertex{v}" for v in range(len(adjacency))),
    )
