"""Curves of accuracy against bytes, compared at equal bytes example by example.

A curve's score at some bytes lies on the straight line between its neighbours over the logarithm of bytes, for every
test example, so that a difference of two curves has a paired standard error. Points that a smaller file beats are left
out. Bytes above a curve's largest file have the score of that file; below its smallest there is none.
"""

from __future__ import annotations

import base64
import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


def as_text(scores: Scores) -> str:
    """Scores of all examples as text: bits where all are 0 or 1, else 16-bit floats.

    Example:
        >>> of_text(as_text(np.array([1.0, 0.0, 1.0]))).tolist(), of_text(as_text(np.array([0.5]))).tolist()
        ([1.0, 0.0, 1.0], [0.5])
    """
    whole = bool(np.isin(scores, (0.0, 1.0)).all())
    data = np.packbits(scores.astype(bool)).tobytes() if whole else scores.astype("<f2").tobytes()
    kind = f"bits {len(scores)}" if whole else "floats"
    return f"{kind}:{base64.b64encode(zlib.compress(data, 9)).decode()}"


def of_text(text: str) -> Scores:
    """Inverse of :func:`as_text`."""
    kind, _, packed = text.partition(":")
    data = zlib.decompress(base64.b64decode(packed))
    if kind == "floats":
        return np.frombuffer(data, "<f2").astype(np.float64)
    return np.unpackbits(np.frombuffer(data, np.uint8), count=int(kind.split()[1])).astype(np.float64)


@dataclass(frozen=True)
class Point:
    """One file: its bytes, and the score of every test example; more is better."""

    nbytes: int
    scores: Scores


def envelope(points: Sequence[Point]) -> list[Point]:
    """The points that no smaller file beats, smallest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.nbytes, -one.scores.mean())):
        if not kept or point.scores.mean() > kept[-1].scores.mean():
            kept.append(point)
    return kept


def at(points: Sequence[Point], nbytes: float) -> Scores | None:
    """Scores of all examples at some bytes; None below the smallest file.

    Example:
        >>> curve = [Point(100, np.array([0.0, 1.0])), Point(400, np.array([1.0, 1.0]))]
        >>> at(curve, 200).tolist(), at(curve, 900).tolist(), at(curve, 99)
        ([0.5, 1.0], [1.0, 1.0], None)
    """
    kept = envelope(points)
    if not kept or nbytes < kept[0].nbytes:
        return None
    for small, large in itertools.pairwise(kept):
        if nbytes < large.nbytes:
            share = math.log(nbytes / small.nbytes) / math.log(large.nbytes / small.nbytes)
            found: Scores = (1 - share) * small.scores + share * large.scores
            return found
    return kept[-1].scores


@dataclass(frozen=True)
class Difference:
    """Mean difference of two curves, its standard error, and how many calibration seeds it is of."""

    mean: float
    error: float
    seeds: int


def difference(ours: Sequence[Scores], theirs: Sequence[Scores]) -> Difference:
    """Ours less theirs, paired by example and by calibration seed.

    The variance has a part of the test examples, that of the differences' means over seeds, and a part of the seeds.
    """
    gaps = np.stack([one - other for one, other in zip(ours, theirs, strict=True)])
    seeds, examples = gaps.shape
    variance = gaps.mean(0).var(ddof=1) / examples
    if seeds > 1:
        variance += gaps.mean(1).var(ddof=1) / seeds
    return Difference(float(gaps.mean()), float(math.sqrt(variance)), seeds)
