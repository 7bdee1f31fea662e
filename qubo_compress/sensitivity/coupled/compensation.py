"""What layers do about channels that leave: the channels that stay stand in for them, by least squares.

Let a layer read channels x = (x_K, x_R) with weights W, and let x_R leave. With the moments S of x and a one behind it,

    B = (S_KK + damping)^-1 S_KR,       x_R ~= B^T (x_K, 1),       W_K += W_R B^T,

and the part of B that belongs to the one goes to the bias or to the running mean behind the layer. It is the same fit
for every position of a kernel, so it needs C^2 numbers per layer and little data (in the spirit of ThiNet, Luo et al.,
ICCV 2017, and channel pruning, He et al., ICCV 2017, which fit each output).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from qubo_compress.network.channels import Channels
from qubo_compress.network.channels.uses import Reading
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.coupled.statistics import ChannelMoments

DAMPING = 0.01
"""Share of the mean input moment that is added to every kept channel's."""


def compensated(
    channels: Channels, gone: Collection[int], tensors: NetworkTensors, moments: Mapping[str, ChannelMoments]
) -> dict[str, Tensor]:
    """New values, still with all channels, of the tensors that make up for what leaves.

    Args:
        channels: of the network.
        gone: positions of the sets that leave.
        tensors: of the network.
        moments: weight -> moments of its inputs; other layers only lose weights.
    """
    found: dict[str, Tensor] = {}
    leaving = np.array(sorted(gone), dtype=np.int64)
    for reading in channels.readings:
        known = moments.get(reading.use.tensor)
        away = torch.from_numpy(np.isin(channels.of_labels(reading.use.labels), leaving))
        constant = reading.bias is not None or reading.statistics is not None
        if known is None or not bool(away.any()) or (bool(away.all()) and not constant):
            continue
        fit = stand_ins(known.matrix, away, constant)
        name, axis = reading.use.tensor, reading.use.axis
        weight = found.get(name, tensors[name].detach()).double().cpu().movedim(axis, -1)
        lost, stay = weight[..., away], weight[..., ~away]
        new = weight.clone()
        new[..., ~away] = stay + lost @ fit[:-1].T
        found[name] = new.movedim(-1, axis).to(tensors[name]).contiguous()
        _shift(found, reading, reading.columns[:, away] @ fit[-1], tensors)
    return found


def stand_ins(matrix: Tensor, away: Tensor, constant: bool) -> Tensor:
    """(K + 1, R) coefficients by which the channels that stay, and a one, stand in for those that leave.

    Example:
        >>> twins = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
        >>> stand_ins(twins, torch.tensor([False, True]), constant=True).round(decimals=1).tolist()
        [[1.0], [0.0]]
    """
    stay = torch.cat([~away, torch.tensor([constant])])
    gone = torch.cat([away, torch.tensor([False])])
    kept = matrix[stay][:, stay].clone()
    diagonal = kept.diagonal()[: int((~away).sum())]
    if diagonal.numel():
        diagonal.add_(DAMPING * float(diagonal.mean()) + 1e-12)
    solved = torch.linalg.lstsq(kept, matrix[stay][:, gone]).solution
    return solved if constant else torch.cat([solved, solved.new_zeros(1, solved.shape[1])])


def _shift(found: dict[str, Tensor], reading: Reading, shift: Tensor, tensors: NetworkTensors) -> None:
    """Add a constant to a layer's outputs, where there is a place for it."""
    if reading.bias is not None:
        name, positions = reading.bias
        held = found.get(name, tensors[name].detach().cpu()).clone()
        held.view(-1).index_add_(0, torch.from_numpy(positions), shift.to(held))
        found[name] = held
    elif reading.statistics is not None:
        held = found.get(reading.statistics, tensors[reading.statistics].detach().cpu())
        found[reading.statistics] = held - shift.to(held)
