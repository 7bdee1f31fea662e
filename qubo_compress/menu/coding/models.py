"""Probability models of coded streams: a few bytes of integers that give reader and writer the same probabilities.

Probabilities are computed from the stored integers only by additions, multiplications and divisions, which IEEE
arithmetic rounds identically everywhere; exponentials are not used, because libraries differ in the last digit.
Logarithms only choose between models, and the choice is stored.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

RESOLUTION = 2.0**20
"""Weight of the most likely number, relative to the least likely: the coder has 24-bit probabilities."""

PLAIN, EMPTY, SHARE, HISTOGRAM, SYMMETRIC, GEOMETRIC, GAUSSIAN = range(7)
"""Tags of the models, one byte in the file."""

STEPS = 256
"""Parameters that fit one byte."""


class Model(ABC):
    """A probability for each integer from ``low`` to ``high``."""

    @abstractmethod
    def header(self) -> bytes:
        """The tag and the parameters, as bytes of the file."""

    @abstractmethod
    def probabilities(self) -> Floats:
        """(high - low + 1,) positive shares that sum to one."""


def normalised(shares: Floats) -> Floats:
    """Shares that sum to one, as multiples of a small one: sums of integers do not depend on the order."""
    whole = np.floor(shares * (RESOLUTION / shares.max())) + 1.0
    found: Floats = whole / whole.sum()
    return found


@dataclass(frozen=True)
class Even(Model):
    """Equal probabilities, for contexts without any number."""

    low: int
    high: int

    def header(self) -> bytes:
        return bytes([EMPTY])

    def probabilities(self) -> Floats:
        return normalised(np.ones(self.high - self.low + 1))


@dataclass(frozen=True)
class Share(Model):
    """Two numbers; the second has the share (2 step + 1) / 512."""

    step: int

    def header(self) -> bytes:
        return bytes([SHARE, self.step])

    def probabilities(self) -> Floats:
        second = (2 * self.step + 1) / 512
        return normalised(np.array([1.0 - second, second]))


@dataclass(frozen=True)
class Decaying(Model):
    """Shares that fall off on both sides of zero: theta^|k| (geometric) or theta^(k^2) (Gaussian).

    Attributes:
        tag: ``GEOMETRIC`` or ``GAUSSIAN``.
        step: theta = 1 - (16 + step % 16) / 2^(5 + step // 16), one byte.
        low: smallest number.
        high: largest number.
    """

    tag: int
    step: int
    low: int
    high: int

    def header(self) -> bytes:
        return bytes([self.tag, self.step])

    def probabilities(self) -> Floats:
        theta = 1.0 - (16 + self.step % 16) / 2.0 ** (5 + self.step // 16)
        reach = max(abs(self.low), abs(self.high), 1)
        factors = np.full(reach, theta)
        if self.tag == GAUSSIAN:
            # theta^(k^2) is the product of theta^(2j - 1) over j up to k.
            factors = np.cumprod(np.concatenate([[theta], np.full(reach - 1, theta * theta)]))
        shares = np.concatenate([[1.0], np.cumprod(factors)])
        numbers = np.abs(np.arange(self.low, self.high + 1))
        return normalised(shares[numbers - numbers.min()])


def _share_of(byte: int) -> float:
    return (16 + byte % 16) * 2.0 ** (byte // 16) if byte else 0.0


SHARES = np.array([_share_of(byte) for byte in range(STEPS)])
"""The values of a histogram's byte: floats with four fractional bits, which also resolve rare numbers."""


@dataclass(frozen=True)
class Histogram(Model):
    """One byte per number from ``first`` on, an index into ``SHARES``.

    Attributes:
        first: smallest number that occurs, relative to ``low``.
        shares: 1 to 255 bytes.
        low: smallest number.
        high: largest number.
    """

    first: int
    shares: bytes
    low: int
    high: int

    def header(self) -> bytes:
        return bytes([HISTOGRAM]) + self.first.to_bytes(2, "little") + bytes([len(self.shares)]) + self.shares

    def probabilities(self) -> Floats:
        """The stored shares; numbers that did not occur get the floor."""
        whole = np.zeros(self.high - self.low + 1)
        whole[self.first : self.first + len(self.shares)] = SHARES[list(self.shares)]
        return normalised(whole)


@dataclass(frozen=True)
class Symmetric(Model):
    """One byte per magnitude: a number is as likely as its negative.

    Attributes:
        shares: 1 to 255 bytes, indices into ``SHARES``, from magnitude 0 on.
        low: smallest number.
        high: largest number.
    """

    shares: bytes
    low: int
    high: int

    def header(self) -> bytes:
        return bytes([SYMMETRIC, len(self.shares)]) + self.shares

    def probabilities(self) -> Floats:
        """The stored shares; magnitudes that did not occur get the floor."""
        reach = max(abs(self.low), abs(self.high))
        whole = np.zeros(max(reach + 1, len(self.shares)))
        whole[: len(self.shares)] = SHARES[list(self.shares)]
        return normalised(whole[np.abs(np.arange(self.low, self.high + 1))])


@functools.lru_cache(maxsize=24)
def _decaying_bits(tag: int, low: int, high: int) -> Floats:
    """(steps, numbers) bits of every number for every parameter."""
    return -np.log2(np.stack([Decaying(tag, step, low, high).probabilities() for step in range(STEPS)]))


def bits_of(model: Model) -> Floats:
    """(high - low + 1,) bits that each number takes."""
    return -np.log2(model.probabilities())


def best_model(counts: Counts, low: int, high: int) -> tuple[Model, float]:
    """The model with the shortest header and codes together, and their bits.

    Args:
        counts: (high - low + 1,) how often each number occurs.
        low: smallest number.
        high: largest number.

    Example:
        >>> best_model(np.array([1, 30, 100, 30, 1]), -2, 2)[0].header()[0] == GAUSSIAN
        True
    """
    seen = np.flatnonzero(counts)
    if seen.size == 0:
        return Even(low, high), 8.0
    tried: list[Model] = []
    if counts.size == 2:
        tried.append(Share(int(np.clip(np.round(counts[1] / counts.sum() * 256 - 0.5), 0, STEPS - 1))))
    else:
        for tag in (GEOMETRIC, GAUSSIAN):
            tried.append(Decaying(tag, int((_decaying_bits(tag, low, high) @ counts).argmin()), low, high))
        tried += _histograms(counts, seen, low, high)
    sizes = [8 * len(model.header()) + float(bits_of(model) @ counts) for model in tried]
    best = int(np.argmin(sizes))
    return tried[best], sizes[best]


def _histograms(counts: Counts, seen: Counts, low: int, high: int) -> list[Model]:
    found: list[Model] = []
    if np.ptp(seen) < 255:
        part = counts[seen[0] : seen[-1] + 1]
        found.append(Histogram(int(seen[0]), _relative(part), low, high))
    numbers = np.arange(low, high + 1)
    if low < 0 < high and int(np.abs(numbers[seen]).max()) < 255:
        # A range may contain a magnitude with only one sign.
        both: Floats = np.bincount(np.abs(numbers), weights=counts) / np.bincount(np.abs(numbers)).clip(min=1)
        found.append(Symmetric(_relative(both[: int(np.abs(numbers[seen]).max()) + 1]), low, high))
    return found


def _relative(counts: npt.NDArray[np.generic]) -> bytes:
    """The nearest entries of ``SHARES``, with the largest scaled to the last."""
    scaled = np.asarray(counts, dtype=np.float64) * (SHARES[-1] / float(np.max(counts)))
    above = np.searchsorted(SHARES, scaled).clip(1, STEPS - 1)
    nearest = np.where(scaled * scaled < SHARES[above - 1] * SHARES[above], above - 1, above)
    return bytes(nearest.tolist())


def read_model(header: memoryview, low: int, high: int) -> tuple[Model, int]:
    """A model, and the bytes read.

    Raises:
        ValueError: when the bytes are not a model of these numbers.
    """
    found, used = _read_model(header, low, high)
    if len(header) < used:
        raise ValueError("the model of a coded stream is cut short")
    return found, used


def _read_model(header: memoryview, low: int, high: int) -> tuple[Model, int]:
    padded = bytes(header[:4]).ljust(4, b"\0")
    tag, numbers = padded[0], high - low + 1
    if tag == EMPTY:
        return Even(low, high), 1
    if tag == SHARE and numbers == 2:
        return Share(padded[1]), 2
    if tag in (GEOMETRIC, GAUSSIAN):
        return Decaying(tag, padded[1], low, high), 2
    if tag not in (HISTOGRAM, SYMMETRIC):
        raise ValueError(f"{tag} is no model of {numbers} coded numbers")
    start, size = (4, padded[3]) if tag == HISTOGRAM else (2, padded[1])
    shares = bytes(header[start : start + size])
    first = int.from_bytes(padded[1:3], "little") if tag == HISTOGRAM else 0
    last = numbers if tag == HISTOGRAM else max(abs(low), abs(high)) + 1
    if not any(shares) or first + size > last:
        raise ValueError("the histogram of a coded stream does not fit its numbers")
    found = Histogram(first, shares, low, high) if tag == HISTOGRAM else Symmetric(shares, low, high)
    return found, start + size
