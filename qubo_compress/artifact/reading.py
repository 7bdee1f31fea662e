"""Reading a compressed network back, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qubo_compress._internal.reader import printable, refused_as
from qubo_compress._internal.tensors import read_tensors
from qubo_compress.errors import CorruptArtifact, InvalidMenu, InvalidModel, WrongModel
from qubo_compress.menu.operator import parse
from qubo_compress.menu.storage.file_format import FORMAT, TENSOR, file_digest, unpack_names, without_extra
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.channels.removal import removals_of
from qubo_compress.network.channels.removal_file import removals_from
from qubo_compress.network.discovery import discover_stored
from qubo_compress.network.extra_state import read_stored, restore
from qubo_compress.network.groups import EXTRA, Layout
from qubo_compress.network.memory import with_memory
from qubo_compress.network.older_groups import newer_names, older_layout
from qubo_compress.network.signature import architecture_signature
from qubo_compress.network.stored_groups import refuse_unreadable_rule
from qubo_compress.network.tensor_bytes import from_raw_bytes
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan import Compression, Plan, filled

WHAT = "a compressed network"

UNREADABLE = "a compressed network that can be decoded"


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """A new module with the architecture of ``model`` and the weights of the file.

    Args:
        path: written by :func:`qubo_compress.save`.
        model: gives the architecture; its own weights do not matter and stay as they are. It may be on the ``meta``
            device: the new module then is on the CPU.

    Raises:
        CorruptArtifact: when the file is truncated, altered or not an artifact of this library.
        WrongModel: when the file belongs to another architecture, or the network has tensors without data that the
            file does not hold.
        StorageError: when the file cannot be read.
        FileNotFoundError: when there is no file.
    """
    described, payload, size = contents(path)
    model = _smaller(path, with_memory(unwrapped(model)), described)
    layout = _layout_of(path, model, described)
    with refused_as(path, UNREADABLE, "it was written by another version or altered"):
        names = unpack_names(described["menu"])
        stored, kept, extra = _parse(layout, names, payload, model)
        choices = {group.name: names[number] for group, number in zip(layout.groups, payload, strict=False)}
    plan = Plan(
        choices=choices,
        bytes=size,
        original_bytes=layout.original_bytes,
        parameters=layout.parameters,
        predicted_loss=float("nan"),
        menu_names=names,
        rule=layout.rule,
        weights=f"loaded from {described['digest']}",
    )
    net = filled(model, Compression(plan, layout, stored))
    NetworkTensors(net).fill(kept)
    _restore(path, net, extra)
    return net


def _smaller(path: str | Path, model: nn.Module, described: Mapping[str, str]) -> nn.Module:
    """The network without the channels that the file says were removed."""
    with refused_as(path, UNREADABLE, "it was written by another version or altered"):
        removals = removals_from(described.get("removed", ""))
    for removal in () if removals_of(model) == removals else removals:
        try:
            model = removal.applied(model)
        except (WrongModel, InvalidModel) as cause:
            raise WrongModel(f"{path} was written for another architecture: {printable(cause)}") from cause
    return model


def _layout_of(path: str | Path, model: nn.Module, described: Mapping[str, str]) -> Layout:
    """The groups of the network by the file's rule; they must be those that the file was written for."""
    with refused_as(path, UNREADABLE, "it was written by another version or altered"):
        refuse_unreadable_rule(described["groups"])
    try:
        layout = discover_stored(model, described["groups"])
    except InvalidMenu as cause:
        raise WrongModel(f"{path} was written for another architecture: {printable(cause)}") from cause
    signature = described["model"]
    if architecture_signature(layout) == signature:
        return layout
    plain = without_extra(layout)
    if len(plain.kept) < len(layout.kept) and architecture_signature(plain) == signature:
        names = ", ".join(kept.name for kept in layout.kept if kept.dtype == EXTRA)
        warnings.warn(
            f"{path} was written by version 0.4 of qubo_compress or an older one, which did not store {names}: "
            "the new network has these from the architecture given. Save it again to have them in the file",
            stacklevel=3,
        )
        return plain
    _refuse_older(path, model, layout, signature)
    raise WrongModel(
        f"{path} was written for another architecture: names, shapes or types of its tensors differ "
        f"from those of this {type(model).__name__}, and the file holds only a digest of them, so it cannot say which. "
        "Check layers, the number of classes and the dtype; build the model as it was when it was compressed"
    )


def _restore(path: str | Path, net: nn.Module, extra: Mapping[str, Any]) -> None:
    try:
        restore(net, extra)
    except Exception as cause:  # the network's own code
        raise WrongModel(
            f"this {type(net).__name__} does not take the extra state in {path} ({printable(cause)}); "
            "build the model as it was when it was compressed"
        ) from cause


def _refuse_older(path: str | Path, model: nn.Module, layout: Layout, signature: str) -> None:
    """Raise :class:`WrongModel` if the file belongs to this network, grouped as in version 0.3."""
    older = older_layout(model, layout)
    if older is not None and architecture_signature(older) == signature:
        kept = newer_names(layout, older)
        raise WrongModel(
            f"{path} was written by version 0.3 of qubo_compress or an older one, which kept {kept} of this "
            f"{type(model).__name__} as they were; this version compresses them, and so cannot read the file: "
            "compress the network again, or load the file with the version that wrote it"
        )


def contents(path: str | Path) -> tuple[Mapping[str, str], memoryview, int]:
    """The header's values, the payload, and the size of the file: all that can be known without the network.

    Raises:
        CorruptArtifact: when the file is truncated, altered or not an artifact of this library.
        StorageError: when the file cannot be read.
        FileNotFoundError: when there is no file.
    """
    found = read_tensors(path, WHAT)
    described = found.metadata
    if described.get("format") != FORMAT or set(found.tensors) != {TENSOR}:
        raise CorruptArtifact(
            f"{path} is a safetensors file, but not one of this library "
            f"(its format is {printable(repr(described.get('format')))}, expected {FORMAT!r})"
        )
    missing = {"model", "groups", "menu", "digest"} - set(described)
    if missing:
        raise CorruptArtifact(f"{path} lacks {', '.join(sorted(missing))} in its header; save it again")
    payload = found.tensors[TENSOR]
    if payload.dtype != "U8" or payload.shape != (len(payload.data),):
        raise CorruptArtifact(f"{path} was altered after it was written: its payload is not bytes; copy it again")
    if file_digest(described, payload.data) != described["digest"]:
        raise CorruptArtifact(f"{path} was altered after it was written: its checksum does not match; copy it again")
    return described, payload.data, found.size


def _parse(
    layout: Layout, names: tuple[str, ...], payload: memoryview, model: nn.Module
) -> tuple[dict[str, Stored], dict[str, Tensor], dict[str, Any]]:
    used = len(layout.groups)
    stored: dict[str, Stored] = {}
    for group, number in zip(layout.groups, payload[:used], strict=True):
        stored[group.name], read = parse(names[number]).decode(group, payload[used:])
        used += read
    tensors = NetworkTensors(model)
    kept: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    for item in layout.kept:
        if item.dtype == EXTRA:
            extra[item.name], read = read_stored(payload[used:])
            used += read
            continue
        tensor = tensors[item.name]
        kept[item.name] = from_raw_bytes(payload[used : used + item.nbytes], tuple(tensor.shape), tensor.dtype)
        used += item.nbytes
    if used != len(payload):
        raise ValueError(f"{len(payload) - used} bytes are left over")
    return stored, kept, extra
