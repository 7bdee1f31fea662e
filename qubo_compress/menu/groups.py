"""Decision groups: which tensors of a network are compressed together, and which are left alone."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidMenu, InvalidModel

Kind = Literal["weight", "normalisation", "bias"]

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
"""Modules whose ``weight`` is a group of kind ``"weight"``, one scale per row of the first axis."""

NORMALISATIONS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
"""Modules whose vectors together are one group of kind ``"normalisation"``."""

GroupRule = str | re.Pattern[str] | Callable[[str, nn.Module], str | None]
"""``"layer"``, ``"filter"``, a regular expression, or a function (parameter name, module) -> group name or None."""

_CUSTOM = "custom:"


@dataclass(frozen=True)
class Member:
    """One tensor of a group, or some rows of it.

    Attributes:
        name: first name of the parameter or buffer in the state dict.
        shape: its whole shape.
        dtype: its dtype.
        rows: first and last-but-one row that the group owns, or None for all.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: tuple[int, int] | None = None

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the part that the group owns."""
        if self.rows is None:
            return self.shape
        return (self.rows[1] - self.rows[0], *self.shape[1:])

    @property
    def numel(self) -> int:
        """Number of values that the group owns."""
        return int(torch.Size(self.part_shape).numel())

    @property
    def nbytes(self) -> int:
        """Bytes of these values as they are in the original network."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Group:
    """Tensors that get one common choice.

    Attributes:
        name: first parameter, such as ``layer1.0.conv1.weight``, or ``layer1.0.conv1.weight[17]`` for a filter.
        kind: what its operators may assume of it.
        members: its tensors.
        module_type: class name of the (first) owner, for reports.
        epsilon: of a batch normalisation; else None.
    """

    name: str
    kind: Kind
    members: tuple[Member, ...]
    module_type: str
    epsilon: float | None = None

    @property
    def numel(self) -> int:
        """Number of values in the group."""
        return sum(member.numel for member in self.members)

    @property
    def nbytes(self) -> int:
        """Bytes of these values in the original network."""
        return sum(member.nbytes for member in self.members)


@dataclass(frozen=True)
class Kept:
    """A tensor that no choice changes, and why."""

    name: str
    reason: str
    nbytes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""


@dataclass(frozen=True)
class Layout:
    """Every unique tensor of a network: in a group, or kept with a reason.

    Attributes:
        groups: the decision groups, in state-dict order.
        kept: everything else.
        aliases: name -> first name, for parameters and persistent buffers that share one tensor.
        original_bytes: numel x itemsize over unique parameters and persistent buffers.
        parameters: number of unique parameters.
        rule: the grouping as text, from which :func:`discover` makes the same groups again.
    """

    groups: tuple[Group, ...]
    kept: tuple[Kept, ...]
    aliases: dict[str, str]
    original_bytes: int
    parameters: int
    rule: str = "layer"


@dataclass(frozen=True)
class _Entry:
    name: str
    tensor: Tensor
    module: nn.Module
    attribute: str
    is_parameter: bool
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)


