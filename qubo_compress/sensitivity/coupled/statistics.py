"""Second moments of what layers read, channel by channel: the least-squares fit of removed channels needs no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_compress.calibration.examples import Examples
from qubo_compress.network.calls import WeightCall, WeightCalls
from qubo_compress.network.channels.uses import Reading
from qubo_compress.network.replay import run_model
from qubo_compress.network.tensors import NetworkTensors

WIDEST = 4096
"""Layers that read more channels than this are not compensated: the moments would take too much memory."""

POSITIONS = 64
"""Most pixels or tokens of an example that are read, evenly spread: neighbours say the same."""


@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """Moments of a layer's inputs.

    Attributes:
        matrix: (C + 1, C + 1) float64 mean of x x^T, with a one behind the channels.
    """

    matrix: Tensor

    @property
    def means(self) -> Tensor:
        """(C,) mean of every channel."""
        return self.matrix[-1, :-1]


def channel_moments(
    tensors: NetworkTensors, examples: Examples, readings: Sequence[Reading]
) -> dict[str, ChannelMoments]:
    """Weight -> moments of its inputs, for layers that were seen to get the weight itself, and only once.

    Args:
        tensors: of the network, in eval mode.
        examples: on its device.
        readings: of its layers.
    """
    counts: dict[str, int] = {}
    for reading in readings:
        counts[reading.use.tensor] = counts.get(reading.use.tensor, 0) + 1
    widths = {
        reading.use.tensor: len(reading.use.indices)
        for reading in readings
        if counts[reading.use.tensor] == 1 and _whole(reading, tensors) and len(reading.use.indices) <= WIDEST
    }
    watched = {name: tensors[name] for name in widths}
    gathering = _Sums(widths)
    with WeightCalls(watched, gathering.add, frozenset(widths)), torch.no_grad():
        for part in examples.slices:
            gathering.weights = part.weights
            run_model(tensors.model, part.inputs)
    return {name: ChannelMoments(total / total[-1, -1]) for name, total in gathering.sums.items() if total[-1, -1] > 0}


def _whole(reading: Reading, tensors: NetworkTensors) -> bool:
    """Whether the layer reads along a whole axis, index by index."""
    whole: list[int] = list(range(tensors[reading.use.tensor].shape[reading.use.axis]))
    return bool(reading.use.indices.tolist() == whole)


class _Sums:
    def __init__(self, widths: Mapping[str, int]) -> None:
        self.widths = widths
        self.sums: dict[str, Tensor] = {}
        self.weights = torch.ones(1)
        self._left: set[str] = set()

    def add(self, name: str, call: WeightCall) -> None:
        """Add the inputs of one call."""
        width = self.widths[name]
        axis = 1 if call.sliding is not None else -1
        if name in self._left or not call.inputs or call.inputs[0].shape[axis] != width:
            self._left.add(name)
            self.sums.pop(name, None)
            return
        batch = call.inputs[0].movedim(axis, -1).flatten(1, -2) if call.inputs[0].ndim > 2 else call.inputs[0][:, None]
        batch = batch[:, :: -(-batch.shape[1] // POSITIONS)]
        rows = torch.cat([batch, batch.new_ones(*batch.shape[:2], 1)], dim=2)
        count = len(rows)
        even = count % len(self.weights) == 0
        weights = (
            self.weights.repeat_interleave(count // len(self.weights)) if even else self.weights.mean().expand(count)
        )
        flat = (rows * weights.clamp(min=0).sqrt().to(rows)[:, None, None]).flatten(0, 1)
        found = (flat.T @ flat).double().cpu()
        self.sums[name] = self.sums[name] + found if name in self.sums else found
