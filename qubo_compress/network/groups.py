"""Decision groups: which tensors of a network are compressed together, and which are left alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from qubo_compress.errors import InvalidMenu, InvalidModel
from qubo_compress.network.extra_state import extra_entries, stored_bytes
from qubo_compress.network.patterns import labels_by, labels_within_limits
from qubo_compress.network.roles import LEFT_ALONE, Kind, role_of, why_computed, why_unknown
from qubo_compress.network.stored_groups import CUSTOM, is_read_back, labels_text, stored_labels
from qubo_compress.network.wrappers import unwrapped

NORMALISATIONS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
)  # fmt: skip
"""Modules whose vectors together are one group of kind ``"normalisation"``."""

GroupRule = str | re.Pattern[str] | Callable[[str, nn.Module], str | None]
"""``"layer"``, ``"filter"``, a regular expression, or a function (parameter name, module) -> group name or None."""

Matcher = Callable[[str, list[str]], Mapping[str, str | None]]
"""(regular expression, names) -> label of each name, or None; see :mod:`qubo_compress.network.patterns`."""

LOOKED_UP = ("Embedding", "EmbeddingBag")
"""Class names of modules that pick rows of their weight, which are no filters."""


@dataclass(frozen=True)
class Member:
    """One tensor of a group, or some rows of it, with its output rows along the first axis.

    Attributes:
        name: first name of the parameter or buffer in the state dict.
        shape: its whole shape, outputs first.
        dtype: its dtype.
        rows: first and last-but-one row that the group owns, or None for all.
        inputs_first: 0 where the network holds the tensor in that order. Else it holds (inputs, outputs, *kernel),
            in so many blocks along the inputs that have outputs of their own: 1 for transformers' ``Conv1D``, and
            the groups of a transposed convolution.

    Example:
        >>> member = Member("w", (3, 2), torch.float32, inputs_first=1)
        >>> member.part(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
        [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: tuple[int, int] | None = None
    inputs_first: int = 0

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

    def part(self, held: Tensor, leading: int = 0) -> Tensor:
        """What the group owns of a tensor that the network holds, outputs first.

        Args:
            held: (*leading axes, *axes of the tensor), such as one gradient per example.
            leading: how many axes come before those of the tensor.
        """
        whole = outputs_first(held, self.inputs_first, leading)
        return whole if self.rows is None else whole.narrow(leading, self.rows[0], self.rows[1] - self.rows[0])

    def placed(self, held: Tensor, value: Tensor) -> Tensor:
        """The tensor as the network holds it with the group's part replaced; ``held`` is not changed."""
        if self.rows is None:
            return self.in_network_order(value.to(held.device))
        changed = held.clone()
        self.write(changed, value)
        return changed

    def write(self, held: Tensor, value: Tensor) -> None:
        """Replace the group's part of a tensor that the network holds, in place."""
        if self.rows is None:
            held.copy_(self.in_network_order(value))
        elif not self.inputs_first:
            held[self.rows[0] : self.rows[1]] = value.to(held.device)
        else:
            # Splitting and exchanging axes gives views, which reshape would not.
            blocks = held.unflatten(0, (self.inputs_first, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
            rows = torch.arange(*self.rows, device=held.device)
            blocks[rows // blocks.shape[1], rows % blocks.shape[1]] = value.to(held.device)

    def in_network_order(self, whole: Tensor) -> Tensor:
        """A whole tensor, outputs first, as the network holds it."""
        if not self.inputs_first:
            return whole
        blocks = whole.reshape(self.inputs_first, -1, *whole.shape[1:]).transpose(1, 2)
        return blocks.reshape(-1, *blocks.shape[2:]).contiguous()


def outputs_first(held: Tensor, inputs_first: int, leading: int = 0) -> Tensor:
    """A tensor that the network holds, with its output rows first; see :class:`Member`.

    Example:
        >>> outputs_first(torch.zeros(4, 3, 5), inputs_first=2).shape
        torch.Size([6, 2, 5])
    """
    if not inputs_first:
        return held
    before, (inputs, outputs, *kernel) = held.shape[:leading], held.shape[leading:]
    blocks = held.reshape(*before, inputs_first, inputs // inputs_first, outputs, *kernel)
    turned = blocks.transpose(leading + 1, leading + 2)
    return turned.reshape(*before, inputs_first * outputs, inputs // inputs_first, *kernel)


def assembled(parts: Iterable[tuple[Member, Tensor]]) -> dict[str, Tensor]:
    """First name -> whole tensor as the network holds it, of members that together own all its rows.

    Gradients flow from the tensors to the parts.
    """
    found: dict[str, list[tuple[Member, Tensor]]] = {}
    for member, value in parts:
        found.setdefault(member.name, []).append((member, value))
    whole = {}
    for name, pieces in found.items():
        ordered = sorted(pieces, key=lambda piece: piece[0].rows or (0, 0))
        value = ordered[0][1] if len(ordered) == 1 else torch.cat([piece for _, piece in ordered])
        whole[name] = ordered[0][0].in_network_order(value)
    return whole


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


EXTRA = "extra state"
"""Stands for the dtype of what the state dict holds beside tensors."""


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


def kept_text(kept: Sequence[Kept], most: int = 4) -> str:
    """The largest kept tensors with their sizes and reasons, in words.

    Example:
        >>> kept_text((Kept("mask", "it is a buffer", 40), Kept("empty", "it is empty", 0)))
        'mask (40 bytes: it is a buffer)'
    """
    largest = sorted((item for item in kept if item.nbytes), key=lambda item: -item.nbytes)
    said = [f"{item.name} ({item.nbytes:,} bytes: {item.reason})" for item in largest[:most]]
    return "; ".join(said) + (f"; and {len(largest) - most} more" if len(largest) > most else "")


@dataclass(frozen=True)
class Entry:
    """A tensor of a network: its first name, where it is held under that name, and every place that holds it."""

    name: str
    tensor: Tensor
    module: nn.Module
    attribute: str
    is_parameter: bool
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)


def state_entries(model: nn.Module) -> tuple[dict[str, Entry], dict[str, str]]:
    """Unique parameters and persistent buffers by first name, and the aliases of shared ones."""
    entries: dict[str, Entry] = {}
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
                entries[name] = Entry(name, tensor, module, attribute, attribute in module._parameters)
            entries[known].owners.append((module, attribute))
    return entries, aliases


def discover(model: nn.Module, groups: GroupRule = "layer") -> Layout:
    """Find the decision groups of a network.

    Args:
        model: any module; nothing in it is changed.
        groups: ``"layer"``: one group per weight tensor; ``"filter"``: one per output row of weights that multiply;
            a regular expression: weights whose names match with equal captured text share a group; or a function
            (parameter name, owning module) -> group label, None to keep. A function is also asked for parameters of
            two or more axes whose use is not known, which are kept otherwise.

    Raises:
        InvalidMenu: for a rule that is none of these, or text that matches no weight's name.
        InvalidModel: when the network has no tensors, a parameter that was never initialised, or cannot be looked
            into (see :func:`qubo_compress.network.unwrapped`).

    Example:
        >>> layout = discover(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
        >>> [(group.name, group.kind) for group in layout.groups]
        [('0.weight', 'weight'), ('0.bias', 'bias'), ('1.weight', 'normalisation')]
    """
    return _discovered(unwrapped(model), groups, lambda text, names: labels_by(re.compile(text), names))


def discover_stored(model: nn.Module, rule: str) -> Layout:
    """The groups of a network by the rule of a file, which may be anything.

    Raises:
        InvalidMenu: when it is no rule, or a regular expression that takes too long.
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
    entries, aliases = state_entries(model)
    if not entries:
        raise InvalidModel("the model has no parameters; there is nothing to compress")
    found: list[Group] = []
    kept: list[Kept] = []
    on_request: dict[str, Group] = {}
    taken: set[str] = set()
    for name, entry in entries.items():
        if name in taken:
            continue
        group, reason, may_be_asked_for = _group_of(entry, entries)
        if group is None:
            kept.append(_kept(entry, reason))
            if may_be_asked_for:
                on_request[name] = Group(name, "weight", (_member(entry),), type(entry.module).__name__)
        else:
            found.append(group)
            taken.update(member.name for member in group.members)
    labels, rule = _labels(found, on_request, groups, entries, matched)
    given = labels if isinstance(labels, dict) else {}
    asked_for = [group for name, group in on_request.items() if given.get(name) is not None]
    order = {name: number for number, name in enumerate(entries)}
    found = sorted([*found, *asked_for], key=lambda group: order[group.name])
    names = {group.name for group in asked_for}
    found, left = _regroup(found, labels, entries)
    return Layout(
        groups=tuple(found),
        kept=(*(item for item in kept if item.name not in names), *left, *_extra_kept(model)),
        aliases=aliases,
        original_bytes=sum(e.tensor.numel() * e.tensor.element_size() for e in entries.values()),
        parameters=sum(e.tensor.numel() for e in entries.values() if e.is_parameter),
        rule=rule,
    )


def _extra_kept(model: nn.Module) -> list[Kept]:
    """What the state dict holds beside tensors; where it cannot be stored, the reason says so, and saving refuses."""
    found = []
    for name, value in extra_entries(model).items():
        try:
            size, reason = len(stored_bytes(name, value)), "it is extra state"
        except InvalidModel as refusal:
            size, reason = 0, f"it is extra state that no file can hold: {refusal}"
        found.append(Kept(name, reason, size, (), EXTRA))
    return found


def _kept(entry: Entry, reason: str) -> Kept:
    tensor = entry.tensor
    return Kept(entry.name, reason, tensor.numel() * tensor.element_size(), tuple(tensor.shape), str(tensor.dtype))


def _member(entry: Entry, inputs_first: int = 0) -> Member:
    shape = outputs_first(entry.tensor.detach(), inputs_first).shape
    return Member(entry.name, tuple(shape), entry.tensor.dtype, inputs_first=inputs_first)


def _group_of(entry: Entry, entries: dict[str, Entry]) -> tuple[Group | None, str, bool]:
    """The group of a tensor, or None, why it has none, and whether a caller's grouping may ask for it."""
    kind_name = type(entry.module).__name__
    if entry.tensor.numel() == 0:
        return None, "it is empty", False
    if isinstance(entry.module, NORMALISATIONS):
        group, reason = _normalisation(entry, entries)
        return group, reason, False
    if not entry.tensor.is_floating_point():
        return None, f"its type is {entry.tensor.dtype}; only floating-point tensors are compressed", False
    if not entry.is_parameter:
        return None, "it is a buffer", False
    computed = why_computed(entry.name, entry.module, entry.attribute)
    if computed is not None:
        return None, computed, False
    roles = [role_of(module, attribute) for module, attribute in entry.owners]
    if None in roles:
        other = next(m for (m, _), role in zip(entry.owners, roles, strict=True) if role is None)
        return None, *why_unknown(entry.name, other, entry.tensor)
    role = roles[0]
    if role is None or len(set(roles)) > 1:
        return None, "it is used in several different roles", False
    return Group(entry.name, role.kind, (_member(entry, role.inputs_first),), kind_name), "", False


def _normalisation(entry: Entry, entries: dict[str, Entry]) -> tuple[Group | None, str]:
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
    kind_name = type(entry.module).__name__
    return Group(owned[0].name, "normalisation", tuple(_member(e) for e in owned), kind_name, epsilon), ""


def _labels(
    found: list[Group], on_request: dict[str, Group], rule: GroupRule, entries: dict[str, Entry], matched: Matcher
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
        # Text that would be read back as something else, or slowly, is stored by what it made of this network.
        whole = {name: name if label is None else label for name, label in labels.items()}
        return dict(whole), rule.pattern if is_read_back(rule, labels) else labels_text(whole)
    if not callable(rule):
        raise InvalidMenu(f"groups must be 'layer', 'filter', a regular expression or a function; got {rule!r}")
    for name in (*names, *on_request):
        label = rule(name, entries[name].module)
        if label is not None and not isinstance(label, str):
            raise InvalidMenu(f"the grouping function must return a name or None for {name}; got {label!r}")
        labels[name] = label
    return labels, labels_text(labels)


def _refuse_unmatched(rule: str, labels: Mapping[str, str | None]) -> None:
    """An expression must match something: a misspelt word is one that matches nothing."""
    if not labels or any(label is not None for label in labels.values()):
        return
    names = list(labels)
    near = difflib.get_close_matches(rule, ["layer", "filter", *names], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidMenu(
        f"groups={rule!r} matches the name of no weight; {hint}Give 'layer', 'filter', a regular expression that "
        f"matches some of {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}, or a function"
    )


def _regroup(
    found: list[Group], labels: dict[str, str | None] | Literal["filter"], entries: dict[str, Entry]
) -> tuple[list[Group], list[Kept]]:
    if isinstance(labels, str):
        return [part for group in found for part in _filters(group)], []
    joined: dict[str, list[Group]] = {}
    left: list[Kept] = []
    for group in found:
        label = labels[group.name] if group.kind == "weight" else group.name
        if label is None:
            left.append(_kept(entries[group.name], LEFT_ALONE))
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
