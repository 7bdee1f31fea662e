"""Single layers as small networks: a layer with its bias, and a ReLU behind it, which runtimes fuse into it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.activations import RangedGroup
from qubo_compress.menu.coding.coded import Coded
from qubo_compress.menu.keep import Keep
from qubo_compress.menu.operator import Operator, choice_name
from qubo_compress.menu.quantize import Quantize
from qubo_compress.menu.storage.portable import WIDTHS
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.discovery import discover
from qubo_compress.network.groups import Group, Layout
from qubo_compress.network.inputs import Inputs
from qubo_compress.network.replay import run_model
from qubo_compress.network.roundable import LAYERS
from qubo_compress.network.rounding import InputRange
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression, Plan, filled


class Alone(nn.Module):
    """A layer and a ReLU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's outputs, negative ones as zeros."""
        return torch.relu(self.layer(inputs))


@dataclass(frozen=True, eq=False)
class TimedLayer:
    """A group that is the weight of one layer.

    Attributes:
        group: of the network.
        module: that owns the weight.
        inputs: of each of its calls in one run.
    """

    group: Group
    module: nn.Module
    inputs: tuple[Tensor, ...]

    def range(self, bits: int) -> InputRange:
        """A range that covers the inputs: only its bits matter for the time."""
        low = min(0.0, *(float(one.min()) for one in self.inputs))
        high = max(0.0, *(float(one.max()) for one in self.inputs))
        levels = (1 << bits) - 1
        scale = max(high - low, 1e-6) / levels
        return InputRange(scale, max(0, min(levels, round(-low / scale))), bits)

    def key(self, number: int, form: str) -> tuple[str, tuple[int, ...], str]:
        """What the time of one of its calls in a form depends on."""
        return repr(self.module), tuple(self.inputs[number].shape), form


def timed_layers(model: nn.Module, layout: Layout, example: Inputs) -> list[TimedLayer]:
    """The groups that are the weight of one convolution or linear layer which the network calls."""
    tensors = NetworkTensors(model)
    owned: list[tuple[Group, nn.Module]] = []
    for group in layout.groups:
        owners = {id(m): m for member in group.members for m, place in tensors.owners(member.name) if place == "weight"}
        single = len(group.members) == 1 and group.members[0].rows is None and len(owners) == 1
        if group.kind == "weight" and single and type(next(iter(owners.values()))) in LAYERS:
            owned.append((group, next(iter(owners.values()))))
    seen: dict[int, list[Tensor]] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            seen.setdefault(id(module), []).append(args[0].detach())

    handles = [module.register_forward_pre_hook(note) for _, module in owned]
    try:
        with torch.no_grad():
            run_model(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return [TimedLayer(group, module, tuple(seen[id(module)])) for group, module in owned if id(module) in seen]


def form_of(operator: Operator) -> str:
    """What a choice becomes in a file: choices of one form take the same time.

    Example:
        >>> from qubo_compress.menu.operator import parse
        >>> form_of(parse("quantize(bits=3)")), form_of(parse("quantize(bits=6,activations=8)"))
        ('quantize(bits=4)', 'quantize(bits=8,activations=8)')
    """
    operator = operator.inner if isinstance(operator, Coded) else operator
    if (operator.whole_numbers or operator.activation_bits) and operator.code_bits:
        # Integer kernels read codes of 8 bits; packed weights are of 2, 4, 8 or 16.
        width = 8 if operator.activation_bits else next(bits for bits in WIDTHS if bits >= operator.code_bits)
        rounded = f",activations={operator.activation_bits}" if operator.activation_bits else ""
        return f"quantize(bits={width}{rounded})"
    if operator.needs and operator.code_bits is None:
        return "keep"
    return choice_name(operator)


def stored_in_form(layer: TimedLayer, operator: Operator, group: Group, parts: Sequence[Tensor]) -> Stored:
    """A layer's weight in the form of a choice; values do not matter for the time.

    Raises:
        InvalidMenu: for a choice that looks at data and is neither whole numbers nor kept numbers.
    """
    if operator.activation_bits:
        stored = Quantize(8).encode(group, parts)
        return RangedGroup(stored, (layer.range(operator.activation_bits),) * len(group.members))
    if operator.needs:
        raise InvalidMenu(f"{choice_name(operator)} cannot be timed without calibration data; take it off the menu")
    return operator.encode(group, parts)


def compressed(
    net: nn.Module, layout: Layout, chosen: Mapping[str, tuple[str, Stored]]
) -> tuple[nn.Module, Compression]:
    """A network with some groups stored, all others kept.

    Args:
        net: unchanged.
        layout: its groups.
        chosen: group name -> choice name, and the stored form.
    """
    tensors = NetworkTensors(net)
    kept = Keep()
    stored = {
        group.name: chosen[group.name][1] if group.name in chosen else kept.encode(group, tensors.parts(group))
        for group in layout.groups
    }
    choices = {name: chosen[name][0] if name in chosen else "keep" for name in stored}
    plan = Plan(
        choices, sum(one.nbytes for one in stored.values()), layout.original_bytes, layout.parameters, 0.0,
        tuple(dict.fromkeys(choices.values())), layout.rule, tensors.signature(),
    )  # fmt: skip
    compression = Compression(plan, layout, stored)
    return filled(net, compression), compression


def alone(layer: TimedLayer, operator: Operator) -> tuple[nn.Module, Compression]:
    """A layer as a network of its own, in the form of a choice."""
    net = Alone(copy.deepcopy(layer.module)).eval()
    layout = discover(net)
    group = next(group for group in layout.groups if group.name == "layer.weight")
    stored = stored_in_form(layer, operator, group, NetworkTensors(net).parts(group))
    return compressed(net, layout, {group.name: (choice_name(operator), stored)})
