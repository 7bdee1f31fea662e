"""The tensors of a compressed network in forms that other programs can read, by their names in the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qubo_compress.menu.low_rank.factored import FactoredLayer, factored
from qubo_compress.menu.storage.portable import Portable, ScaledCodes, holds, joined
from qubo_compress.network.groups import Member
from qubo_compress.network.private import CARRIED, independent_copy
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression


@dataclass(frozen=True, eq=False)
class Held:
    """One tensor of a network, in the network's order of axes.

    Attributes:
        value: in the network's dtype, on the CPU.
        portable: codes, float16 numbers or a product with these values; None for plain numbers.
        source: the network's tensor that it is, or is a factor of.
    """

    value: Tensor
    portable: Portable | None = None
    source: str = ""


@dataclass(frozen=True, eq=False)
class Exportable:
    """A network that computes as it is exported, and the tensors it computes with.

    Attributes:
        model: low-rank layers are replaced by their factors.
        held: name in that network -> tensor.
    """

    model: nn.Module
    held: Mapping[str, Held]


def exportable(small: nn.Module, compression: Compression, in_factors: bool = True) -> Exportable:
    """A copy of a compressed network on the CPU, with its tensors in portable forms.

    Args:
        small: the compressed network; unchanged.
        compression: what it carries.
        in_factors: whether low-rank layers run as several layers; otherwise they keep their whole weight.
    """
    made = independent_copy(small).cpu().eval()
    vars(made).pop(CARRIED, None)
    tensors = NetworkTensors(made)
    forms = _forms(compression)
    held = {name: Held(tensor.detach(), forms.get(name), name) for name, tensor in tensors.items()}
    if not in_factors:
        return Exportable(made, held)
    names = {id(module): name for name, module in made.named_modules()}
    layers = {names[id(owner)]: name for name in tensors for owner, place in tensors.owners(name) if place == "weight"}
    before = {id(tensor): name for name, tensor in tensors.items()}
    made, report = factored(made, compression.layout, compression.stored)
    for name in report.replaced:
        layer = made.get_submodule(name)
        assert isinstance(layer, FactoredLayer)  # noqa: S101 - that is what replaced means
        held |= _factors(layer, name, layers[name])
    # A layer in factors has its bias under another name.
    present = {name: before.get(id(tensor), name) for name, tensor in NetworkTensors(made).items()}
    return Exportable(made, {name: held[known] for name, known in present.items()})


def _forms(compression: Compression) -> dict[str, Portable]:
    """Name of every tensor that groups hold whole, in a portable form -> that form, in the network's order of axes."""
    pieces: dict[str, list[tuple[Member, Portable | None]]] = {}
    for group in compression.layout.groups:
        stored = compression.stored[group.name]
        if stored.unreliable:
            continue
        for number, (member, value) in enumerate(zip(group.members, stored.tensors(), strict=True)):
            form = stored.portable(number)
            # What other programs decode must be what we decode: a form that says otherwise is not used.
            agrees = form is not None and value.is_floating_point() and holds(form, value)
            pieces.setdefault(member.name, []).append((member, form if agrees else None))
    found = {name: _whole(parts) for name, parts in pieces.items()}
    return {name: form for name, form in found.items() if form is not None}


def _whole(parts: Sequence[tuple[Member, Portable | None]]) -> Portable | None:
    """The form of a tensor from those of its parts; None if a part has none or some rows are in no part."""
    first, form = parts[0]
    if len(parts) > 1 or first.rows is not None:
        ordered = sorted(parts, key=lambda part: part[0].rows or (0, 0))
        codes = [form for _, form in ordered if isinstance(form, ScaledCodes)]
        covered = sum(member.part_shape[0] for member, _ in parts) == first.shape[0]
        form = joined(codes) if covered and len(codes) == len(parts) else None
    return _in_network_order(form, first)


def _in_network_order(form: Portable | None, member: Member) -> Portable | None:
    if form is None or not member.inputs_first:
        return form
    if not isinstance(form, ScaledCodes):
        return None
    codes, blocks = member.in_network_order(form.codes), member.inputs_first
    if form.steps.numel() == 1:
        return ScaledCodes(codes, form.steps)
    steps = form.steps.reshape(blocks, -1)
    # Steps along two axes at once, inputs and outputs, have no form in other programs.
    return ScaledCodes(codes, steps[0], axis=1) if bool((steps == steps[0]).all()) else None


def _factors(layer: FactoredLayer, name: str, source: str) -> dict[str, Held]:
    """The weights of a layer in factors.

    The last factor has a step for each of its inputs, which few programs know, so the outputs of the stage before take
    these steps: the product stays the same.
    """
    weights: list[Tensor] = [cast(Tensor, stage.weight) for stage in layer.stages]
    forms = list(layer.portable)
    last, before = forms[-1], forms[-2]
    if last is not None and before is not None and weights[0].dtype == torch.float32:
        forms[-2] = ScaledCodes(before.codes, before.steps * last.steps)
        forms[-1] = ScaledCodes(last.codes, torch.ones(1))
    found = {}
    for number, (weight, form) in enumerate(zip(weights, forms, strict=True)):
        if form is not None:
            with torch.no_grad():
                weight.copy_(form.decoded())
        found[f"{name}.stages.{number}.weight" if name else f"stages.{number}.weight"] = Held(
            weight.detach(), form, source
        )
    return found
