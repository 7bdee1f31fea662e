"""Networks without the channels that they do not need: smaller tensors, equal outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import InvalidModel
from qubo_compress.network.channels import ChannelSet, find_channels
from qubo_compress.network.channels.constants import absorb, absorbable
from qubo_compress.network.channels.cutting import apart_at_most, removal_of_sets
from qubo_compress.network.channels.find import HALVES
from qubo_compress.network.inputs import map_tensors
from qubo_compress.network.memory import refuse_without_values
from qubo_compress.network.private import independent_copy
from qubo_compress.network.wrappers import unwrapped

CHECKED = 64
"""Most examples on which the outputs of both networks are compared."""

ROUNDING = 1e-5
"""Largest difference of outputs, relative to the largest output: a constant is added elsewhere, so it is rounded."""


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A network without the channels that it did not need.

    Attributes:
        model: the smaller network, in eval mode: the same classes and names, smaller tensors.
        removed: the coupled sets of channels that left.
        parameters, parameters_before: how many numbers the parameters hold.
        difference: largest difference of an output on the examples, relative to the largest output, in float32 or more.
    """

    model: nn.Module
    removed: tuple[ChannelSet, ...]
    parameters: int
    parameters_before: int
    difference: float

    def __str__(self) -> str:
        share = 1 - self.parameters / max(1, self.parameters_before)
        layers: dict[str, int] = {}
        for item in self.removed:
            layer = item.name.rpartition("[")[0]
            layers[layer] = layers.get(layer, 0) + 1
        where = ", ".join(f"{count} of {layer}" for layer, count in layers.items()) or "none"
        return (
            f"{len(self.removed)} coupled sets of channels removed ({where}): {self.parameters:,} of "
            f"{self.parameters_before:,} parameters left (-{share:.1%})"
        )


@torch.inference_mode(False)  # inference mode hides writes
def shrink(model: nn.Module, batches: Iterable[Any]) -> Shrunk:
    """Remove the channels of a network that are constant for all inputs, or that nothing reads; outputs stay equal.

    A channel is constant if its filter is zero, if the scale of its normalisation is zero, or if everything that it is
    computed from is constant. What a constant contributes to the next layer goes into its bias, or into the running
    mean of the normalisation behind it. Channels that leave together, such as those of a residual stream, must all be
    constant. A constant other than zero that a padded convolution reads stays, because the border sees zeros instead.

    Args:
        model: trained, such as ``plan.apply(model)`` with filters set to zero; unchanged.
        batches: as for :func:`qubo_compress.measure`; the network runs on the first examples, to see its operations.

    Returns:
        The smaller network, which carries no plan, and what was removed.

    Raises:
        InvalidBatches: when there are no examples.
        ForwardFailed: when the network does not run on them.
        InvalidModel: when the outputs of the smaller network are not equal; then it is not returned. When tensors have
            no values, on the meta device.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = net[0].weight.data[:6].zero_()
        >>> small = shrink(net, [torch.randn(4, 3)])
        >>> small.model[2].in_features, small.parameters, len(small.removed)
        (2, 14, 6)
    """
    model = unwrapped(model)
    refuse_without_values(model)
    few = read_examples(batches, CHECKED).first(CHECKED).inputs
    channels = find_channels(model, few)
    gone = absorbable(channels)
    whole = independent_copy(model).cpu()
    if any(parameter.dtype in HALVES for parameter in whole.parameters()):
        whole = whole.float()  # two ways of computing the same differ by their rounding
        few = map_tensors(few, lambda tensor: tensor.float() if tensor.dtype in HALVES else tensor)
    absorbing = independent_copy(whole)
    absorb(absorbing, channels, gone)
    removal = removal_of_sets(channels, gone, whole)
    difference = apart_at_most(whole, removal.applied(absorbing), few)
    if not difference <= ROUNDING:
        raise InvalidModel(
            f"the outputs of the smaller {type(model).__name__} differ by {difference:.2g} of the largest one; the "
            "network is not linear where its operations say it is, so nothing was removed: please report this network"
        )
    absorbing = independent_copy(model)
    absorb(absorbing, channels, gone)
    small = removal.applied(absorbing)
    counts = [sum(parameter.numel() for parameter in net.parameters()) for net in (small, model)]
    return Shrunk(small, tuple(channels.sets[number] for number in gone), counts[0], counts[1], difference)
