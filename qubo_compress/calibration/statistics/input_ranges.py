"""The values of a layer's inputs, counted, and the range of least squared error to round them to.

Values are counted in equal bins from -R to R, with R the smallest power of two that covers them: when a larger value
arrives, pairs of bins are joined. So one pass over the examples is enough, and memory is constant.
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

BINS = 8192
"""Bins of a count: at least 16 for every level of 8 bits."""

MOST_VALUES = 200_000
"""Values of one call that are counted; of more, a random sample of this size is."""

SHARES = np.linspace(0.05, 1.0, 77).astype(np.float64)
"""Shares of the extreme values that are tried as the ends of the range."""

SWEEPS = 3
"""How often the ends are improved in turn."""

Counts = npt.NDArray[np.float64]


@dataclass(eq=False)
class ValueCounts:
    """A histogram of real numbers that widens as they come.

    Attributes:
        exponent: R = 2^exponent; None before the first value that is not zero.
        counts: (BINS,) weights of the values in each bin.

    Example:
        >>> found = ValueCounts()
        >>> found.add(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        >>> round(found.fitted(bits=2).scale, 2), found.fitted(bits=2).zero_point
        (1.0, 0)
    """

    exponent: int | None = None
    counts: Counts = field(default_factory=lambda: np.zeros(BINS))

    def add(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count some values, each with a weight."""
        flat = values.detach().float().reshape(-1)
        largest = float(flat.abs().max()) if flat.numel() else 0.0
        if not math.isfinite(largest):
            raise InvalidMenu("a layer has inputs that are NaN or infinite on the calibration data; they have no range")
        if largest > 0:
            self._widen(max(-100, math.floor(math.log2(largest)) + 1))
        if self.exponent is None:
            return
        places = ((flat * (0.5 / 2.0**self.exponent) + 0.5) * BINS).long().clamp_(0, BINS - 1)
        given = None if weights is None else weights.double().reshape(-1).cpu()
        self.counts += torch.bincount(places.cpu(), given, minlength=BINS).double().numpy()

    def _widen(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(joined, BINS // 4)
            self.exponent += 1

    def fitted(self, bits: int) -> InputRange:
        """The range of least squared error; that of a layer with zero inputs only is arbitrary."""
        seen = np.flatnonzero(self.counts)
        if self.exponent is None or not seen.size:
            return InputRange(1.0, 0, bits)
        width = 2.0 * 2.0**self.exponent / BINS
        edges = (np.array([seen[0], seen[-1] + 1]) - BINS // 2) * width
        values, weights = (seen.astype(np.float64) + 0.5 - BINS // 2) * width, self.counts[seen]
        # Values within half a bin of zero may be exact zeros, as behind a ReLU: they cost nothing.
        values[np.abs(values) < width] = 0.0
        low, high = min(0.0, float(edges[0])), max(0.0, float(edges[1]))
        if low >= -width:
            low = 0.0
        scale, zero_point = _best(values, weights, low, high, bits)
        return InputRange(scale, zero_point, bits)


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
            values, each = _sampled(inputs, row_weights(weights, inputs.shape[0]), generator)
            found.setdefault(name, ValueCounts()).add(values, each)

    watched = {name: tensor for name, tensor in calibration.tensors.items() if tensor.ndim > 1}
    with every_layer_runs(), WeightCalls(watched, count), torch.no_grad():
        for part in calibration.examples.slices:
            weights = part.weights
            calibration.run(part.inputs)
    return found


def _sampled(inputs: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Values of a layer's inputs, examples first, with the weights of their examples; all, or a random sample."""
    each = inputs[0].numel()
    flat = inputs.reshape(-1)
    if flat.numel() <= MOST_VALUES:
        return flat, weights.repeat_interleave(each)
    picked = torch.randint(flat.numel(), (MOST_VALUES,), generator=generator)
    return flat[picked.to(flat.device)], weights[(picked // each).to(weights.device)] * (flat.numel() / MOST_VALUES)
