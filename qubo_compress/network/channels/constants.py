"""Channels that can leave without a change of the outputs: constant ones, and those that nothing reads."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from qubo_compress.network.channels.sets import Channels
from qubo_compress.network.tensors import NetworkTensors


def absorbable(channels: Channels) -> list[int]:
    """Positions of the sets that every layer can do without, each axis keeping at least one index.

    A layer can do without an input if all its weights are zero, or if the input is a constant zero, or another constant
    that a bias or the running mean behind the layer can absorb. Around a padded convolution a constant is not: its
    border sees zeros instead.
    """
    possible = np.ones(len(channels.sets), dtype=bool)
    for reading in channels.readings:
        needed = channels.of_labels(reading.use.labels)[~reading.absorbs.numpy()]
        possible[needed[needed >= 0]] = False
    found: list[int] = []
    for family in {item.family for item in channels.sets}:
        members = [number for number, item in enumerate(channels.sets) if item.family == family]
        leaving = [number for number in members if possible[number]]
        found += leaving[1:] if len(leaving) == len(members) else leaving
    return sorted(found)


def absorb(model: nn.Module, channels: Channels, gone: Collection[int]) -> None:
    """Add what the constant channels among some sets contribute to biases and running means; changes the model."""
    tensors, leaving = NetworkTensors(model), np.array(sorted(gone))
    with torch.no_grad():
        for reading in channels.readings:
            away = torch.from_numpy(np.isin(channels.of_labels(reading.use.labels), leaving))
            away &= ~reading.ignored & reading.steady & (reading.values != 0)
            if not bool(away.any()):
                continue
            moved = reading.columns[:, away] @ reading.values[away]
            if reading.bias is not None:
                name, positions = reading.bias
                held = tensors[name]
                held.view(-1).index_add_(0, torch.from_numpy(positions).to(held.device), moved.to(held))
            elif reading.statistics is not None:
                held = tensors[reading.statistics]
                held.sub_(moved.to(held))
