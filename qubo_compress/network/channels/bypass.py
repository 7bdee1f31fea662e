"""Branches that leave a network whole: the layers inside compute nothing any more, the last one a constant.

A branch can leave where its result is added to something else, such as the inner channels of a residual block: what
remains of it is a constant per channel, and adding that is cheaper than any convolution.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidModel, WrongModel
from qubo_compress.network.channels.sets import Channels
from qubo_compress.network.constant_output import ConstantOutput, NoOutput
from qubo_compress.network.roles import TRANSPOSED
from qubo_compress.network.tensors import NetworkTensors

Axis = tuple[str, int]

CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@dataclass(frozen=True)
class BypassedModule:
    """A module of a branch that left whole.

    Attributes:
        module: its name.
        constant: whether it still adds a constant, as the last of its branch; else it computes nothing.
        before: name of the module in front of a normalisation, whose bias goes into the constant; empty if there is
            none.
    """

    module: str
    constant: bool
    before: str = ""


def bypassed(
    channels: Channels, gone: Collection[int], empty: Collection[Axis], model: nn.Module
) -> tuple[BypassedModule, ...]:
    """The modules of a network that have nothing left to make or to read.

    Args:
        channels: of the network.
        gone: positions of the sets that leave.
        empty: (tensor, axis) of which nothing is left.
        model: the network.

    Raises:
        InvalidModel: when such a tensor belongs to no layer of one input and one output.
    """
    tensors = NetworkTensors(model)
    reads = {
        (part.tensor, part.axis) for number in gone for part in channels.sets[number].slices if part.role == "reads"
    }
    behind = {r.use.tensor: r.statistics.rpartition(".")[0] for r in channels.readings if r.statistics is not None}
    silent = {_layer(name, tensors) for name, axis in empty if (name, axis) not in reads}
    found = {name: BypassedModule(name, constant=False) for name in silent}
    for name, axis in empty:
        layer = _layer(name, tensors)
        if (name, axis) not in reads or layer in silent:
            continue
        normalisation = behind.get(name)
        if normalisation is None:
            found[layer] = BypassedModule(layer, constant=True)
        else:
            found[layer] = BypassedModule(layer, constant=False)
            found[normalisation] = BypassedModule(normalisation, constant=True, before=layer)
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    return tuple(sorted(found.values(), key=lambda item: order[item.module]))


def _layer(name: str, tensors: NetworkTensors) -> str:
    """Name of the module that holds a tensor, and that nothing of is left."""
    owners = tensors.owners(name)
    layer = name.rpartition(".")[0]
    kinds = (*CONVOLUTIONS, nn.Linear, nn.modules.batchnorm._BatchNorm)
    if len(owners) > 1 or not layer or not isinstance(owners[0][0], kinds):
        raise InvalidModel(
            f"nothing of {name} would be left, and its {type(owners[0][0]).__name__} is no layer that can leave; keep "
            "one of its channels"
        )
    return layer


def refuse_other_modules(model: nn.Module, items: Sequence[BypassedModule]) -> None:
    """Raise :class:`WrongModel` where a network does not have these layers."""
    modules = dict(model.named_modules())
    for item in items:
        kinds = (*CONVOLUTIONS, nn.Linear, nn.modules.batchnorm._BatchNorm)
        for name in (item.module, *([item.before] if item.before else ())):
            if not name or not isinstance(modules.get(name), kinds):
                raise WrongModel(
                    f"{name or 'the network'} is to leave with its branch, and is no layer of this "
                    f"{type(model).__name__}; give the original network"
                )


def bypass(model: nn.Module, items: Sequence[BypassedModule]) -> None:
    """Replace the layers of a branch by what is left of it; changes the model, whose other tensors are cut."""
    modules = dict(model.named_modules())
    new: dict[int, nn.Module] = {}
    for item in items:
        module = modules[item.module]
        if item.constant:
            bias = _constant(module, modules.get(item.before) if item.before else None)
            new[id(module)] = ConstantOutput(nn.Parameter(bias), -1 if isinstance(module, nn.Linear) else 1)
        else:
            new[id(module)] = NoOutput()
    for parent in modules.values():
        for name, child in parent.named_children():
            if id(child) in new:
                setattr(parent, name, new[id(child)].train(child.training))


def _constant(module: Any, before: nn.Module | None) -> Tensor:
    """(C,) what a layer computes of zeros."""
    with torch.no_grad():
        if before is None:
            return _bias(module)
        mean, scale = module.running_mean, torch.rsqrt(module.running_var + module.eps)
        found: Tensor = (_bias(before, like=mean) - mean) * scale
        found = found if module.weight is None else found * module.weight
        return found if module.bias is None else found + module.bias


def _bias(module: Any, like: Tensor | None = None) -> Tensor:
    """(C,) the bias of a layer; zeros where it has none."""
    if module.bias is not None:
        found: Tensor = module.bias.detach().clone()
        return found
    if like is not None:
        return torch.zeros_like(like)
    weight: Tensor = module.weight
    return weight.new_zeros(weight.shape[1] if isinstance(module, TRANSPOSED) else weight.shape[0])


def constants(items: Sequence[BypassedModule]) -> frozenset[str]:
    """Names of the tensors that hold the constants."""
    return frozenset(f"{item.module}.bias" for item in items if item.constant)
