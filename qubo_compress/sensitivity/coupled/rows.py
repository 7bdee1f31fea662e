"""Displacements of the network by the removal of coupled channels, for the products metric.

When a channel c leaves and its mean m_c stays as a constant, every layer that reads it changes by

    d(W) = -W[:, c],        d(bias) = (sum over the kernel of W[:, c]) m_c

so the row A[v] is the sum, over all layers that read the set, of the products of these displacements with the gradients
per example; pairs of sets follow from the inner products of rows. A layer without a bias in front of a batch
normalisation has the normalisation's bias displaced instead, by the same amount behind its scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from qubo_compress.network.channels import Channels
from qubo_compress.network.channels.uses import Reading
from qubo_compress.network.groups import Member
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.coupled.statistics import ChannelMoments
from qubo_compress.sensitivity.metrics.products import AddedChoices
from qubo_compress.sensitivity.metrics.products.displacements import Block, ColumnBlock


def removals(
    channels: Channels, tensors: NetworkTensors, moments: Mapping[str, ChannelMoments], first: int
) -> AddedChoices:
    """One choice per set: to remove it.

    Args:
        channels: of the network.
        tensors: of the network.
        moments: weight -> moments of its inputs.
        first: number of the first of these choices.
    """
    blocks: dict[str, list[Block | ColumnBlock]] = {}
    read: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
    for number, item in enumerate(channels.sets):
        for part in item.slices:
            if part.role == "reads":
                indices, owners = read.setdefault((part.tensor, part.axis), ([], []))
                indices += part.indices
                owners += [number] * len(part.indices)
    for (name, axis), (indices, owners) in read.items():
        numbers, position = np.unique(owners, return_inverse=True)
        values = tensors[name].detach().float()
        blocks.setdefault(name, []).append(
            ColumnBlock(
                first + numbers, axis, torch.tensor(indices, device=values.device),
                torch.from_numpy(position).to(values.device), values,
            )
        )  # fmt: skip
    for reading in channels.readings:
        known = moments.get(reading.use.tensor)
        shift = None if known is None else _shifted(channels, reading, known.means, tensors, first)
        if shift is not None:
            blocks.setdefault(shift.member.name, []).append(shift)
    return AddedChoices(len(channels.sets), blocks)


def _shifted(channels: Channels, reading: Reading, means: Tensor, tensors: NetworkTensors, first: int) -> Block | None:
    """What the means of channels that leave add to the outputs of a layer that reads them."""
    sets = channels.of_labels(reading.use.labels)
    numbers, position = np.unique(sets[sets >= 0], return_inverse=True)
    if not numbers.size:
        return None
    each = reading.columns * means  # (O, C)
    added = torch.zeros(len(numbers), len(each), dtype=torch.float64)
    added.index_add_(0, torch.from_numpy(position), each[:, torch.from_numpy(sets >= 0)].T)
    if reading.bias is not None:
        name, positions = reading.bias
        values = torch.zeros(len(numbers), tensors[name].numel())
        values.index_add_(1, torch.from_numpy(positions), added.float())
        values = values.reshape(len(numbers), *tensors[name].shape)
    elif reading.statistics is not None:
        found = _behind_normalisation(added, reading.statistics, tensors)
        if found is None:
            return None
        name, values = found
    else:
        return None
    held = tensors[name]
    return Block(first + numbers, Member(name, tuple(held.shape), held.dtype), values.to(held.device))


def _behind_normalisation(added: Tensor, mean: str, tensors: NetworkTensors) -> tuple[str, Tensor] | None:
    """Name of a batch normalisation's bias, and a constant in front of it as one behind it."""
    module = tensors.owners(mean)[0][0]
    bias = f"{mean.rpartition('.')[0]}.bias".lstrip(".")
    if bias not in tensors:
        return None
    variance, scale = tensors[mean.replace("running_mean", "running_var")], tensors[bias[: -len("bias")] + "weight"]
    factor = scale.detach().double() / torch.sqrt(variance.double() + float(module.eps))  # type: ignore[arg-type]
    return bias, (added * factor.cpu()).float()
