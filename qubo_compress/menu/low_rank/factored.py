"""Runs a compressed network in its factors, so that low-rank choices save multiplications as well as bytes.

A layer whose choice is a product of factors is replaced by a module that applies one factor after the other:

    svd           k x k convolution, 1 x 1              Linear, Linear
    tucker        1 x 1, k x k, 1 x 1
    cp            1 x 1, k x 1 and 1 x k depthwise, 1 x 1
    tensor_train  1 x 1, k x 1, 1 x k, 1 x 1

The stage that convolves an axis takes its stride, padding and dilation. All stages are linear and
translation-invariant, and padding commutes with maps of kernel 1 without bias, so the outputs equal those of the layer
with the assembled weight, up to rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from qubo_compress.menu.low_rank.stages import Stage
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Layout, Member
from qubo_compress.network.tensors import NetworkTensors

logger = logging.getLogger(__name__)

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules that can be replaced, but not their subclasses, which may compute something else."""

_SETTINGS = (
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
    "groups", "padding_mode",
)  # fmt: skip


class FactoredLayer(nn.Module):
    """A linear layer or convolution that applies its factors one after the other.

    It keeps the plain settings of the layer (``out_channels``, ``stride``, ...) and provides ``weight`` and ``bias`` to
    code that reads them; the weight is assembled on each access.

    Args:
        layer: the layer to replace; its bias becomes that of the last stage.
        stages: the maps.

    Example:
        >>> from qubo_compress.menu.low_rank.stages import Step
        >>> layer = nn.Linear(4, 3)
        >>> stages = (Stage(torch.ones(1, 4), Step()), Stage(torch.ones(3, 1), Step()))
        >>> small = FactoredLayer(layer, stages)
        >>> bool((small(torch.ones(2, 4)) == 4 + layer.bias).all()), small.weight.shape
        (True, torch.Size([3, 4]))
    """

    def __init__(self, layer: nn.Module, stages: Sequence[Stage]) -> None:
        super().__init__()
        for name in _SETTINGS:
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))
        self.steps = tuple(stage.step for stage in stages)
        self.portable = tuple(stage.portable for stage in stages)
        made = [_module(layer, stage) for stage in stages]
        if layer.bias is not None:
            made[-1].bias = layer.bias
        self.stages = nn.Sequential(*made)
        self.train(layer.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, outputs, *sizes) of (N, inputs, *sizes), or (..., outputs) of (..., inputs)."""
        return cast(Tensor, self.stages(inputs))

    @property
    def weight(self) -> Tensor:
        """The product of the factors, in the shape that the layer's weight had."""
        found = self._stage_weight(0)
        for number in range(1, len(self.steps)):
            found = _composed(found, self._stage_weight(number), self.steps[number].depthwise)
        return found

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer, which is that of the last stage."""
        return cast("Tensor | None", self.stages[-1].bias)

    def _stage_weight(self, number: int) -> Tensor:
        return cast(Tensor, self.stages[number].weight)


def _composed(first: Tensor, second: Tensor, depthwise: bool) -> Tensor:
    """Weight of the composition of two maps with kernels along different axes: (outputs, inputs, *kernel)."""
    if depthwise:
        return first * second
    # Along any axis one of the two has length 1, so shifted kernels never overlap: a product is enough.
    kernel = "xyz"[: first.ndim - 2]
    return torch.einsum(f"mi{kernel},om{kernel}->oi{kernel}", first, second)


def _module(layer: Any, stage: Stage) -> Any:
    weight = stage.weight
    outputs, inputs = weight.shape[:2]
    if isinstance(layer, nn.Linear):
        # Created without memory: drawing initial weights would advance the caller's random numbers.
        made: Any = nn.Linear(inputs, outputs, bias=False, device="meta")
    else:
        groups = outputs if stage.step.depthwise else 1
        owned = [axis in stage.step.axes for axis in range(weight.ndim - 2)]

        def along(setting: tuple[int, ...], elsewhere: int) -> tuple[int, ...]:
            return tuple(value if own else elsewhere for value, own in zip(setting, owned, strict=True))

        padding = layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0)
        made = type(layer)(
            inputs * groups, outputs, tuple(weight.shape[2:]), stride=along(layer.stride, 1), padding=padding,
            dilation=along(layer.dilation, 1), groups=groups, bias=False, padding_mode=layer.padding_mode,
            device="meta",
        )  # fmt: skip
    largest = min(torch.finfo(layer.weight.dtype).max, torch.finfo(torch.float32).max)
    value = weight.clamp(-largest, largest).to(layer.weight.device, layer.weight.dtype)
    made.weight = nn.Parameter(value, requires_grad=layer.weight.requires_grad)
    return made.train(layer.training)


@dataclass(frozen=True)
class FactoredReport:
    """The result of :func:`factored`.

    Attributes:
        replaced: names of the layers that compute in factors.
        left: names of layers whose choice is factored, with the reason why they compute with the whole weight.
    """

    replaced: tuple[str, ...]
    left: Mapping[str, str]


def left_dense(module: nn.Module) -> str | None:
    """Why a module cannot compute in factors, or None if it can."""
    if type(module) not in LAYERS:
        return f"it is a {type(module).__name__}, not a plain Linear or convolution"
    if int(getattr(module, "groups", 1)) != 1:
        return "it is a grouped convolution, whose factors would act on all groups"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks, which would be lost"
    return None


def factored(model: nn.Module, layout: Layout, stored: Mapping[str, Stored]) -> tuple[nn.Module, FactoredReport]:
    """Replace layers by their factors, in place.

    Args:
        model: already holds the stored values; if it is itself such a layer, its replacement is returned.
        layout: its groups.
        stored: group name -> stored form.

    Returns:
        The network, and what was replaced. Other layers are unchanged, with a line in the log.
    """
    names = {id(module): name for name, module in model.named_modules()}
    fresh: dict[int, nn.Module] = {}
    replaced: list[str] = []
    left: dict[str, str] = {}
    for owner, member, stages in _staged_owners(model, layout, stored):
        name, reason = names[id(owner)], left_dense(owner)
        if reason is not None:
            left[name] = reason
            logger.info("%s (%s) is left dense: %s", name or "the network", member.name, reason)
        else:
            fresh[id(owner)] = FactoredLayer(owner, stages)
            replaced.append(name)
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if id(child) in fresh:
                module._modules[name] = fresh[id(child)]
    return fresh.get(id(model), model), FactoredReport(tuple(replaced), left)


def _staged_owners(
    model: nn.Module, layout: Layout, stored: Mapping[str, Stored]
) -> list[tuple[nn.Module, Member, tuple[Stage, ...]]]:
    tensors = NetworkTensors(model)
    found = []
    for group in layout.groups:
        for number, member in enumerate(group.members):
            stages = stored[group.name].stages(number)
            if not stages:
                continue
            owners = {id(module): module for module, _ in tensors.owners(member.name)}
            found += [(owner, member, stages) for owner in owners.values()]
    return found