def state_entries(model: nn.Module) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Unique parameters and persistent buffers by first name, and the aliases of shared ones."""
    entries: dict[str, _Entry] = {}
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for attribute, tensor in (*module._parameters.items(), *persistent.items()):
            if tensor is None:
                continue
            name = f"{prefix}.{attribute}" if prefix else attribute
            known = first.setdefault(id(tensor), name)
            aliases[name] = known
            if known == name:
                entries[name] = _Entry(name, tensor, module, attribute, attribute in module._parameters)
            entries[known].owners.append((module, attribute))
    return entries, aliases


def discover(model: nn.Module, groups: GroupRule = "layer") -> Layout:
    """Find the decision groups of a network.

    Args:
        model: any module; nothing in it is changed.
        groups: ``"layer"``: one group per weight tensor; ``"filter"``: one per output row of convolutions
            and linear layers; a regular expression: weights whose names match with equal captured text
            share a group; or a function (parameter name, owning module) -> group label, None to keep.

    Raises:
        InvalidMenu: for a rule that is none of these.
        InvalidModel: when the network has no tensors, or a parameter that was never initialised.

    Example:
        >>> layout = discover(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
        >>> [(group.name, group.kind) for group in layout.groups]
        [('0.weight', 'weight'), ('0.bias', 'bias'), ('1.weight', 'normalisation')]
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise InvalidModel(f"{name} is not initialised yet; run the model once before compressing it")
    entries, aliases = state_entries(model)
    if not entries:
        raise InvalidModel("the model has no parameters; there is nothing to compress")
    found: list[Group] = []
    kept: list[Kept] = []
    taken: set[str] = set()
    for name, entry in entries.items():
        if name in taken:
            continue
        group, reason = _group_of(entry, entries)
        if group is None:
            kept.append(_kept(entry, reason))
        else:
            found.append(group)
            taken.update(member.name for member in group.members)
    labels, rule = _labels(found, groups, entries)
    found, left = _regroup(found, labels, entries)
    return Layout(
        groups=tuple(found),
        kept=tuple(kept + left),
        aliases=aliases,
        original_bytes=sum(e.tensor.numel() * e.tensor.element_size() for e in entries.values()),
        parameters=sum(e.tensor.numel() for e in entries.values() if e.is_parameter),
        rule=rule,
    )


def _kept(entry: _Entry, reason: str) -> Kept:
    tensor = entry.tensor
    return Kept(entry.name, reason, tensor.numel() * tensor.element_size(), tuple(tensor.shape), str(tensor.dtype))


def _member(entry: _Entry, rows: tuple[int, int] | None = None) -> Member:
    return Member(entry.name, tuple(entry.tensor.shape), entry.tensor.dtype, rows)


def _group_of(entry: _Entry, entries: dict[str, _Entry]) -> tuple[Group | None, str]:
    kind_name = type(entry.module).__name__
    if entry.tensor.numel() == 0:
        return None, "it is empty"
    if isinstance(entry.module, NORMALISATIONS):
        owned = [e for e in entries.values() if e.module is entry.module]
        shared = [e.name for e in owned if len({id(module) for module, _ in e.owners}) > 1]
        if shared:
            return None, f"{shared[0]} is shared between normalisations"
        statistics = isinstance(entry.module, nn.modules.batchnorm._BatchNorm)
        if statistics and entry.module.running_var is None:
            return None, "its batch normalisation keeps no running statistics, so it cannot be folded"
        epsilon = float(getattr(entry.module, "eps", 0.0)) if statistics else None
        if not any(e.tensor.is_floating_point() for e in owned):
            return None, "it holds no floating-point values"
        return Group(owned[0].name, "normalisation", tuple(_member(e) for e in owned), kind_name, epsilon), ""
    if not entry.tensor.is_floating_point():
        return None, f"its type is {entry.tensor.dtype}; only floating-point tensors are compressed"
    if not entry.is_parameter:
        return None, "it is a buffer"
    owners = [module for module, _ in entry.owners]
    if not all(isinstance(module, WEIGHTED) for module in owners):
        other = next(type(module).__name__ for module in owners if not isinstance(module, WEIGHTED))
        return None, f"it belongs to {other}, for which there is no operator"
    attributes = {attribute for _, attribute in entry.owners}
    if attributes == {"weight"}:
        return Group(entry.name, "weight", (_member(entry),), kind_name), ""
    if attributes == {"bias"}:
        return Group(entry.name, "bias", (_member(entry),), kind_name), ""
    return None, "it is used in several different roles"


def _labels(
    found: list[Group], rule: GroupRule, entries: dict[str, _Entry]
) -> tuple[dict[str, str | None] | Literal["filter"], str]:
    """Label of every weight group under the rule, and the rule as text."""
    names = [group.name for group in found if group.kind == "weight"]
    if rule == "layer":
        return {name: name for name in names}, "layer"
    if rule == "filter":
        return "filter", "filter"
    if isinstance(rule, str) and rule.startswith(_CUSTOM):
        try:
            stored = json.loads(zlib.decompress(base64.b64decode(rule[len(_CUSTOM) :])))
        except (ValueError, zlib.error) as cause:
            raise InvalidMenu(f"the stored grouping {rule[:40]!r} cannot be read ({cause})") from cause
        return {name: stored.get(name) for name in names}, rule
    if isinstance(rule, str):
        try:
            rule = re.compile(rule)
        except re.error as cause:
            raise InvalidMenu(
                f"groups={rule!r} is neither 'layer', 'filter' nor a regular expression ({cause})"
            ) from cause
    labels: dict[str, str | None] = {}
    if isinstance(rule, re.Pattern):
        for name in names:
            match = rule.search(name)
            shared = "/".join(text or "" for text in match.groups()) or match.group(0) if match else name
            labels[name] = shared
        # Text that would be read back as something else is stored by what it made of this network.
        ambiguous = rule.pattern in ("layer", "filter") or rule.pattern.startswith(_CUSTOM)
        return labels, _as_text(labels) if ambiguous or rule.flags != re.compile(rule.pattern).flags else rule.pattern
    if not callable(rule):
        raise InvalidMenu(f"groups must be 'layer', 'filter', a regular expression or a function; got {rule!r}")
    for name in names:
        label = rule(name, entries[name].module)
        if label is not None and not isinstance(label, str):
            raise InvalidMenu(f"the grouping function must return a name or None for {name}; got {label!r}")
        labels[name] = label
    return labels, _as_text(labels)


def _as_text(labels: dict[str, str | None]) -> str:
    text = json.dumps({name: label for name, label in labels.items() if label is not None})
    return _CUSTOM + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _regroup(
    found: list[Group], labels: dict[str, str | None] | Literal["filter"], entries: dict[str, _Entry]
) -> tuple[list[Group], list[Kept]]:
    if isinstance(labels, str):
        return [part for group in found for part in _filters(group)], []
    joined: dict[str, list[Group]] = {}
    left: list[Kept] = []
    for group in found:
        label = labels[group.name] if group.kind == "weight" else group.name
        if label is None:
            left.append(_kept(entries[group.name], "the caller's grouping leaves it alone"))
        else:
            joined.setdefault(f"{group.kind}:{label}", []).append(group)
    merged = [
        Group(
            parts[0].name,
            parts[0].kind,
            tuple(member for part in parts for member in part.members),
            parts[0].module_type,
            parts[0].epsilon,
        )
        for parts in joined.values()
    ]
    return merged, left


def _filters(group: Group) -> list[Group]:
    if group.kind != "weight" or group.module_type == "Embedding":
        return [group]
    member = group.members[0]
    return [
        Group(
            f"{member.name}[{row}]",
            "weight",
            (Member(member.name, member.shape, member.dtype, (row, row + 1)),),
            group.module_type,
        )
        for row in range(member.shape[0])
    ]
