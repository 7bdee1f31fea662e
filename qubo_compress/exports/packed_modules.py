"""A compressed network as the state dict of packed PyTorch modules, which ``qubo_compress.layers`` alone runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.tensors import tensors_file
from qubo_compress.errors import ExportRefused
from qubo_compress.exports.difference import Difference, allowed, answers, compared
from qubo_compress.exports.exported import NOWHERE, Exported, ExportedTensor, choices_by_tensor
from qubo_compress.exports.weights import Exportable, Held, exportable
from qubo_compress.layers import ARGUMENTS, KINDS, STAGES, described, load, pack_bits
from qubo_compress.menu.low_rank.factored import FactoredLayer
from qubo_compress.menu.storage.portable import ScaledCodes
from qubo_compress.network.inputs import Inputs
from qubo_compress.network.private import CARRIED, independent_copy
from qubo_compress.network.rounding import place_range, range_of
from qubo_compress.network.tensor_bytes import raw_bytes
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression

NAMES = {dtype: name for name, dtype in KINDS.items()}


def write_packed_modules(small: nn.Module, compression: Compression, path: Path, batches: Sequence[Inputs]) -> Exported:
    """Write the state dict of packed modules to one safetensors file.

    Args:
        small: the network.
        compression: what it carries.
        path: of the file.
        batches: inputs to check it with.

    Raises:
        ExportRefused: when the packed modules compute something else, or a tensor has a type without a name.
        StorageError: when the file cannot be written.
    """
    network = exportable(small, compression)
    _refuse_extra_state(network.model)
    packed = _packed(network)
    layers = {name: module for name, module in network.model.named_modules() if isinstance(module, FactoredLayer)}
    tensors: dict[str, Tensor] = {}
    for name, held in network.held.items():
        renamed = _renamed(name, layers)
        if name in packed:
            tensors[f"{renamed}_packed.codes"] = pack_bits(
                packed[name].codes.int() - _lowest(packed[name]), _bits(packed[name])
            )
            tensors[f"{renamed}_packed.steps"] = halved(packed[name].steps)
        else:
            tensors[renamed] = halved(held.value)
    settings = {_renamed(name, layers): _settings(form) for name, form in packed.items()}
    factors = {name: [_stage(stage) for stage in layer.stages] for name, layer in layers.items()}
    data = file_of(described(settings, factors, _rounded(network.model)), tensors)
    difference = _checked(data, small, network.model, batches)
    write_atomically(path, lambda handle: handle.write(data))
    size = sum(tensor.nbytes for tensor in tensors.values())
    choices = choices_by_tensor(compression)
    rows = tuple(
        ExportedTensor(
            held.source, choices.get(held.source, "not in a group"), form_of(held, packed.get(name)),
            sum(value.nbytes for key, value in tensors.items() if _belongs(key, _renamed(name, layers))),
            "unpacked at every run" if name in packed else "as it is", NOWHERE,
        )
        for name, held in network.held.items()
    )  # fmt: skip
    return Exported(
        path=path, format="torch", nbytes=len(data), graph_bytes=len(data) - size,
        float_bytes=len(data) - size + sum(held.value.nbytes for held in network.held.values()),
        artifact_bytes=compression.plan.bytes, original_bytes=compression.plan.original_bytes,
        largest_difference=difference.largest, default_difference=difference.largest,
        agreement=difference.agreement, examples=difference.examples,
        tensors=rows,
    )  # fmt: skip


def _rounded(model: nn.Module) -> dict[str, list[float | int]]:
    """Name of every layer whose inputs are rounded -> scale, zero point, bits."""
    found = {name: range_of(module) for name, module in model.named_modules()}
    return {name: [one.scale, one.zero_point, one.bits] for name, one in found.items() if one is not None}


def _refuse_extra_state(model: nn.Module) -> None:
    extra = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    unknown = [name for name, value in NetworkTensors(model).items() if value.dtype not in NAMES]
    if extra:
        raise ExportRefused(
            f"the state dict holds {extra[0]}, which is no tensor, and files of packed modules hold tensors only. "
            "Nothing was written"
        )
    if unknown:
        raise ExportRefused(f"{unknown[0]} has a type that safetensors files do not know. Nothing was written")


def _packed(network: Exportable) -> dict[str, ScaledCodes]:
    """The parameters that are packed."""
    tensors = NetworkTensors(network.model)
    found = {}
    for name, held in network.held.items():
        # Recurrent layers keep their weights in a list as well, which would not be unpacked.
        fits = tensors.is_parameter(name) and not any(isinstance(m, nn.RNNBase) for m, _ in tensors.owners(name))
        if isinstance(held.portable, ScaledCodes) and fits and held.value.ndim > 1:
            found[name] = held.portable
    return found


def _lowest(form: ScaledCodes) -> int:
    return int(form.codes.min()) if form.codes.numel() else 0


def _bits(form: ScaledCodes) -> int:
    """Bits of the narrowest field for the codes that there are, whether other programs know it or not."""
    return max(1, (int(form.codes.max()) - _lowest(form)).bit_length()) if form.codes.numel() else 1


def _settings(form: ScaledCodes) -> dict[str, int]:
    return {"bits": _bits(form), "lowest": _lowest(form), "axis": form.axis if form.steps.numel() > 1 else 0}


def form_of(held: Held, packed: ScaledCodes | None) -> str:
    """How a tensor is held, for the table."""
    if packed is not None:
        return f"{_bits(packed)} bits"
    return str(halved(held.value).dtype).removeprefix("torch.")


def halved(values: Tensor) -> Tensor:
    """The numbers in float16 if that changes none of them."""
    wide = values.dtype in (torch.float32, torch.float64)
    half = values.to(torch.float16) if wide else values
    return half if wide and bool((half.to(values.dtype) == values).all()) else values


def file_of(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file; wide numbers come first, so that all are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    parts = {name: (NAMES[value.dtype], tuple(value.shape), raw_bytes(value)) for name, value in ordered}
    return tensors_file(dict(metadata), parts)


def _renamed(name: str, layers: Mapping[str, Any]) -> str:
    """The name of a tensor in a network whose low-rank layers are plain sequences of their stages."""
    for layer in layers:
        before = f"{layer}.stages." if layer else "stages."
        if name.startswith(before):
            return (f"{layer}." if layer else "") + name.removeprefix(before)
    return name


def _belongs(key: str, name: str) -> bool:
    return key in (name, f"{name}_packed.codes", f"{name}_packed.steps")


def _stage(stage: nn.Module) -> dict[str, Any]:
    """What a stage is made with."""
    found = {name: getattr(stage, name) for name in sorted(ARGUMENTS - {"bias"}) if hasattr(stage, name)}
    kind = next(name for name, known in STAGES.items() if type(stage) is known)
    return {"kind": kind, "arguments": {**found, "bias": stage.bias is not None}}


def _checked(data: bytes, small: nn.Module, model: nn.Module, batches: Sequence[Inputs]) -> Difference:
    """The difference of the network that a file gives from the one that was exported.

    Raises:
        ExportRefused: when it is more than rounding explains.
    """
    wanted = answers(model, batches)
    blank = independent_copy(small).cpu()
    vars(blank).pop(CARRIED, None)
    for module in blank.modules():
        place_range(module, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        path.write_bytes(data)
        found = load(path, blank)
    difference = compared(lambda inputs: [one for batch in answers(found, [inputs]) for one in batch], batches, wanted)
    if not difference.largest <= allowed(wanted):
        raise ExportRefused(
            f"packed modules give outputs that differ by {difference.largest:.2g} of the largest output from the "
            f"network's, where {allowed(wanted):g} is allowed: its forward may depend on more than its inputs and "
            "weights, or keep its weights elsewhere too. Nothing was written"
        )
    return difference
