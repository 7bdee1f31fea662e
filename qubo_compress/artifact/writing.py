"""Writing a compressed network."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from qubo_compress._internal.files import refuse_unwritable, write_atomically
from qubo_compress.errors import InvalidModel, WrongModel
from qubo_compress.menu.storage.file_format import header, kept_payload
from qubo_compress.network.groups import EXTRA
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan import Compression, compression_of


def save(model: nn.Module, path: str | Path) -> int:
    """Write a compressed module to one safetensors file, atomically.

    Args:
        model: made by ``plan.apply``, ``recover``, ``compress`` or ``load``.
        path: of the file; an older one is replaced only when the new one is complete.

    Returns:
        The size of the file in bytes, which equals ``plan.bytes``.

    Raises:
        WrongModel: when the module carries no plan, its values have left the plan's grid, or inputs are not rounded
            as planned.
        InvalidModel: when its state dict holds something that only pickle could store; the message names it.
        StorageError: when the file cannot be written, or the path names a folder, a device or a pipe.
    """
    refuse_unwritable(path)
    model = unwrapped(model)
    compression = compression_of(model)
    _refuse_unsaveable(compression)
    payload = payload_of(compression, model)
    head = header(compression.layout, compression.plan.menu_names, payload)
    blanks = compression.plan.bytes - len(head) - len(payload)
    if blanks < 0:
        raise WrongModel(
            f"the extra state of this network takes {-blanks} bytes more than when the plan was made, so that the file "
            "would be larger than its plan says: measure the network again"
        )
    head = padded(head, blanks)
    write_atomically(Path(path), lambda handle: (handle.write(head), handle.write(payload)))
    return len(head) + len(payload)


def _refuse_unsaveable(compression: Compression) -> None:
    lost = [kept for kept in compression.layout.kept if kept.dtype == EXTRA and not kept.nbytes]
    if lost:
        raise InvalidModel(f"the network cannot be saved whole: {lost[0].reason}")


def padded(head: bytes, blanks: int) -> bytes:
    """A file's header, padded with blanks if masks that moved in training take fewer bytes than planned."""
    text = head[8:] + b" " * max(0, blanks)
    return len(text).to_bytes(8, "little") + text


def payload_of(compression: Compression, model: nn.Module) -> bytes:
    """The bytes of a file: choice numbers, packed groups and tensors that were kept."""
    names = compression.plan.menu_names
    groups = compression.layout.groups
    numbers = bytes(names.index(compression.plan.choices[group.name]) for group in groups)
    packed = b"".join(compression.stored[group.name].to_bytes() for group in groups)
    return numbers + packed + kept_payload(compression.layout, model)
