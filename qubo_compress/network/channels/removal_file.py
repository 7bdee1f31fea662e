"""What was removed from a network, as text in a file; text from elsewhere is checked before it is used."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from qubo_compress._internal.reader import inflated, parsed_json
from qubo_compress.network.channels.bypass import BypassedModule
from qubo_compress.network.channels.removal import ChangedNumber, HookedModule, KeptIndices, Removal, removals_of

MOST_TEXT = 2 * 2**20
"""Bytes of the unpacked text, four channels each, and the names of the tensors: a channel in memory takes 36 bytes."""

LONGEST_AXIS = 2**22

MOST_AXES = 8
"""Of an activation."""


def removals_text(model: nn.Module) -> str:
    """What was removed from a network, as short text; empty for one that is whole."""
    return text_of(removals_of(model))


def text_of(removals: Sequence[Removal]) -> str:
    """Some removals, in order, as short text; empty if there are none.

    Example:
        >>> removal = Removal((KeptIndices("0.weight", 0, 4, (0, 2, 3)),))
        >>> removals_from(text_of([removal])) == (removal,)
        True
    """
    if not removals:
        return ""
    said = [
        {
            "kept": [_axis(part) for part in removal.kept],
            "hooked": [[item.module, _axis(item.before), _axis(item.after)] for item in removal.hooked],
            "numbers": [[item.module, item.attribute, item.value] for item in removal.numbers],
            **({"bypassed": [[i.module, i.constant, i.before] for i in removal.bypassed]} if removal.bypassed else {}),
        }
        for removal in removals
    ]
    return base64.b64encode(zlib.compress(json.dumps(said, separators=(",", ":")).encode(), 9)).decode()


def removals_from(text: str) -> tuple[Removal, ...]:
    """Inverse of :func:`text_of`.

    Raises:
        ValueError: when the text is damaged or says what no network can be.
    """
    if not text:
        return ()
    said = parsed_json(inflated(text, MOST_TEXT))
    if not isinstance(said, list):
        raise ValueError("it is no list of removals")
    return tuple(_removal(item) for item in said)


def _axis(part: KeptIndices | None) -> list[Any] | None:
    if part is None:
        return None
    bits = bytearray(-(-part.full // 8))
    for index in part.indices:
        bits[index // 8] |= 1 << index % 8
    return [part.tensor, part.axis, part.full, bits.hex()]


def _removal(said: Any) -> Removal:
    if not isinstance(said, Mapping) or set(said) - {"bypassed"} != {"kept", "hooked", "numbers"}:
        raise ValueError("a removal lacks a part")
    kept = tuple(_kept(item) for item in _list(said["kept"]))
    if len({(part.tensor, part.axis) for part in kept}) < len(kept):
        raise ValueError("an axis loses channels twice")
    hooked = []
    for item in _list(said["hooked"]):
        name, before, after = _list(item, 3)
        sides = [None if side is None else _kept(side) for side in (before, after)]
        if sides == [None, None] or any(side and not _is_part(side) for side in sides):
            raise ValueError(f"the hooks of {name!r} leave nothing out, or the axis of the examples is theirs")
        hooked.append(HookedModule(_text(name), sides[0], sides[1]))
    if len({item.module for item in hooked}) < len(hooked):
        raise ValueError("a module gets hooks twice")
    numbers = []
    for item in _list(said["numbers"]):
        module, attribute, value = _list(item, 3)
        # Only what counts heads is ever changed: a file must not set anything else.
        if "head" not in _text(attribute) and attribute not in TOTAL_WIDTHS:
            raise ValueError(f"{attribute!r} counts no heads")
        numbers.append(ChangedNumber(_text(module), attribute, _whole(value)))
    layers = tuple(_bypassed(item) for item in _list(said.get("bypassed", [])))
    return Removal(kept, tuple(hooked), tuple(numbers), layers)


TOTAL_WIDTHS = ("all_head_size", "inner_dim", "inner_size", "attn_dim", "split_size")
"""Names by which networks call the width of all heads together."""


def _kept(said: Any) -> KeptIndices:
    tensor, axis, full, text = _list(said, 4)
    full = _whole(full)
    if full > LONGEST_AXIS or not isinstance(text, str):
        raise ValueError("an axis is too long")
    bits = bytes.fromhex(text)
    if len(bits) != -(-full // 8):
        raise ValueError("the bits of an axis are not as many as its indices")
    indices = tuple(index for index in range(full) if bits[index // 8] >> index % 8 & 1)
    if not indices:
        raise ValueError("nothing of an axis is left")
    return KeptIndices(_text(tensor), _whole(axis), full, indices)


def _is_part(side: KeptIndices) -> bool:
    """Whether channels leave along a possible axis of an activation: of 1 to 7, as the first one has the examples."""
    return 1 <= side.axis < MOST_AXES and len(side.indices) < side.full


def _bypassed(said: Any) -> BypassedModule:
    module, constant, before = _list(said, 3)
    if type(constant) is not bool:
        raise ValueError("a module computes a constant or nothing")
    return BypassedModule(_text(module), constant, _text(before))


def _list(said: Any, length: int | None = None) -> list[Any]:
    if not isinstance(said, list) or (length is not None and len(said) != length):
        raise ValueError("a list was expected")
    return said


def _text(said: Any) -> str:
    if not isinstance(said, str):
        raise ValueError("a name was expected")
    return said


def _whole(said: Any) -> int:
    if type(said) is not int or not 0 <= said < 2**31:
        raise ValueError("a whole number was expected")
    return said
