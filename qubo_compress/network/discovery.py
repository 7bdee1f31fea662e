"""Finds the decision groups of a network, by the rules for which weights share one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from qubo_compress.errors import InvalidMenu, InvalidModel
from qubo_compress.network.channels.removal_file import removals_text
from qubo_compress.network.extra_state import extra_entries, stored_bytes
from qubo_compress.network.groups import EXTRA, Group, Kept, Layout, Member, outputs_first
from qubo_compress.network.patterns import labels_by, labels_within_limits
from qubo_compress.network.roles import LEFT_ALONE, role_of, why_computed, why_unknown
from qubo_compress.network.stored_groups import CUSTOM, is_read_back, labels_text, stored_labels
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped

NORMALISATIONS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
"""Modules whose vectors form one group of kind ``"normalisation"``."""

GroupRule = str | re.Pattern[str] | Callable[[str, nn.Module], str | None]
"""``"layer"``, ``"filter"``, a regular expression, or a function (parameter name, module) -> group name or None."""

Matcher = Callable[[str, list[str]], Mapping[str, str | None]]
"""(regular expression, names) -> label of each name, or None; see :mod:`qubo_compress.network.patterns`."""

LOOKED_UP = ("Embedding", "EmbeddingBag")
"""Class names of modules that pick rows of their weight; such rows are not filters."""


def discover(model: nn.Module, groups: GroupRule = "layer") -> Layout:
    """Find the decision groups of a network.

    Args:
        model: any module; nothing in it is changed.
        groups: ``"layer"``: one group per weight tensor; ``"filter"``: one per output row of weights that multiply;
            a regular expression: weights whose names match with equal captured text share a group; or a function
            (parameter name, owning module) -> group label, None to keep. A function also decides about parameters of
            two or more axes whose use is unknown, which are kept otherwise.

    Raises:
        InvalidMenu: for a rule that is none of these, or text that matches no weight's name.
        InvalidModel: if the network has no tensors, has a parameter that was never initialised, or cannot be
            unwrapped (see :func:`qubo_compress.network.unwrapped`).

    Example:
        >>> layout = discover(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
        >>> [(group.name, group.kind) for group in layout.groups]
        [('0.weight', 'weight'), ('0.bias', 'bias'), ('1.weight', 'normalisation')]
    """
    return _discovered(unwrapped(model), groups, lambda text, names: labels_by(re.compile(text), names))


def discover_stored(model: nn.Module, rule: str) -> Layout:
    """The groups of a network by a file's rule, which is not trusted.

    Raises:
        InvalidMenu: if it is not a rule, or a regular expression that takes too long.
        InvalidModel: see :func:`discover`.
    """

    def matched(text: str, names: list[str]) -> Mapping[str, str | None]:
        try:
            return labels_within_limits(text, names)
        except (re.error, RecursionError, OverflowError, ValueError) as cause:
            raise InvalidMenu(f"the stored grouping {rule[:40]!r} cannot be used: {cause}") from cause

    return replace(_discovered(unwrapped(model), rule, matched), rule=rule)


def _discovered(model: nn.Module, groups: GroupRule, matched: Matcher) -> Layout:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise InvalidModel(f"{name} is not initialised yet; run the model once before compressing it")
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else tensor.layout
            raise InvalidModel(f"{name} is a {kind} tensor, which cannot be stored; make it a dense one of numbers")
    tensors = NetworkTensors(model)
    if not tensors:
        raise InvalidModel("the model has no parameters; there is nothing to compress")
    found: list[Group] = []
    kept: list[Kept] = []
    on_request: dict[str, Group] = {}
    taken: set[str] = set()
    for name, tensor in tensors.items():
        if name in taken:
            continue
        group, reason, may_be_asked_for = _group_of(name, tensors)
        if group is None:
            kept.append(Kept.of(name, tensor, reason))
            if may_be_asked_for:
                on_request[name] = Group(name, "weight", (_member(name, tensors),), _type_name(name, tensors))
        else:
            found.append(group)
            taken.update(member.name for member in group.members)
    labels, rule = _labels(found, on_request, groups, tensors, matched)
    given = labels if isinstance(labels, dict) else {}
    asked_for = [group for name, group in on_request.items() if given.get(name) is not None]
    order = {name: number for number, name in enumerate(tensors)}
    found = sorted([*found, *asked_for], key=lambda group: order[group.name])
    names = {group.name for group in asked_for}
    found, left = _regroup(found, labels, tensors)
    return Layout(
        groups=tuple(found),
        kept=(*(item for item in kept if item.name not in names), *left, *_extra_kept(model)),
        aliases=tensors.aliases,
        original_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        parameters=sum(tensor.numel() for tensor in tensors.parameters().values()),
        rule=rule,
        removed=removals_text(model),
    )


def _extra_kept(model: nn.Module) -> list[Kept]:
    """The state dict's extra state. If some cannot be stored, its reason says so, and saving refuses it."""
    found = []
    for name, value in extra_entries(model).items():
        try:
            size, reason = len(stored_bytes(name, value)), "it is extra state"
        except InvalidModel as refusal:
            size, reason = 0, f"it is extra state that no file can hold: {refusal}"
        found.append(Kept(name, reason, size, (), EXTRA))
    return found


def _member(name: str, tensors: NetworkTensors, inputs_first: int = 0) -> Member:
    tensor = tensors[name].detach()
    return Member(name, tuple(outputs_first(tensor, inputs_first).shape), tensor.dtype, inputs_first=inputs_first)


def _type_name(name: str, tensors: NetworkTensors) -> str:
    return type(tensors.owners(name)[0][0]).__name__


def _group_of(name: str, tensors: NetworkTensors) -> tuple[Group | None, str, bool]:
    """The group of a tensor, or None; why it has none; and whether a caller's grouping may still include it."""
    tensor, owners = tensors[name], tensors.owners(name)
    module, attribute = owners[0]
    if tensor.numel() == 0:
        return None, "it is empty", False
    if isinstance(module, NORMALISATIONS):
        group, reason = _normalisation(module, tensors)
        return group, reason, False
    if not tensor.is_floating_point():
        return None, f"its type is {tensor.dtype}; only floating-point tensors are compressed", False
    if not tensors.is_parameter(name):
        return None, "it is a buffer", False
    computed = why_computed(name, module, attribute)
    if computed is not None:
        return None, computed, False
    roles = [role_of(owner, held_as) for owner, held_as in owners]
    if None in roles:
        other = next(owner for (owner, _), role in zip(owners, roles, strict=True) if role is None)
        return None, *why_unknown(name, other, tensor)
    role = roles[0]
    if role is None or len(set(roles)) > 1:
        return None, "it is used in several different roles", False
    return Group(name, role.kind, (_member(name, tensors, role.inputs_first),), _type_name(name, tensors)), "", False


def _normalisation(module: nn.Module, tensors: NetworkTensors) -> tuple[Group | None, str]:
    owned = [name for name in tensors if tensors.owners(name)[0][0] is module]
    shared = [name for name in owned if len({id(owner) for owner, _ in tensors.owners(name)}) > 1]
    if shared:
        return None, f"{shared[0]} is shared between normalisations"
    statistics = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if statistics and module.running_var is None:
        return None, "its batch normalisation keeps no running statistics, so it cannot be folded"
    epsilon = float(getattr(module, "eps", 0.0)) if statistics else None
    if not any(tensors[name].is_floating_point() for name in owned):
        return None, "it holds no floating-point values"
    members = tuple(_member(name, tensors) for name in owned)
    return Group(owned[0], "normalisation", members, type(module).__name__, epsilon), ""


def _labels(
    found: list[Group], on_request: dict[str, Group], rule: GroupRule, tensors: NetworkTensors, matched: Matcher
) -> tuple[dict[str, str | None] | Literal["filter"], str]:
    """Label of every weight group under the rule, and the rule as text."""
    names = [group.name for group in found if group.kind == "weight"]
    if rule == "layer":
        return {name: name for name in names}, "layer"
    if rule == "filter":
        return "filter", "filter"
    if isinstance(rule, str) and rule.startswith(CUSTOM):
        stored = stored_labels(rule)
        return {name: stored.get(name) for name in (*names, *on_request)}, rule
    labels: dict[str, str | None] = {}
    if isinstance(rule, str):
        try:
            labels = dict(matched(rule, names))
        except re.error as cause:
            raise InvalidMenu(
                f"groups={rule!r} is neither 'layer', 'filter' nor a regular expression ({cause})"
            ) from cause
        _refuse_unmatched(rule, labels)
        rule = re.compile(rule)
    elif isinstance(rule, re.Pattern):
        labels = labels_by(rule, names)
    if isinstance(rule, re.Pattern):
        # An expression that would be read back differently, or slowly, is stored as its groups of this network.
        whole = {name: name if label is None else label for name, label in labels.items()}
        return dict(whole), rule.pattern if is_read_back(rule, labels) else labels_text(whole)
    if not callable(rule):
        raise InvalidMenu(f"groups must be 'layer', 'filter', a regular expression or a function; got {rule!r}")
    for name in (*names, *on_request):
        label = rule(name, tensors.owners(name)[0][0])
        if label is not None and not isinstance(label, str):
            raise InvalidMenu(f"the grouping function must return a name or None for {name}; got {label!r}")
        labels[name] = label
    return labels, labels_text(labels)


def _refuse_unmatched(rule: str, labels: Mapping[str, str | None]) -> None:
    """Refuse an expression that matches nothing, such as a misspelt word."""
    if not labels or any(label is not None for label in labels.values()):
        return
    names = list(labels)
    near = difflib.get_close_matches(rule, ["layer", "filter", "channel", "branch", *names], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidMenu(
        f"groups={rule!r} matches the name of no weight; {hint}Give 'layer', 'filter', a regular expression that "
        f"matches some of {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}, or a function"
    )


def _regroup(
    found: list[Group], labels: dict[str, str | None] | Literal["filter"], tensors: NetworkTensors
) -> tuple[list[Group], list[Kept]]:
    if isinstance(labels, str):
        return [part for group in found for part in _filters(group)], []
    joined: dict[str, list[Group]] = {}
    left: list[Kept] = []
    for group in found:
        label = labels[group.name] if group.kind == "weight" else group.name
        if label is None:
            left.append(Kept.of(group.name, tensors[group.name], LEFT_ALONE))
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
    if group.kind != "weight" or group.module_type in LOOKED_UP:
        return [group]
    member = group.members[0]
    return [
        replace(group, name=f"{member.name}[{row}]", members=(replace(member, rows=(row, row + 1)),))
        for row in range(member.shape[0])
    ]
