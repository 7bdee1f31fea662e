"""Pair energies from a caller or a file: checked before scipy, which trusts its input, uses them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.errors import InvalidProblem


def checked_pairs(given: Any, offsets: npt.NDArray[np.int64]) -> sparse.csr_array:
    """A read-only copy of pair energies, sorted and without zeros.

    Args:
        given: (V, V) scipy sparse array in any format.
        offsets: (G + 1,) first choice of each group.

    Raises:
        InvalidProblem: when its shape is wrong, it names choices that do not exist, has values that are not finite, is
            not symmetric or couples choices of one group.

    Example:
        >>> pairs = sparse.csr_array(np.array([[0.0, 2.0], [2.0, 0.0]]))
        >>> pairs.indices[0] = 10**6
        >>> checked_pairs(pairs, np.array([0, 1, 2]))
        Traceback (most recent call last):
        ...
        qubo_compress.errors.InvalidProblem: pairs names choice 1000000; the choices are numbered from 0 to 1
    """
    if not sparse.issparse(given):
        raise InvalidProblem(f"pairs must be a scipy sparse array; got {type(given).__name__}")
    total = int(offsets[-1])
    if given.shape != (total, total):
        raise InvalidProblem(f"pairs must have shape ({total}, {total}); got {given.shape}")
    _refuse_wrong_places(given)
    pairs = sparse.csr_array(given, dtype=np.float64, copy=True)
    _refuse_wrong_places(pairs)  # again, for formats whose content is known only after conversion
    pairs.sum_duplicates()
    if not np.isfinite(pairs.data).all():
        raise InvalidProblem("pairs holds NaN or infinity")
    difference = abs(pairs - pairs.T)
    if difference.nnz and (apart := float(difference.max())) > 0.0:
        if apart > 1e-9 * float(abs(pairs).max()):
            raise InvalidProblem("pairs is not symmetric; store both triangles, pairs[v, w] == pairs[w, v]")
        # The input may be rounded: bounds read one triangle and energies both, and they must agree.
        pairs = sparse.csr_array(0.5 * (pairs + pairs.T))
        pairs.sum_duplicates()
    group = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    rows = np.repeat(np.arange(total), np.diff(pairs.indptr))
    inside = np.flatnonzero((group[rows] == group[pairs.indices]) & (pairs.data != 0))
    if inside.size:
        v, w = int(rows[inside[0]]), int(pairs.indices[inside[0]])
        raise InvalidProblem(
            f"pairs[{v}, {w}] couples two choices of group {int(group[v])}; only one of them is ever chosen"
        )
    pairs.eliminate_zeros()
    for array in (pairs.data, pairs.indices, pairs.indptr):
        array.setflags(write=False)
    return pairs


def _refuse_wrong_places(pairs: Any) -> None:
    """Raise :class:`InvalidProblem` if scipy would read or write beyond its arrays."""
    if pairs.format == "coo":
        for places, length in zip(pairs.coords, pairs.shape, strict=True):
            _refuse_beyond(places, length, pairs.shape[0])
        return
    if pairs.format not in ("csr", "csc", "bsr"):
        return
    high, wide = pairs.blocksize if pairs.format == "bsr" else (1, 1)
    starts = np.asarray(pairs.indptr)
    whole = starts.ndim == 1 and starts.size == pairs.shape[0] // high + 1 and starts[0] == 0
    if not (whole and starts[-1] <= pairs.indices.size == len(pairs.data) and not (np.diff(starts) < 0).any()):
        raise InvalidProblem("the rows of pairs do not begin and end where they should; build it again with scipy")
    _refuse_beyond(pairs.indices[: starts[-1]], pairs.shape[1] // wide, pairs.shape[0])


def _refuse_beyond(places: npt.NDArray[np.integer[Any]], length: int, total: int) -> None:
    if places.size and (places.min() < 0 or places.max() >= length):
        wrong = places[(places < 0) | (places >= length)][0]
        raise InvalidProblem(f"pairs names choice {wrong}; the choices are numbered from 0 to {total - 1}")
