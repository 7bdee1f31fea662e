"""Reading a compressed network back, bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qubo_compress.errors import CorruptArtifact, QuboCompressError, WrongModel
from qubo_compress.file_format import FORMAT, TENSOR, architecture_signature, file_digest, unpack_names
from qubo_compress.menu.groups import Layout, discover, state_entries
from qubo_compress.menu.keep import from_raw_bytes
from qubo_compress.menu.older_groups import newer_names, older_layout
from qubo_compress.menu.operator import Packed, parse
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan import Compression, Plan, fill, filled


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """A new module with the architecture of ``model`` and the weights of the file.

    Args:
        path: written by :func:`qubo_compress.save`.
        model: gives the architecture; its own weights do not matter and stay as they are.

    Raises:
        CorruptArtifact: when the file is truncated, altered or not an artifact of this library.
        WrongModel: when the file belongs to another architecture.
        FileNotFoundError: when there is no file.
    """
    described, payload = _read(Path(path))
    model = unwrapped(model)
    layout = discover(model, described["groups"])
    if architecture_signature(layout) != described["model"]:
        _refuse_older(path, model, layout, described["model"])
        raise WrongModel(
            f"{path} was written for another architecture: names, shapes or types of its tensors differ "
            f"from those of this {type(model).__name__}; build the model as it was when it was compressed"
        )
    try:
        names = unpack_names(described["menu"])
        stored, kept = _parse(layout, names, memoryview(payload), model)
        choices = {group.name: names[number] for group, number in zip(layout.groups, payload, strict=False)}
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError, zlib.error, QuboCompressError) as cause:
        raise CorruptArtifact(
            f"{path} cannot be decoded ({cause}); it was written by another version or altered"
        ) from cause
    plan = Plan(
        choices=choices,
        bytes=Path(path).stat().st_size,
        original_bytes=layout.original_bytes,
        parameters=layout.parameters,
        predicted_loss=float("nan"),
        menu_names=names,
        rule=layout.rule,
        weights=f"loaded from {described['digest']}",
    )
    net = filled(model, Compression(plan, layout, stored))
    fill(net, kept)
    return net


def _refuse_older(path: str | Path, model: nn.Module, layout: Layout, signature: str) -> None:
    """Raise :class:`WrongModel` where the file is of this very network, grouped as version 0.3 did."""
    older = older_layout(model, layout)
    if older is not None and architecture_signature(older) == signature:
        kept = newer_names(layout, older)
        raise WrongModel(
            f"{path} was written by version 0.3 of qubo_compress or an older one, which kept {kept} of this "
            f"{type(model).__name__} as they were; this version compresses them, and so cannot read the file: "
            "compress the network again, or load the file with the version that wrote it"
        )


def _read(path: Path) -> tuple[Mapping[str, str], bytes]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            described = file.metadata() or {}
            if described.get("format") != FORMAT or TENSOR not in file.keys():  # noqa: SIM118
                raise CorruptArtifact(
                    f"{path} is a safetensors file, but not one of this library "
                    f"(its format is {described.get('format')!r}, expected {FORMAT!r})"
                )
            payload = file.get_tensor(TENSOR).tobytes()
    except SafetensorError as cause:
        raise CorruptArtifact(
            f"{path} is truncated or not a safetensors file ({cause}); copy or save it again"
        ) from cause
    missing = {"model", "groups", "menu", "digest"} - set(described)
    if missing:
        raise CorruptArtifact(f"{path} lacks {', '.join(sorted(missing))} in its header; save it again")
    if file_digest(described, payload) != described["digest"]:
        raise CorruptArtifact(f"{path} was altered after it was written: its checksum does not match; copy it again")
    return described, payload


def _parse(
    layout: Layout, names: tuple[str, ...], payload: memoryview, model: nn.Module
) -> tuple[dict[str, Packed], dict[str, Tensor]]:
    used = len(layout.groups)
    stored: dict[str, Packed] = {}
    for group, number in zip(layout.groups, payload[:used], strict=True):
        stored[group.name], read = parse(names[number]).decode(group, payload[used:])
        used += read
    entries = state_entries(model)[0]
    kept: dict[str, Tensor] = {}
    for item in layout.kept:
        tensor = entries[item.name].tensor
        kept[item.name] = from_raw_bytes(payload[used : used + item.nbytes], tuple(tensor.shape), tensor.dtype)
        used += item.nbytes
    if used != len(payload):
        raise ValueError(f"{len(payload) - used} bytes are left over")
    return stored, kept
