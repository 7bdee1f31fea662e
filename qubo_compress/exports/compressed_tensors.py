"""A compressed network as the package compressed-tensors stores it: packed weights and a ``config.json`` in a folder.

Its format ``pack-quantized`` holds whole numbers of 1 to 8 bits with a step per output, for Linear and Embedding.
The package ignores other layers without a word, so a network in which one of those is compressed is refused.

A network of Hugging Face has a configuration, which the folder then holds too, for ``from_pretrained``. Transformers
reads ``weight`` of an embedding as soon as it is built, so embeddings of such a network are written unpacked.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qubo_compress.errors import ExportRefused, StorageError
from qubo_compress.exports.difference import Difference, allowed, answers, compared
from qubo_compress.exports.exported import NOWHERE, Exported, ExportedTensor, choices_by_tensor
from qubo_compress.exports.packed_modules import file_of
from qubo_compress.exports.weights import Exportable, exportable
from qubo_compress.layers import pack_bits, unpack_bits
from qubo_compress.menu.storage.portable import ScaledCodes
from qubo_compress.network.inputs import Inputs
from qubo_compress.network.rounding import range_of
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression

FORMAT = "pack-quantized"
MOST_BITS = 8
WORD = 32
"""Rows of codes end at a whole number of words of this many bits."""

LAYERS = (nn.Linear, nn.Embedding)
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_compressed_tensors(
    small: nn.Module, compression: Compression, path: Path, batches: Sequence[Inputs]
) -> Exported:
    """Write a folder with ``model.safetensors`` and ``config.json``.

    Args:
        small: the network.
        compression: what it carries.
        path: of the folder, which must not exist or be empty.
        batches: inputs to check it with.

    Raises:
        ExportRefused: when a layer that the format does not know is compressed; the message names it.
        StorageError: when the folder is there already or cannot be written.
    """
    _refuse_taken(path)
    network = exportable(small, compression, in_factors=False)
    packed = _packed(network)
    tensors, rows = _tensors(network, packed, choices_by_tensor(compression))
    difference = _checked(network, packed, tensors, batches)
    data = file_of({"format": "pt"}, tensors)
    config = json.dumps(_own_config(small) | {"quantization_config": _config(packed)}, indent=1).encode()
    _write_folder(path, {WEIGHTS: data, CONFIG: config})
    size = sum(tensor.nbytes for tensor in tensors.values())
    total = len(data) + len(config)
    return Exported(
        path=path, format="compressed-tensors", nbytes=total, graph_bytes=total - size,
        float_bytes=total - size + sum(held.value.nbytes for held in network.held.values()),
        artifact_bytes=compression.plan.bytes, original_bytes=compression.plan.original_bytes,
        largest_difference=difference.largest, default_difference=difference.largest,
        agreement=difference.agreement, examples=difference.examples,
        tensors=rows,
    )  # fmt: skip


def _packed(network: Exportable) -> dict[str, ScaledCodes]:
    """Name of every layer whose weight is packed -> its codes.

    Raises:
        ExportRefused: for a compressed weight of another layer, and for layers with rounded inputs.
    """
    tensors, found = NetworkTensors(network.model), {}
    names = {id(module): name for name, module in network.model.named_modules()}
    rounded = [name for name, module in network.model.named_modules() if range_of(module) is not None]
    if rounded:
        raise ExportRefused(
            f"the inputs of {rounded[0]} are rounded, which this format cannot say; use format='torch'. "
            "Nothing was written"
        )
    for name, held in network.held.items():
        if not isinstance(held.portable, ScaledCodes) or held.value.ndim < 2:
            continue
        for module, attribute in tensors.owners(name):
            if type(module) not in LAYERS or attribute != "weight":
                raise ExportRefused(
                    f"{name} belongs to a {type(module).__name__}, and compressed-tensors packs Linear and Embedding "
                    "layers only; use format='onnx' or 'torch', or keep this layer. Nothing was written"
                )
            form = held.portable.by_row()
            if _own_config(network.model) and any(isinstance(one, nn.Embedding) for one, _ in tensors.owners(name)):
                continue
            if form is not None and signed_bits(form) <= MOST_BITS:
                found[names[id(module)]] = form
    return found


def _own_config(model: nn.Module) -> dict[str, Any]:
    """The configuration of a network of Hugging Face, with the class that it is for; {} of any other network."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if not callable(to_dict):
        return {}
    found = json.loads(json.dumps(to_dict(), default=str))
    return {**found, "architectures": [type(model).__name__]} if isinstance(found, dict) else {}


def signed_bits(form: ScaledCodes) -> int:
    """Bits of the narrowest two's complement that holds the codes.

    Example:
        >>> signed_bits(ScaledCodes(torch.tensor([[-4, 3]]), torch.ones(1)))
        3
    """
    low, high = int(form.codes.min()), int(form.codes.max())
    return max((-low - 1).bit_length() if low < 0 else 0, max(high, 0).bit_length()) + 1


