"""The groups of a network as plain values for a file, checked when they are read."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, get_args

import torch

from qubo_compress.network.groups import Group, Kept, Layout, Member
from qubo_compress.network.roles import Kind
from qubo_compress.network.stored_groups import refuse_unreadable_rule

LONGEST_AXIS = 2**40
"""No axis of a tensor, and no number of bytes, is beyond this."""


def layout_text(layout: Layout) -> dict[str, Any]:
    """A layout as dicts, lists, texts and whole numbers.

    Example:
        >>> group = Group("w", "weight", (Member("w", (2, 3), torch.float32),), "Linear")
        >>> layout = Layout((group,), (), {}, 24, 6)
        >>> layout_from(layout_text(layout)) == layout
        True
    """
    found = asdict(layout)
    for group in found["groups"]:
        for member in group["members"]:
            member["dtype"] = str(member["dtype"]).removeprefix("torch.")
    return found


def layout_from(value: Any) -> Layout:
    """Inverse of :func:`layout_text`, also behind JSON.

    Raises:
        ValueError, InvalidMenu: when the values are not those of a layout.
    """
    read = dict(_values(value, Layout))
    groups, kept = (tuple(_listed(read.pop(name))) for name in ("groups", "kept"))
    aliases = read["aliases"]
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise ValueError("its names of one tensor are no table")
    for name in ("original_bytes", "parameters"):
        _size(read[name])
    for name in ("rule", "removed"):
        _text(read[name])
    refuse_unreadable_rule(read["rule"])
    return Layout(groups=tuple(_group(item) for item in groups), kept=tuple(_kept(item) for item in kept), **read)


def _values(value: Any, kind: type) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    if not isinstance(value, dict) or set(value) != names:
        raise ValueError(f"it does not describe a {kind.__name__.lower()}")
    return value


def _group(value: Any) -> Group:
    read = _values(value, Group)
    if read["kind"] not in get_args(Kind):
        raise ValueError(f"no group is a {read['kind']!r}")
    epsilon = read["epsilon"]
    if epsilon is not None and type(epsilon) not in (int, float):
        raise ValueError("an epsilon is no number")
    members = tuple(_member(item) for item in _listed(read["members"]))
    return Group(_text(read["name"]), read["kind"], members, _text(read["module_type"]), epsilon)


def _member(value: Any) -> Member:
    read = _values(value, Member)
    dtype = getattr(torch, _text(read["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no tensor has the type {read['dtype']!r}")
    rows = None if read["rows"] is None else tuple(_size(row) for row in _listed(read["rows"]))
    if rows is not None and (len(rows) != 2 or rows[0] > rows[1]):
        raise ValueError("the rows of a group do not begin before they end")
    return Member(_text(read["name"]), _shape(read["shape"]), dtype, rows, _size(read["inputs_first"]))  # type: ignore[arg-type]


def _kept(value: Any) -> Kept:
    read = _values(value, Kept)
    texts = (_text(read[name]) for name in ("name", "reason", "dtype"))
    name, reason, dtype = texts
    return Kept(name, reason, _size(read["nbytes"]), _shape(read["shape"]), dtype)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(_size(length) for length in _listed(value))


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LONGEST_AXIS:
        raise ValueError(f"no size is {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is no text")
    return value


def _listed(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("a list is no list")
    return value
