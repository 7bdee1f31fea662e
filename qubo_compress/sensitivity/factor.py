"""Reduces wide feature rows to a low-rank factor, and reports what was dropped."""

from __future__ import annotations

import numpy as np

from qubo_compress.problem.choice_problem import FactorArray

LARGEST_EXACT = 3000
"""Up to this many choices, or columns, a Gram matrix is diagonalised exactly; beyond, a seeded sketch finds its range.

The smaller of the two Gram matrices is used: always taking that of the choices would be cubic in the depth.
"""

DROPPED_BELOW = 1e-10


def reduce_features(features: FactorArray, max_rank: int | None, seed: int) -> tuple[FactorArray, float]:
    """A factor whose rows have (nearly) the same inner products as the feature rows.

    Args:
        features: (V, columns) float32.
        max_rank: largest number of columns of the factor; None for no limit.
        seed: of the sketch, for more than 3000 choices and columns.

    Returns:
        (V, r) float32 factor, and the share of the squared feature norm that was dropped.

    Example:
        >>> rows = np.array([[3.0, 0, 0, 0], [0, 4.0, 0, 0], [3.0, 4.0, 0, 0]], dtype=np.float32)
        >>> factor, dropped = reduce_features(rows, max_rank=None, seed=0)
        >>> factor.shape, bool(np.allclose(factor @ factor.T, rows @ rows.T, atol=1e-4)), dropped < 1e-6
        ((3, 2), True, True)
    """
    total = float(np.einsum("vc,vc->", features, features, dtype=np.float64))
    if total == 0.0:
        return np.zeros((features.shape[0], 1), dtype=np.float32), 0.0
    rank = min(features.shape) if max_rank is None else max(1, min(max_rank, *features.shape))
    if features.shape[1] < features.shape[0] and features.shape[1] <= LARGEST_EXACT:
        factor = _from_columns(features, rank)
    elif features.shape[0] <= LARGEST_EXACT:
        factor = _from_gram(features, rank)
    elif rank < features.shape[1]:
        factor = _from_sketch(features, rank, seed)
    else:
        factor = features
    kept = float(np.einsum("vr,vr->", factor, factor, dtype=np.float64))
    # A choice without effect must keep a row of zeros, without rounding errors.
    factor[~features.any(axis=1)] = 0.0
    return np.ascontiguousarray(factor, dtype=np.float32), max(0.0, 1.0 - kept / total)


def _from_columns(features: FactorArray, rank: int) -> FactorArray:
    """The rows rotated onto the eigenvectors of their columns' Gram matrix: linear in the choices, for many choices."""
    gram = np.zeros((features.shape[1], features.shape[1]))
    for start in range(0, features.shape[0], 4096):
        block = features[start : start + 4096].astype(np.float64)
        gram += block.T @ block
    values, vectors = np.linalg.eigh(gram)
    keep = values > DROPPED_BELOW * values[-1]
    axes = vectors[:, keep][:, ::-1][:, :rank]
    # Eigenvectors are determined up to their sign; the largest entry is made positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    found = np.empty((features.shape[0], axes.shape[1]), dtype=np.float32)
    for start in range(0, features.shape[0], 4096):
        found[start : start + 4096] = features[start : start + 4096].astype(np.float64) @ axes
    return found


def _from_gram(features: FactorArray, rank: int) -> FactorArray:
    gram = np.zeros((features.shape[0], features.shape[0]))
    for start in range(0, features.shape[1], 4096):
        block = features[:, start : start + 4096].astype(np.float64)
        gram += block @ block.T
    values, vectors = np.linalg.eigh(gram)
    keep = values > DROPPED_BELOW * values[-1]
    values, vectors = values[keep][::-1][:rank], vectors[:, keep][:, ::-1][:, :rank]
    # Eigenvectors are determined up to their sign; the largest entry is made positive.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    return np.asarray(vectors * signs * np.sqrt(values), dtype=np.float32)


def _from_sketch(features: FactorArray, rank: int, seed: int) -> FactorArray:
    """Randomised range finder with one power iteration (Halko, Martinsson & Tropp 2011)."""
    generator = np.random.default_rng(seed)
    probe = generator.standard_normal((features.shape[0], rank), dtype=np.float32)
    basis, _ = np.linalg.qr(features.T @ probe)
    basis, _ = np.linalg.qr(features.T @ (features @ basis))
    return np.asarray(features @ basis, dtype=np.float32)
