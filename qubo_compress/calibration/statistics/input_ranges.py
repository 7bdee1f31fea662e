"""The values of a layer's inputs, counted, and the range to round them to.

Values are counted in bins that are equal within an octave (from one power of two to the next), so that one pass over
the examples is enough, and a single huge value costs the others no resolution.

The default range has the least squared error, relative to each example: sum_n |Q(x_n) - x_n|^2 / |x_n|^2. An example
that no range of the others serves, such as one with a value a million times larger, adds at most about 1, as any other
does whose values would all be rounded to zero. Large values that all examples have are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.calibration.statistics.input_moments import row_weights
from qubo_compress.calibration.statistics.statistic import Calibration, Statistic
from qubo_compress.errors import InvalidMenu
from qubo_compress.network.calls import WeightCall, WeightCalls
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.groups import Group
from qubo_compress.network.rounding import InputRange

PARTS = 1024
"""Bins of an octave, for each sign: at least 4 for every level of 8 bits."""

BINS = 8192
"""Equal bins in which ends are compared: at least 16 for every level of 8 bits."""

SMALLEST = -100
"""Values below 2^-100 count as zero."""

MOST_VALUES = 200_000
"""Values of one call that are counted; of more, a random sample of this size is."""

SHARES = np.linspace(0.05, 1.0, 77).astype(np.float64)
"""Shares of the extreme values that are tried as the ends of the range."""

SWEEPS = 3
"""How often the ends are improved in turn."""

Counts = npt.NDArray[np.float64]


@dataclass(eq=False)
class ValueCounts:
    """A histogram of real numbers, with two weights for each.

    Attributes:
        low: the smallest value, zero or less.
        high: the largest value, zero or more.
        zeros: weight of the zeros.
        octaves: exponent e -> (2, 2, PARTS) weights of the values with 2^(e-1) <= |x| < 2^e: those for percentiles and
            those for squared errors, of positive and negative values.

    Example:
        >>> found = ValueCounts()
        >>> found.add(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        >>> round(found.fitted(bits=2).scale, 2), found.fitted(bits=2).zero_point
        (1.0, 0)
        >>> round(found.fitted(bits=2, percentile=50).scale, 2)
        0.33
    """

    low: float = 0.0
    high: float = 0.0
    zeros: float = 0.0
    octaves: dict[int, Counts] = field(default_factory=dict)

    def add(self, values: Tensor, weights: Tensor | None = None, in_errors: Tensor | None = None) -> None:
        """Count some values, each with a weight, and with another for squared errors."""
        flat = values.detach().float().reshape(-1)
        if not flat.numel():
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InvalidMenu("a layer has inputs that are NaN or infinite on the calibration data; they have no range")
        self.low, self.high = min(self.low, low), max(self.high, high)
        plain = torch.ones_like(flat, dtype=torch.float64) if weights is None else weights.double().reshape(-1)
        kinds = plain, plain if in_errors is None else in_errors.double().reshape(-1)
        parts, exponents = torch.frexp(flat.abs())
        some = (parts > 0) & (exponents > SMALLEST)
        self.zeros += float(plain[~some].sum())
        if not some.any():
            return
        first = int(exponents[some].min())
        places = ((exponents[some] - first) * 2 + (flat[some] < 0)) * PARTS + ((2 * parts[some] - 1) * PARTS).long()
        size = (int(exponents[some].max()) - first + 1) * 2 * PARTS
        counted = [torch.bincount(places, kind[some], minlength=size).reshape(-1, 2, PARTS) for kind in kinds]
        for number, found in enumerate(torch.stack(counted, 1).cpu().numpy()):
            if found.any():
                self.octaves[first + number] = self.octaves.get(first + number, 0.0) + found

    def fitted(self, bits: int, percentile: float | None = None) -> InputRange:
        """The range of least squared error, or between percentiles; that of a layer with zero inputs only is arbitrary.

        Args:
            bits: of the rounded inputs.
            percentile: share of the values, in percent, at or below the upper end, and at or above the lower end; both
                ends include zero. 100: the extreme values.
        """
        values, counts, in_errors = self._table()
        if not values.size:
            return InputRange(1.0, 0, bits)
        if percentile is not None:
            scale, zero_point = _scales(self._between(values, counts, percentile / 100)[None], bits)
            return InputRange(float(scale[0]), int(zero_point[0]), bits)
        extremes = np.array([self.low, self.high])
        limits = 2.0 ** np.array(sorted(self.octaves))[:, None]
        ends = _least(values, in_errors, np.clip(extremes, -limits, limits), bits)
        ends = np.clip(extremes, -2 * np.abs(ends).max(), 2 * np.abs(ends).max())
        scale_of_ends, zero_of_ends = _best(*_joined(values, in_errors, ends), float(ends[0]), float(ends[1]), bits)
        return InputRange(scale_of_ends, zero_of_ends, bits)

    def _table(self) -> tuple[Counts, Counts, Counts]:
        """The middles of all bins that are not empty, in order, and both weights."""
        middles = (np.arange(PARTS) + 0.5) / PARTS
        rows = [np.zeros((3, 0))]
        for exponent, found in self.octaves.items():
            sizes = (1 + middles) * 2.0 ** (exponent - 1)
            rows += [np.stack([sign * sizes, *found[:, number]]) for number, sign in enumerate((1, -1))]
        table = np.concatenate(rows, 1)
        table = table[:, np.argsort(table[0])]
        values, counts, in_errors = table[:, table[1] > 0]
        values = np.clip(values, self.low, self.high)
        return values, counts, in_errors if in_errors.any() else counts

    def _between(self, values: Counts, counts: Counts, share: float) -> Counts:
        """The values that a share of all is at most, and at least."""
        if share >= 1:
            return np.array([self.low, self.high])
        place = int(np.searchsorted(values, 0.0))
        values, counts = np.insert(values, place, 0.0), np.insert(counts, place, self.zeros)
        below = np.cumsum(counts) / counts.sum()
        low, high = values[np.minimum(np.searchsorted(below, [1 - share, share]), len(values) - 1)]
        return np.array([min(0.0, low), max(0.0, high)]) if low < 0 or high > 0 else np.array([self.low, self.high])


def _joined(values: Counts, weights: Counts, ends: Counts) -> tuple[Counts, Counts]:
    """Bins joined to equal ones between the ends, at the mean of their values; what lies outside stays as it is."""
    inside = (values >= ends[0]) & (values <= ends[1])
    width = max(float(ends[1] - ends[0]), 1e-30) / BINS
    places = np.clip(((values[inside] - ends[0]) / width).astype(np.int64), 0, BINS - 1)
    heavy = np.bincount(places, weights[inside], BINS)
    seen = np.flatnonzero(heavy)
    means = np.bincount(places, weights[inside] * values[inside], BINS)[seen] / heavy[seen]
    return np.concatenate([means, values[~inside]]), np.concatenate([heavy[seen], weights[~inside]])


def _best(values: Counts, weights: Counts, low: float, high: float, bits: int) -> tuple[float, int]:
    """The scale and zero point of least squared error, from both ends shrunk together and then in turn."""
    ends = _least(values, weights, SHARES[:, None] * np.array([[low, high]]), bits)
    for _ in range(SWEEPS):
        for side in (1, 0):
            tried = np.tile(ends, (len(SHARES), 1))
            tried[:, side] = SHARES * (low, high)[side]
            ends = _least(values, weights, np.concatenate([ends[None], tried]), bits)
    scale, zero_point = _scales(ends[None], bits)
    return float(scale[0]), int(zero_point[0])


def _least(values: Counts, weights: Counts, tried: Counts, bits: int) -> Counts:
    """The one of (n, 2) ranges with the least error."""
    return np.asarray(tried[int(np.argmin(_errors(values, weights, tried, bits)))])


def _scales(ends: Counts, bits: int) -> tuple[Counts, Counts]:
    """(n,) scales, rounded to float32, and zero points of (n, 2) ranges."""
    levels = (1 << bits) - 1
    wide = np.maximum(ends[:, 1] - ends[:, 0], 1e-30 * levels)
    scale = (wide / levels).astype(np.float32).astype(np.float64)
    return scale, np.clip(np.rint(-ends[:, 0] / scale), 0, levels)


def _errors(values: Counts, weights: Counts, ends: Counts, bits: int) -> Counts:
    """(n,) weighted squared errors of values rounded to each of (n, 2) ranges."""
    scale, zero_point = (found[:, None] for found in _scales(ends, bits))
    codes = np.clip(np.rint(values[None] / scale) + zero_point, 0, (1 << bits) - 1)
    return np.asarray(np.square((codes - zero_point) * scale - values[None]) @ weights)


@dataclass(frozen=True)
class InputRanges(Statistic):
    """Gathers :class:`ValueCounts` of the inputs of every member, in one run for all groups."""

    statistic_name: ClassVar[str] = "input-ranges"
    watches_inputs: ClassVar[bool] = True

    def collect(self, calibration: Calibration, group: Group) -> tuple[ValueCounts, ...]:
        ahead = calibration.ahead.setdefault(self.statistic_name, {})
        if not ahead:
            ahead.update(_counted(calibration))
        missing = [member.name for member in group.members if member.name not in ahead]
        if missing:
            raise InvalidMenu(
                f"the inputs of {missing[0]} were not seen on the calibration data, so they have no range; keep it out "
                "of choices with activations, with a grouping that leaves it alone"
            )
        return tuple(cast(ValueCounts, ahead[member.name]) for member in group.members)

    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[ValueCounts, ...]:
        found = []
        for _ in group.members:
            counts = ValueCounts()
            counts.add(torch.randn(500, generator=generator).clamp(min=-0.5))
            found.append(counts)
        return tuple(found)


def _counted(calibration: Calibration) -> dict[str, ValueCounts]:
    """Name -> counts of the inputs of every weight whose calls show them."""
    found: dict[str, ValueCounts] = {}
    generator = torch.Generator().manual_seed(calibration.seed)
    weights = torch.ones(1)

    def count(name: str, call: WeightCall) -> None:
        for inputs in call.inputs:
            given = _sampled(inputs, row_weights(weights, inputs.shape[0]), generator)
            found.setdefault(name, ValueCounts()).add(*given)

    watched = {name: tensor for name, tensor in calibration.tensors.items() if tensor.ndim > 1}
    with every_layer_runs(), WeightCalls(watched, count), torch.no_grad():
        for part in calibration.examples.slices:
            weights = part.weights
            calibration.run(part.inputs)
    return found


def _sampled(inputs: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Values of a layer's inputs, examples first, with the weights of their examples; all, or a random sample.

    The last are weights of squared errors: relative to the squares of the example. One of zeros has no error.
    """
    rows = inputs.detach().float().reshape(len(inputs), -1)
    squares = rows.square().sum(1).double()
    weights = weights.to(rows.device).double()
    in_errors = torch.where(squares > 0, weights / squares, 0.0)
    each = rows.shape[1]
    if rows.numel() <= MOST_VALUES:
        return rows, weights.repeat_interleave(each), in_errors.repeat_interleave(each)
    picked = torch.randint(rows.numel(), (MOST_VALUES,), generator=generator).to(rows.device)
    share = rows.numel() / MOST_VALUES
    return rows.reshape(-1)[picked], share * weights[picked // each], share * in_errors[picked // each]
