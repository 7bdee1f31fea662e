"""Safetensors files: a length, a JSON header, and the bytes of the named tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qubo_compress._internal.reader import parsed_json, read_whole, refused_as

LARGEST_HEADER = 100_000_000
"""The format's limit, in bytes."""

ZIP = b"PK\x03\x04"
"""The first bytes of a zip file."""

_PREFIX = 8
_METADATA = "__metadata__"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        dtype: as the file names it.
        shape: claimed by the file; not checked against the bytes.
        data: the tensor's bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class Tensors:
    """The contents of a file.

    Attributes:
        metadata: names and texts stored with the tensors.
        tensors: by name; together they take all bytes behind the header.
        size: of the file, in bytes.
    """

    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]
    size: int


def read_tensors(path: str | Path, what: str) -> Tensors:
    """The tensors of a safetensors file, without copying them.

    Args:
        path: of the file.
        what: what it should be, for messages.

    Raises:
        CorruptArtifact: when the file is truncated, has bytes left over, or is something else.
        StorageError: when it cannot be read.
        FileNotFoundError: when there is no file.
    """
    data = read_whole(path, what)
    with refused_as(path, f"{what}: it is truncated or not a safetensors file"):
        if data.startswith(ZIP):
            raise ValueError("it is a zip file, such as torch.save writes")
        length = int.from_bytes(data[:_PREFIX], "little")
        if len(data) < _PREFIX or length > min(len(data) - _PREFIX, LARGEST_HEADER):
            raise ValueError(f"it has {len(data):,} bytes, and says that its header has {length:,}")
        header = parsed_json(data[_PREFIX : _PREFIX + length])
        if not isinstance(header, dict):
            raise ValueError("its header is JSON of something else")
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata is not text")
        body = memoryview(data)[_PREFIX + length :]
        return Tensors(metadata, _divided(header, body), len(data))


def tensors_file(metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """The bytes of a safetensors file: inverse of :func:`read_tensors`.

    Args:
        metadata: names and texts.
        tensors: name -> dtype as the format names it, shape, and bytes; wide numbers first, so that all are aligned.

    Example:
        >>> data = tensors_file({"format": "note"}, {"a": ("U8", (3,), b"abc")})
        >>> len(data) % 8, data[-3:]
        (3, b'abc')
    """
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX)
    return len(text).to_bytes(_PREFIX, "little") + text + b"".join(data for _, _, data in tensors.values())


def _divided(header: dict[str, Any], body: memoryview) -> dict[str, StoredTensor]:
    """The tensors of a header, which must cover all bytes in order without gaps."""
    spans = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"what it says of {name!r} cannot be understood")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not (isinstance(dtype, str) and _are_whole(shape) and _are_whole(offsets) and len(offsets) == 2):
            raise ValueError(f"what it says of {name!r} cannot be understood")
        spans.append((offsets[0], offsets[1], name, dtype, tuple(shape)))
    found, before = {}, 0
    for start, stop, name, dtype, shape in sorted(spans):
        if start != before or stop < start:
            raise ValueError(f"{name!r} does not begin where the tensor before it ends")
        found[name] = StoredTensor(dtype, shape, body[start:stop])
        before = stop
    if before != len(body):
        raise ValueError(f"it has {len(body):,} bytes of tensors, and its header names {before:,}")
    return found


def _are_whole(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
