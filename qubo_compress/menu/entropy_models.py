"""Probability models of coded streams: a few bytes of integers from which reader and writer make the same numbers.

Every probability is made of the stored integers by additions, multiplications and divisions alone, which
IEEE arithmetic rounds alike everywhere; exponentials are not used, since libraries differ in their last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

RESOLUTION = 2.0**20
"""The likeliest number has this weight, the least likely 1: the coder works with 24-bit probabilities."""

PLAIN, GEOMETRIC, GAUSSIAN, HISTOGRAM = range(4)
"""Tags of the models, one byte in the file."""

GRID = 40
"""Parameters of the geometric and Gaussian models that are tried."""

MOST_SYMBOLS = 4096
"""Wider ranges are stored plainly."""


class Model(Protocol):
    """How likely each whole number from ``low`` to ``high`` is."""

    def header(self) -> bytes:
        """Tag and parameters as they are stored."""
        ...

    def probabilities(self) -> Probabilities:
        """(high - low + 1,) positive shares that sum to one."""
        ...


def normalised(shares: Probabilities) -> Probabilities:
    """Shares that sum to one, as multiples of a small one: whole numbers add up alike in every order."""
    whole = np.floor(shares * (RESOLUTION / shares.max())) + 1.0
    found: Probabilities = whole / whole.sum()
    return found


@dataclass(frozen=True)
class Decaying:
    """Shares that fall off with the distance from zero: theta^|k| (geometric) or theta^(k^2) (Gaussian).

    Attributes:
        tag: ``GEOMETRIC`` or ``GAUSSIAN``.
        step: theta = 1 - (step + 1) / 65537, stored in two bytes.
        low: smallest number.
        high: largest number.
    """

    tag: int
    step: int
    low: int
    high: int

    def header(self) -> bytes:
        """Three bytes."""
        return bytes([self.tag]) + self.step.to_bytes(2, "little")

    def probabilities(self) -> Probabilities:
        """By repeated multiplication, from the number nearest to zero on."""
        theta = 1.0 - (self.step + 1) / 65537
        sizes = np.abs(np.arange(self.low, self.high + 1))
        reach, nearest = int(sizes.max()), int(sizes.min())
        factors = np.full(reach, theta)
        if self.tag == GAUSSIAN:
            # theta^(k^2) is the product of theta^(2j - 1) over j up to k.
            factors = np.cumprod(np.concatenate([[theta], np.full(max(reach - 1, 0), theta * theta)]))[:reach]
        shares = np.concatenate([[1.0], np.cumprod(factors[nearest:])])
        return normalised(shares[sizes - nearest])


@dataclass(frozen=True)
class Histogram:
    """One byte per number from ``first`` on: its count relative to the largest, rounded up.

    Attributes:
        first: smallest number that occurs, relative to ``low``.
        shares: (m,) 0 to 255.
        low: smallest number.
        high: largest number.
    """

    first: int
    shares: npt.NDArray[np.uint8]
    low: int
    high: int

    def header(self) -> bytes:
        """Tag, first, length, shares."""
        return bytes([HISTOGRAM]) + self.first.to_bytes(2, "little") + bytes([self.shares.size]) + self.shares.tobytes()

    def probabilities(self) -> Probabilities:
        """The stored shares; what did not occur gets the floor."""
        whole = np.zeros(self.high - self.low + 1)
        whole[self.first : self.first + self.shares.size] = self.shares
        return normalised(whole)


def bits_of(counts: Counts, probabilities: Probabilities) -> float:
    """Length in bits of numbers that occur so often, under a model."""
    seen = counts > 0
    return float(-(counts[seen] * np.log2(probabilities[seen])).sum())


def best_model(counts: Counts, low: int, high: int, plain_bytes: int) -> tuple[Model | None, float]:
    """The model of the shortest header and codes, and their bytes; None where plain fields are shorter.

    Args:
        counts: (high - low + 1,) how often each number occurs.
        low: smallest number.
        high: largest number.
        plain_bytes: of plain fields.
    """
    best: tuple[Model | None, float] = (None, plain_bytes + 1.0)
    if counts.size > MOST_SYMBOLS or counts.sum() == 0:
        return best
    tried: list[Model] = [_histogram(counts, low, high)] if np.ptp(np.flatnonzero(counts)) < 255 else []
    tried += [_decaying(tag, counts, low, high) for tag in (GEOMETRIC, GAUSSIAN)]
    for model in tried:
        size = len(model.header()) + bits_of(counts, model.probabilities()) / 8
        if size < best[1]:
            best = (model, size)
    return best


def _histogram(counts: Counts, low: int, high: int) -> Histogram:
    seen = np.flatnonzero(counts)
    part = counts[seen[0] : seen[-1] + 1]
    shares = -(-part * 255 // int(part.max()))
    return Histogram(int(seen[0]), shares.astype(np.uint8), low, high)


def _decaying(tag: int, counts: Counts, low: int, high: int) -> Decaying:
    """The parameter of least bits, on a grid that is even in the logarithm of 1 - theta, then refined."""
    numbers = np.abs(np.arange(low, high + 1))
    powers = numbers**2 if tag == GAUSSIAN else numbers
    seen = counts > 0
    grid = np.unique(np.geomspace(1, 65535, GRID).astype(int) - 1)
    found = int(grid[0])
    for _ in range(2):
        # Which parameter is best may rest on logarithms: what is coded with it is made without them.
        logs = (powers - powers.min()) * np.log2(np.maximum(1.0 - (grid + 1) / 65537, 1e-300))[:, None]
        shares = np.exp2(logs)
        raised = np.maximum(shares / shares.sum(1, keepdims=True), 1.0 / RESOLUTION)
        sizes = -(np.log2(raised)[:, seen] @ counts[seen])
        best = int(np.argmin(sizes))
        found = int(grid[best])
        around = grid[max(0, best - 1)], grid[min(grid.size - 1, best + 1)]
        grid = np.unique(np.linspace(around[0], around[1], 9).astype(int))
    return Decaying(tag, found, low, high)


def read_model(tag: int, header: npt.NDArray[np.uint8], low: int, high: int) -> tuple[Model, int]:
    """A model from what follows its tag, and the bytes read.

    Raises:
        ValueError: when the bytes are no model of these numbers.
    """
    if tag in (GEOMETRIC, GAUSSIAN):
        return Decaying(tag, int(header[0]) + 256 * int(header[1]), low, high), 2
    if tag != HISTOGRAM:
        raise ValueError(f"{tag} is no model of a coded stream")
    first, size = int(header[0]) + 256 * int(header[1]), int(header[2])
    shares = header[3 : 3 + size]
    if shares.size != size or first + size > high - low + 1 or not shares.any():
        raise ValueError("the histogram of a coded stream is cut short")
    return Histogram(first, shares.copy(), low, high), 3 + size
