"""Analog memory cells: a mean response, and noise that depends on the written level."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from qubo_compress._internal.registry import Registry
from qubo_compress.channels.coding import cells_per_protected_bit
from qubo_compress.errors import InvalidChannel
from qubo_compress.problem.choice_problem import FloatArray

MOST_BITS_PER_CELL = 6
POINTS = 257


@dataclass(frozen=True)
class AnalogChannel:
    """out = phi(in) + sigma(in) n with n standard normal; both functions are tables with linear interpolation.

    Targets are shares of the response's range: 0 for the lowest mean response, 1 for the highest. A value w = (out - b)
    / a of gain a is written as phi^-1(a w + b) and read with mean w and deviation sigma / a.

    Args:
        inputs: (K,) increasing write levels.
        responses: (K,) increasing mean responses.
        deviations: (K,) standard deviation of the response, in the response's unit.

    Raises:
        InvalidChannel: for tables that are too short, not increasing, negative or not finite.

    Example:
        >>> cell = AnalogChannel((0.0, 1.0), (2.0, 6.0), (0.0, 0.4))
        >>> cell.write(np.array([0.25])), cell.deviation(np.array([0.25]))
        (array([0.25]), array([0.025]))
    """

    inputs: tuple[float, ...]
    responses: tuple[float, ...]
    deviations: tuple[float, ...]

    def __post_init__(self) -> None:
        table = [np.asarray(column, dtype=np.float64) for column in (self.inputs, self.responses, self.deviations)]
        if len({column.shape for column in table}) != 1 or table[0].ndim != 1 or table[0].size < 2:
            raise InvalidChannel("inputs, responses and deviations are three columns of at least two numbers each")
        if not all(np.isfinite(column).all() for column in table):
            raise InvalidChannel("the channel's table holds NaN or infinity")
        if (np.diff(table[0]) <= 0).any() or (np.diff(table[1]) <= 0).any():
            raise InvalidChannel("inputs and responses must increase: a response that falls cannot be inverted")
        if (table[2] < 0).any():
            raise InvalidChannel(f"deviations must not be negative; got {table[2].min():g}")

    @classmethod
    def parametric(
        cls, response: Callable[[FloatArray], FloatArray], deviation: Callable[[FloatArray], FloatArray]
    ) -> AnalogChannel:
        """A channel whose table samples two functions of the write level, 0 to 1."""
        inputs = np.linspace(0.0, 1.0, POINTS)
        columns = inputs, response(inputs), deviation(inputs)
        return cls(*(tuple(map(float, np.broadcast_to(column, inputs.shape))) for column in columns))

    @property
    def span(self) -> float:
        """The range of the response: largest minus smallest mean."""
        return self.responses[-1] - self.responses[0]

    def noisier(self, factor: float) -> AnalogChannel:
        """The same response with deviations multiplied by a factor."""
        return replace(self, deviations=tuple(factor * value for value in self.deviations))

    def write(self, targets: FloatArray) -> FloatArray:
        """Write levels with the mean response ``targets``, as a share of the range: phi^-1."""
        return np.interp(self.responses[0] + np.asarray(targets) * self.span, self.responses, self.inputs)

    def respond(self, levels: FloatArray) -> FloatArray:
        """Mean response to write levels, as a share of the range."""
        return (np.interp(levels, self.inputs, self.responses) - self.responses[0]) / self.span

    def deviation(self, targets: FloatArray) -> FloatArray:
        """Standard deviation of reads of cells that hold ``targets``, as a share of the range."""
        return np.interp(self.write(targets), self.inputs, self.deviations) / self.span

    def read(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """One noisy read of cells that hold ``targets`` (shares of the range)."""
        levels = self.write(targets.double().numpy())
        mean, spread = (
            torch.from_numpy(np.asarray(f)) for f in (self.respond(levels), self.deviation(targets.numpy()))
        )
        return mean + spread * torch.randn(mean.shape, generator=generator, dtype=torch.float64)

    @property
    def cells_per_reliable_bit(self) -> float:
        """Cells per error-free bit, with digital levels and an error-correcting code: see :func:`digital_price`."""
        return digital_price(self)


@functools.lru_cache(maxsize=256)
def digital_price(channel: AnalogChannel) -> float:
    """Cells per error-free bit when analog cells hold 2^b levels, Gray-coded, under an error-correcting code.

    Levels are spaced in proportion to the noise, so that a threshold is k deviations from its neighbours with k =
    integral dy / sigma(y) / (2 (2^b - 1)); a cell is misread with probability 2 Q(k), which flips one of its b bits.
    The price is that of the cheapest b under the best BCH code.
    """
    middles = (np.arange(1024) + 0.5) / 1024
    spread = channel.deviation(middles)
    smallest = 1e-12  # a noiseless stretch could hold any number of levels
    distinct = float(np.mean(1.0 / np.maximum(spread, smallest)))
    prices = []
    for bits in range(1, MOST_BITS_PER_CELL + 1):
        margin = distinct / (2 * ((1 << bits) - 1))
        flip_rate = min(0.5, float(2 * stats.norm.sf(margin)) / bits)
        if flip_rate < 0.5:
            # Rounded up to four digits, so that the price does not depend on an integral's last bit.
            prices.append(cells_per_protected_bit(_rounded_up(flip_rate)) / bits)
    if not prices:
        raise InvalidChannel("the channel is too noisy to hold even one reliable bit per cell")
    return min(prices)


def _rounded_up(rate: float) -> float:
    if rate < 1e-15:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(rate)) - 3)
    return min(0.5, math.ceil(rate / unit) * unit)


channels: Registry[AnalogChannel] = Registry("channel")
"""Name -> analog channel; the names appear in the names of choices."""

channels.add(
    "pcm",
    # Nandakumar et al. 2019 (doi 10.1109/ICECS46596.2019.8964852), as in IBM's aihwkit: the deviation of a
    # phase-change conductance after program-and-verify, in microsiemens of a range of 25.
    AnalogChannel.parametric(lambda g: g, lambda g: (0.26348 + 1.9650 * g - 1.1731 * g**2) / 25.0),
)
channels.add(
    "pcm-open-loop",
    # Not measured: the typical shape of single-pulse writing, a saturating response that is noisiest where it is steep.
    AnalogChannel.parametric(
        lambda z: 1.0 / (1.0 + np.exp(-8.0 * (z - 0.5))),
        lambda z: 0.02 + 0.06 * np.exp(-(((z - 0.5) / 0.2) ** 2)),
    ),
)
channels.add("gaussian", AnalogChannel((0.0, 1.0), (0.0, 1.0), (0.02, 0.02)))


def analog_channel(name: str, noise: float = 1.0) -> AnalogChannel:
    """A registered channel, with its deviations multiplied by a factor.

    Raises:
        UnknownName: when the channel is not registered.

    Example:
        >>> round(float(analog_channel("pcm", noise=2.0).deviation(np.array([0.0]))[0]), 4)
        0.0211
    """
    found = channels.get(name)
    return found if noise == 1.0 else _noisier(found, noise)


@functools.lru_cache(maxsize=256)
def _noisier(channel: AnalogChannel, noise: float) -> AnalogChannel:
    return channel.noisier(noise)
