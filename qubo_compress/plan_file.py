"""Plans on disk: one JSON file with a checksum, which also holds the bytes of choices made from data.

Until version 0.4 those bytes were in a second file, ``plan.safetensors`` beside ``plan.json``, and there was no
checksum over the plan itself; such pairs are still read.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qubo_compress._internal.checked_json import refuse_altered, with_checksum
from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.reader import parsed_json, read_whole, refused_as
from qubo_compress._internal.tensors import read_tensors
from qubo_compress.errors import CorruptArtifact
from qubo_compress.network.channels import Removal
from qubo_compress.network.channels.removal_file import removals_from, text_of

WHAT = "a complete plan"

_FORMAT, _OLDER_FORMAT = "qubo_compress plan 2", "qubo_compress plan 1"


def write_plan(path: str | Path, fields: Mapping[str, Any]) -> None:
    """Write the fields of a plan, atomically.

    Raises:
        StorageError: when the file cannot be written.
    """
    packed = {name: base64.b64encode(data).decode() for name, data in fields["payloads"].items()}
    described = {"format": _FORMAT, **fields, "payloads": packed}
    removal = described.pop("removal", None)
    if removal is not None:
        described["removal"] = text_of([removal])
    if described.get("proof") is None:
        described.pop("proof", None)
    text = with_checksum(described, indent=1)
    write_atomically(path, lambda handle: handle.write(text))


def read_plan(path: str | Path) -> dict[str, Any]:
    """The fields of a plan, checked.

    Raises:
        CorruptArtifact: when the file is not a complete plan or was altered, or the file beside an older one is not
            its own.
        StorageError: when it cannot be read.
        FileNotFoundError: when there is no file.
    """
    data = read_whole(path, "a plan")
    with refused_as(path, WHAT, "save it again"):
        values = parsed_json(data)
        if not isinstance(values, dict):
            raise ValueError("it is JSON of something else")
        form = values.pop("format", None)
        if form == _OLDER_FORMAT:
            digest = values.pop("payload_digest", None)
            _refuse_other_types(values, _OLDER_TYPES)
            values["payloads"] = {} if digest is None else _payloads_beside(Path(path), digest)
        elif form == _FORMAT:
            values["format"] = form
            refuse_altered(values)
            del values["format"]
            removal = values.pop("removal", None)
            if removal is not None and not isinstance(removal, str):
                raise ValueError("what it removes is no text")
            proof = values.pop("proof", None)
            if proof is not None:
                _refuse_other_proof(proof)
            _refuse_other_types(values, _TYPES)
            values["proof"] = proof
            values["removal"] = None if removal is None else _only(removals_from(removal))
            packed = values["payloads"].items()
            values["payloads"] = {name: base64.b64decode(text, validate=True) for name, text in packed}
        else:
            raise ValueError("its format is not known")
        _refuse_contradictions(values)
        return {**values, "menu_names": tuple(values["menu_names"])}


def _only(removals: tuple[Removal, ...]) -> Removal:
    if len(removals) != 1:
        raise ValueError(f"a plan removes channels once; this one does {len(removals)} times")
    return removals[0]


def _is_whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


_OLDER_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "choices": _is_table,
    "bytes": lambda value: _is_whole(value) and value > 0,
    "original_bytes": _is_whole,
    "parameters": _is_whole,
    "predicted_loss": lambda value: type(value) in (int, float),
    "menu_names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "rule": _is_text,
    "weights": _is_text,
}
_TYPES = {**_OLDER_TYPES, "payloads": _is_table}


def _refuse_other_types(values: Mapping[str, Any], types: Mapping[str, Callable[[Any], bool]]) -> None:
    missing, unknown = set(types) - set(values), set(values) - set(types)
    if missing or unknown:
        raise ValueError(f"it lacks {min(missing)}" if missing else f"{min(unknown)!r} is not known")
    for name, fits in types.items():
        if not fits(values[name]):
            raise ValueError(f"its {name} cannot be {values[name]!r}")


_PROOF: Mapping[str, Callable[[Any], bool]] = {
    "solver": _is_text,
    "energy": _is_finite,
    "bound": _is_finite,
    "limits": lambda value: isinstance(value, dict) and all(_is_whole(limit) for limit in value.values()),
}


def _refuse_other_proof(values: object) -> None:
    if not isinstance(values, dict):
        raise ValueError("its proof is no table")
    _refuse_other_types(values, _PROOF)


def _refuse_contradictions(values: Mapping[str, Any]) -> None:
    names, choices = values["menu_names"], values["choices"]
    if len(set(names)) < len(names):
        raise ValueError("its menu offers a choice twice")
    absent = sorted(set(choices.values()) - set(names))
    if absent:
        raise ValueError(f"{absent[0]!r} is not on its menu")
    # With channels removed, choices are about channels, and the bytes are those of layers.
    strange = [] if values.get("removal") is not None else sorted(set(values["payloads"]) - set(choices))
    if strange:
        raise ValueError(f"it holds bytes for {strange[0]!r}, which is none of its groups")


def _payloads_beside(path: Path, digest: object) -> dict[str, bytes]:
    """The bytes of choices made from data, which version 0.4 wrote to a file of their own."""
    beside = path.with_suffix(".safetensors")
    try:
        found = read_tensors(beside, "the bytes of a plan").tensors
    except FileNotFoundError as cause:
        raise CorruptArtifact(
            f"{path} has choices made from data, whose bytes are in {beside}, which is missing; copy both files"
        ) from cause
    payloads = {name: bytes(tensor.data) for name, tensor in found.items()}
    if _older_digest(payloads) != digest:
        raise CorruptArtifact(f"{beside} does not belong to {path}, or was altered; copy both files again")
    return payloads


def _older_digest(payloads: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(payloads):
        digest.update(f"{name} {len(payloads[name])} ".encode())
        digest.update(payloads[name])
    return digest.hexdigest()[:32]
