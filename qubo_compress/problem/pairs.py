"""Pair energies and pair costs from a caller or a file: checked before scipy, which trusts its input, uses them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.errors import InvalidProblem

_LARGEST_SUM = 2.0**62
"""Larger sums of integers could overflow."""


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
    total = _checked_shape("pairs", given, offsets)
    pairs = sparse.csr_array(given, dtype=np.float64, copy=True)
    _refuse_wrong_places("pairs", pairs)  # again, for formats whose content is known only after conversion
    pairs.sum_duplicates()
    if not np.isfinite(pairs.data).all():
        raise InvalidProblem("pairs holds NaN or infinity")
    difference = abs(pairs - pairs.T)
    if difference.nnz and (apart := float(difference.max())) > 0.0:
        if apart > 1e-9 * float(abs(pairs).max()):
            raise _not_symmetric("pairs")
        # The input may be rounded: bounds read one triangle and energies both, and they must agree.
        pairs = sparse.csr_array(0.5 * (pairs + pairs.T))
        pairs.sum_duplicates()
    return _without_own_group("pairs", pairs, offsets, total)


def checked_integers(name: str, given: Any, offsets: npt.NDArray[np.int64]) -> sparse.csr_array:
    """A read-only copy of a symmetric matrix of integers, sorted and without zeros.

    Args:
        name: of the matrix in errors.
        given: (V, V) scipy sparse array in any format.
        offsets: (G + 1,) first choice of each group.

    Raises:
        InvalidProblem: when its shape is wrong, it names choices that do not exist, holds other numbers than integers,
            is not symmetric or couples choices of one group.
    """
    total = _checked_shape(name, given, offsets)
    if not np.issubdtype(given.dtype, np.integer):
        raise InvalidProblem(f"{name} must hold integers; got {given.dtype}. Scale and round them yourself")
    entries = given.tocoo()
    _refuse_wrong_places(name, entries)
    if float(np.abs(entries.data.astype(np.float64)).sum()) > _LARGEST_SUM:
        raise InvalidProblem(
            f"the magnitudes in {name} sum to more than 2**62. Count in a larger unit, such as bytes instead of bits"
        )
    matrix = sparse.csr_array((entries.data.astype(np.int64), entries.coords), shape=given.shape)
    matrix.sum_duplicates()
    if (matrix != matrix.T).nnz:
        raise _not_symmetric(name)
    return _without_own_group(name, matrix, offsets, total)


def _checked_shape(name: str, given: Any, offsets: npt.NDArray[np.int64]) -> int:
    """The number of choices; refuses what is not a sparse matrix over them."""
    if not sparse.issparse(given):
        raise InvalidProblem(f"{name} must be a scipy sparse array; got {type(given).__name__}")
    total = int(offsets[-1])
    if given.shape != (total, total):
        raise InvalidProblem(f"{name} must have shape ({total}, {total}); got {given.shape}")
    _refuse_wrong_places(name, given)
    return total


def _not_symmetric(name: str) -> InvalidProblem:
    return InvalidProblem(f"{name} is not symmetric; store both triangles, {name}[v, w] == {name}[w, v]")


def _without_own_group(
    name: str, matrix: sparse.csr_array, offsets: npt.NDArray[np.int64], total: int
) -> sparse.csr_array:
    """The matrix without zeros and read-only; refused if it couples two choices of a group."""
    group = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
    rows = np.repeat(np.arange(total), np.diff(matrix.indptr))
    inside = np.flatnonzero((group[rows] == group[matrix.indices]) & (matrix.data != 0))
    if inside.size:
        v, w = int(rows[inside[0]]), int(matrix.indices[inside[0]])
        raise InvalidProblem(
            f"{name}[{v}, {w}] couples two choices of group {int(group[v])}; only one of them is ever chosen"
        )
    matrix.eliminate_zeros()
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.setflags(write=False)
    return matrix


def _refuse_wrong_places(name: str, pairs: Any) -> None:
    """Raise :class:`InvalidProblem` if scipy would read or write beyond its arrays."""
    if pairs.format == "coo":
        for places, length in zip(pairs.coords, pairs.shape, strict=True):
            _refuse_beyond(name, places, length, pairs.shape[0])
        return
    if pairs.format not in ("csr", "csc", "bsr"):
        return
    high, wide = pairs.blocksize if pairs.format == "bsr" else (1, 1)
    starts = np.asarray(pairs.indptr)
    whole = starts.ndim == 1 and starts.size == pairs.shape[0] // high + 1 and starts[0] == 0
    if not (whole and starts[-1] <= pairs.indices.size == len(pairs.data) and not (np.diff(starts) < 0).any()):
        raise InvalidProblem(f"the rows of {name} do not begin and end where they should; build it again with scipy")
    _refuse_beyond(name, pairs.indices[: starts[-1]], pairs.shape[1] // wide, pairs.shape[0])


def _refuse_beyond(name: str, places: npt.NDArray[np.integer[Any]], length: int, total: int) -> None:
    if places.size and (places.min() < 0 or places.max() >= length):
        wrong = places[(places < 0) | (places >= length)][0]
        raise InvalidProblem(f"{name} names choice {wrong}; the choices are numbered from 0 to {total - 1}")
