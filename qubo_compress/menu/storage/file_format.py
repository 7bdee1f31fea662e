"""The frame of a compressed file: one safetensors tensor of bytes under a header of known length.

The payload is, in this order: one byte per group (the position of its choice on the menu), the bytes
of every group, the tensors that no choice changes. The header is padded with blanks to the length needed by the largest
payload, so its length depends only on the network and the menu, and the size of a file is known before it is written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from qubo_compress._internal.reader import inflated
from qubo_compress.menu.operator import LONGEST_NAME
from qubo_compress.network.extra_state import extra_entries, stored_bytes
from qubo_compress.network.groups import EXTRA, Layout
from qubo_compress.network.signature import architecture_signature
from qubo_compress.network.tensor_bytes import raw_bytes
from qubo_compress.network.tensors import NetworkTensors

FORMAT = "qubo_compress 1"
TENSOR = "payload"
DIGEST_LENGTH = 32

MOST_NAMES = 256 * (LONGEST_NAME + 1)
"""Most bytes of all names of a menu."""


def pack_names(names: Sequence[str]) -> str:
    """The names of a menu's choices as short text."""
    return base64.b64encode(zlib.compress("\n".join(names).encode(), 9)).decode()


def unpack_names(text: str) -> tuple[str, ...]:
    """The names of a menu's choices: inverse of :func:`pack_names`."""
    return tuple(inflated(text, MOST_NAMES).decode().split("\n"))


def metadata(layout: Layout, menu_names: Sequence[str], digest: str = "0" * DIGEST_LENGTH) -> dict[str, str]:
    """The header's description of the file."""
    said = {
        "format": FORMAT,
        "model": architecture_signature(layout),
        "groups": layout.rule,
        "menu": pack_names(menu_names),
        "digest": digest,
    }
    return {**said, "removed": layout.removed} if layout.removed else said


def _header_json(described: Mapping[str, str], payload_bytes: int) -> bytes:
    tensor = {"dtype": "U8", "shape": [payload_bytes], "data_offsets": [0, payload_bytes]}
    return json.dumps({"__metadata__": dict(described), TENSOR: tensor}, separators=(",", ":")).encode()


def file_digest(described: Mapping[str, str], payload: bytes | memoryview) -> str:
    """Digest of the payload and of the header without the digest itself."""
    said = json.dumps(sorted((name, text) for name, text in described.items() if name != "digest"))
    digest = hashlib.sha256(said.encode())
    digest.update(payload)
    return digest.hexdigest()[:DIGEST_LENGTH]


def header(layout: Layout, menu_names: Sequence[str], payload: bytes) -> bytes:
    """Length and header of a safetensors file with this payload."""
    described = metadata(layout, menu_names)  # computed once: it digests the names and shapes of all tensors
    described["digest"] = file_digest(described, payload)
    text = _header_json(described, len(payload))
    text = text.ljust(_header_bytes(layout, described) - 8, b" ")
    return len(text).to_bytes(8, "little") + text


def header_bytes(layout: Layout, menu_names: Sequence[str]) -> int:
    """Bytes before the payload, a multiple of eight."""
    return _header_bytes(layout, metadata(layout, menu_names))


def _header_bytes(layout: Layout, described: Mapping[str, str]) -> int:
    # With masks and scales, operators may need more bytes than the original; only the number of digits matters here.
    largest = 8 * layout.original_bytes + 64 * len(layout.groups) + 1024
    return 8 + -(-len(_header_json(described, largest)) // 8) * 8


def fixed_bytes(layout: Layout, menu_names: Sequence[str]) -> int:
    """Bytes of a file that no choice changes."""
    return header_bytes(layout, menu_names) + len(layout.groups) + sum(kept.nbytes for kept in layout.kept)


def kept_payload(layout: Layout, model: nn.Module) -> bytes:
    """Bytes of the tensors that no choice changes."""
    tensors, extra = NetworkTensors(model), extra_entries(model)
    return b"".join(
        stored_bytes(kept.name, extra[kept.name]) if kept.dtype == EXTRA else raw_bytes(tensors[kept.name])
        for kept in layout.kept
        if kept.nbytes
    )


def without_extra(layout: Layout) -> Layout:
    """The layout without extra state, which version 0.4 did not store."""
    return replace(layout, kept=tuple(kept for kept in layout.kept if kept.dtype != EXTRA))