def _tensors(
    network: Exportable, packed: Mapping[str, ScaledCodes], choices: Mapping[str, str]
) -> tuple[dict[str, Tensor], tuple[ExportedTensor, ...]]:
    """The tensors of the file by name, and a row of the table for each of the network's."""
    found: dict[str, Tensor] = {}
    rows = []
    for name, first in NetworkTensors(network.model).aliases.items():
        held = network.held[first]
        layer = name.removesuffix("weight").removesuffix(".") if name.rpartition(".")[2] == "weight" else name
        if layer in packed:
            form, before = packed[layer], f"{layer}." if layer else ""
            own = {
                f"{before}weight_packed": in_words(form, signed_bits(form)),
                f"{before}weight_scale": form.steps.reshape(-1, 1).to(held.value.dtype),
                f"{before}weight_shape": torch.tensor(form.codes.shape, dtype=torch.int64),
            }
            kind = f"{signed_bits(form)} bits"
        else:
            own, kind = {name: held.value}, str(held.value.dtype).removeprefix("torch.")
        found |= own
        size = sum(tensor.nbytes for tensor in own.values())
        runs = "compressed-tensors" if layer in packed else "as it is"
        rows.append(ExportedTensor(name, choices.get(first, "not in a group"), kind, size, runs, NOWHERE))
    return found, tuple(rows)


def in_words(form: ScaledCodes, bits: int) -> Tensor:
    """(rows, words) int32 of codes with an offset, lowest bits first.

    Example:
        >>> in_words(ScaledCodes(torch.tensor([[-8, -7]]), torch.ones(1)), 4).tolist()
        [[16]]
    """
    rows, columns = form.codes.shape
    words = -(-columns * bits // WORD)
    padded = torch.zeros(rows, words * WORD // bits + 1, dtype=torch.int32)
    padded[:, :columns] = form.codes.int() + (1 << (bits - 1))
    lines = [pack_bits(line, bits)[: words * WORD // 8] for line in padded]
    joined = torch.stack(lines).numpy()
    return torch.from_numpy(np.ascontiguousarray(joined).view("<i4").astype(np.int32))


def out_of_words(packed: Tensor, columns: int, bits: int) -> Tensor:
    """(rows, columns) codes: inverse of :func:`in_words`."""
    data = torch.from_numpy(packed.numpy().astype("<i4").view(np.uint8).copy())
    return torch.stack([unpack_bits(line, columns, bits) for line in data]) - (1 << (bits - 1))


def _config(packed: Mapping[str, ScaledCodes]) -> dict[str, Any]:
    """The ``quantization_config`` of a Hugging Face configuration: one group of layers for every number of bits."""
    by_bits: dict[int, list[str]] = {}
    for layer, form in packed.items():
        by_bits.setdefault(signed_bits(form), []).append(f"re:^{re.escape(layer)}$")
    groups = {
        f"group_{number}": {
            "targets": targets,
            "weights": {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": None,
            "output_activations": None,
            "format": FORMAT,
        }
        for number, (bits, targets) in enumerate(sorted(by_bits.items()))
    }
    return {
        "quant_method": "compressed-tensors", "format": FORMAT, "quantization_status": "compressed",
        "config_groups": groups, "ignore": [], "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip


def _checked(
    network: Exportable, packed: Mapping[str, ScaledCodes], tensors: Mapping[str, Tensor], batches: Sequence[Inputs]
) -> Difference:
    """The difference of the network with what the file's tensors say from the one that was exported."""
    wanted = answers(network.model, batches)
    held = NetworkTensors(network.model)
    for layer, form in packed.items():
        before = f"{layer}." if layer else ""
        columns, bits = int(tensors[f"{before}weight_shape"][1]), signed_bits(form)
        codes = out_of_words(tensors[f"{before}weight_packed"], columns, bits)
        weight = codes.float() * tensors[f"{before}weight_scale"].float()
        held.fill({held.aliases[f"{before}weight"]: weight})
    found = compared(lambda one: [value for part in answers(network.model, [one]) for value in part], batches, wanted)
    if not found.largest <= allowed(wanted):
        raise ExportRefused(
            f"the packed weights give outputs that differ by {found.largest:.2g} of the largest from the network's. "
            "Nothing was written"
        )
    return found


def _refuse_taken(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StorageError(f"{path} is there already; name a folder that is not, or is empty")


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder under another name and rename it, so that it is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            for name, data in files.items():
                (made / name).write_bytes(data)
            made.chmod(0o755)
            made.replace(path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as cause:
        raise StorageError(
            f"{path} could not be written ({cause.strerror or cause}); free some space or choose another folder"
        ) from cause
