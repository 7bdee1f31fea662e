"""The digest of a network's architecture."""

from __future__ import annotations

import hashlib
import json

from qubo_compress.network.groups import Layout, Member


def architecture_signature(layout: Layout) -> str:
    """Digest of names, shapes and dtypes of every unique tensor, and of how they are grouped."""
    text = json.dumps(
        [
            [[g.name, g.kind, [_described(m) for m in g.members]] for g in layout.groups],
            [(kept.name, kept.shape, kept.dtype) for kept in layout.kept],
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(member: Member) -> list[object]:
    said: list[object] = [member.name, member.shape, str(member.dtype), member.rows]
    # Only where it is not zero, so that files of other networks keep their signature.
    return [*said, member.inputs_first] if member.inputs_first else said
