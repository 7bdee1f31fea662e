"""What a stored layer puts out, from the moments of its inputs, and the normalisation behind it, matched to that.

With weights W and inputs x in the original, Q and x' in the compressed network, the means of W x and Q x', the variance
of Q x' and the covariance of both follow from the moments that :mod:`qubo_compress.recovery.layer_inputs` gathers, so
nothing has to run again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_compress.menu.fold import attribute
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Member
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression
from qubo_compress.recovery.compensated_layers import CompensatedLayer
from qubo_compress.recovery.layer_inputs import LayerInputs
from qubo_compress.recovery.statistics import SMALLEST_VARIANCE, StatisticsTarget, folded_values


def matched_behind(
    layer: CompensatedLayer,
    inputs: LayerInputs,
    tensors: NetworkTensors,
    compression: Compression,
    original: NetworkTensors,
) -> dict[str, Stored]:
    """The normalisation behind a layer, or its bias, matched by least squares; written to the network.

    Args:
        layer: as it is stored now.
        inputs: of it in both networks.
        tensors: of the compressed network, changed.
        compression: carried by it.
        original: tensors of the original network.
    """
    before, after = (held[layer.name].detach().cpu() for held in (original, tensors))
    member = layer.members[0]
    whole = Member(member.name, member.shape, member.dtype, None, member.inputs_first)
    told = _outputs(whole.part(before).flatten(1).double(), whole.part(after).flatten(1).double(), inputs)
    if layer.normalisation is not None:
        target, values = layer.normalisation, _normalisation(layer, told, tensors, original)
    elif layer.bias is not None:
        target, values = layer.bias, _bias(layer.bias, told, tensors, original)
    else:
        return {}
    stored = compression.stored[target.group.name].project(values, refit=True)
    tensors.fill(tensors.assembled(zip(target.group.members, stored.tensors(), strict=True)))
    return {target.group.name: stored}


@dataclass(frozen=True)
class _Outputs:
    """(rows,) float64 means and moments of a layer's outputs, without its bias.

    Attributes:
        goal: mean in the original.
        mean: in the compressed network.
        variance: in the compressed network.
        covariance: between both.
    """

    goal: Tensor
    mean: Tensor
    variance: Tensor
    covariance: Tensor


def _outputs(before: Tensor, after: Tensor, inputs: LayerInputs) -> _Outputs:
    each = len(before) // len(inputs.own)
    columns: list[tuple[Tensor, ...]] = []
    for number, own in enumerate(inputs.own):
        w, q = before[number * each : (number + 1) * each], after[number * each : (number + 1) * each]
        goal, mean = w @ inputs.original_mean[number], q @ inputs.own_mean[number]
        variance = ((q @ own) * q).sum(1) - mean.square()
        covariance = ((w @ inputs.between[number]) * q).sum(1) - goal * mean
        columns.append((goal, mean, variance, covariance))
    return _Outputs(*(torch.cat(every) for every in zip(*columns, strict=True)))


def _normalisation(
    layer: CompensatedLayer, told: _Outputs, tensors: NetworkTensors, original: NetworkTensors
) -> list[Tensor]:
    """A folded normalisation's tensors: its outputs are a (q x' + bias') + b, near those of the original."""
    target = layer.normalisation
    assert target is not None  # noqa: S101 - the caller asked
    named = {attribute(m.name): original[m.name].detach().cpu().double() for m in target.group.members}
    scale = named["weight"] / torch.sqrt(named["running_var"] + (target.group.epsilon or 0.0))
    shift = named["bias"] - scale * named["running_mean"]
    old, new = (_own_bias(layer, held) for held in (original, tensors))
    sound = (told.variance > SMALLEST_VARIANCE) & (told.covariance > 0)
    slope = torch.where(sound, told.covariance / told.variance.clamp(min=SMALLEST_VARIANCE), torch.ones(()).double())
    moved = scale * slope
    return folded_values(target.group, moved, scale * (told.goal + old) + shift - moved * (told.mean + new))


def _own_bias(layer: CompensatedLayer, held: NetworkTensors) -> Tensor:
    name = f"{layer.module}.bias".lstrip(".")
    return held[name].detach().cpu().double() if name in held else torch.zeros((), dtype=torch.float64)


def _bias(target: StatisticsTarget, told: _Outputs, tensors: NetworkTensors, original: NetworkTensors) -> list[Tensor]:
    values = []
    for member in target.group.members:
        value = tensors[member.name].detach().cpu()
        if attribute(member.name) == "bias" and value.numel() == len(told.mean):
            found = original[member.name].detach().cpu().double() + (told.goal - told.mean).reshape(value.shape)
            value = found.to(value.dtype)
        values.append(value)
    return values
