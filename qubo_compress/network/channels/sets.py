"""Coupled sets of channels, from the labels of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from qubo_compress.network.channels.labels import IntArray, Ties
from qubo_compress.network.channels.uses import HeadUse, Passage, Reading, Role, Use, Uses
from qubo_compress.network.tensors import NetworkTensors

Family = tuple[tuple[str, int], ...]
"""The axes that some sets have in common."""

TOGETHER = "all channels there are mixed, and only leave together"


@dataclass(frozen=True)
class ChannelSlice:
    """Part of a tensor that belongs to a coupled set.

    Attributes:
        tensor: name of the parameter or buffer.
        axis: in the network's order.
        indices: along the axis.
        role: ``"makes"``: outputs of a layer; ``"reads"``: inputs of a layer; ``"follows"``: one value or filter per
            channel.
    """

    tensor: str
    axis: int
    indices: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class ChannelSet:
    """Channels that can only leave the network together, such as one channel of a residual stream, or one head.

    Attributes:
        name: first layer that makes them, and the first index there, such as ``conv1.weight[3]``.
        slices: everything that leaves.
    """

    name: str
    slices: tuple[ChannelSlice, ...]

    @property
    def family(self) -> Family:
        """The axes it has a part in; sets of one family are alternatives of each other."""
        return tuple(sorted({(part.tensor, part.axis) for part in self.slices}))


@dataclass(frozen=True)
class PinnedChannels:
    """Channels that must stay.

    Attributes:
        name: of the first layer that makes some.
        count: how many.
        reason: why.
    """

    name: str
    count: int
    reason: str


@dataclass(frozen=True, eq=False)
class Channels:
    """The coupled sets of a network.

    Attributes:
        sets: those that can be removed, in the order of the state dict.
        pinned: what must stay, with the reasons.
        readings: what every layer reads.
        passages: modules without tensors that channels pass.
        heads: products of activations.
        set_of: label -> position in ``sets``, -1 for what stays.
        dispensable: if that was asked for, families all of whose sets can leave: a constant can stand in for what they
            make.
    """

    sets: tuple[ChannelSet, ...]
    pinned: tuple[PinnedChannels, ...]
    readings: tuple[Reading, ...] = field(repr=False)
    passages: tuple[Passage, ...] = field(repr=False)
    heads: tuple[HeadUse, ...] = field(repr=False)
    set_of: IntArray = field(repr=False)
    dispensable: frozenset[Family] = field(default=frozenset(), repr=False)

    def of_labels(self, labels: IntArray) -> IntArray:
        """Positions in ``sets`` of some labels; -1 for what stays."""
        return np.where(labels > 0, self.set_of[np.maximum(labels, 0)], -1)

    def without(self, refused: Mapping[str, str]) -> Channels:
        """The same without some sets, by name -> reason."""
        left = [number for number, item in enumerate(self.sets) if item.name not in refused]
        moved = np.full(len(self.sets) + 1, -1)
        moved[left] = np.arange(len(left))
        gone: dict[str, list[str]] = {}
        for item in self.sets:
            if item.name in refused:
                gone.setdefault(f"{item.name.rpartition('[')[0]}\n{refused[item.name]}", []).append(item.name)
        pinned = [PinnedChannels(key.split("\n")[0], len(names), key.split("\n", 1)[1]) for key, names in gone.items()]
        return Channels(
            tuple(self.sets[number] for number in left), (*self.pinned, *pinned), self.readings, self.passages,
            self.heads, moved[self.set_of], self.dispensable & {self.sets[number].family for number in left},
        )  # fmt: skip


def coupled_sets(uses: Uses, ties: Ties, tensors: NetworkTensors) -> Channels:
    """Connect the labels of a run, and list what every connected set takes from every tensor."""
    ties.settle(np.concatenate([np.zeros(0, dtype=np.int64), *(use.labels for use in uses.along)]))
    edges = [*ties.edges, *_repeated(uses.along)]
    component = _components(ties.count, edges)
    along, loose = [*uses.along], []
    for name, given in uses.elements.items():
        elements = given.numpy()
        found = _element_axis(name, component[elements], elements)
        if found is None:
            mixed = np.ptp(component[elements]) == 0
            reason = TOGETHER if mixed else f"{name} is used element by element, and not by channel"
            loose.append((elements.reshape(-1), reason))
        else:
            along.append(found)
    pins = [*ties.pins, *loose]
    pins += [
        (np.concatenate([use.labels for use in along if use.tensor == name] or [np.zeros(0, dtype=np.int64)]), reason)
        for name, reason in uses.opaque.items()
    ]
    reason_of: dict[int, str] = {}
    for labels, reason in pins:
        for number in np.unique(component[labels[labels > 0]]):
            reason_of.setdefault(int(number), reason)
    slices = _slices(along, component, tensors)
    return _listed(slices, reason_of, component, uses)


def _components(count: int, edges: Iterable[IntArray]) -> IntArray:
    """(count + 1,) number of the connected set of every label; label 0 has its own."""
    pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *edges], axis=1)
    graph = sparse.coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(count + 1, count + 1))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _repeated(along: Iterable[Use]) -> list[IntArray]:
    """Edges between labels of one index of one axis, where a tensor is used more than once."""
    first: dict[tuple[str, int], dict[int, int]] = {}
    found = []
    for use in along:
        known = first.setdefault((use.tensor, use.axis), {})
        pairs = [
            (known.setdefault(int(index), int(label)), int(label))
            for index, label in zip(use.indices, use.labels, strict=True)
            if label > 0
        ]
        different = [pair for pair in pairs if pair[0] != pair[1]]
        if different:
            found.append(np.array(different, dtype=np.int64).T)
    return found


def _element_axis(name: str, components: IntArray, labels: IntArray) -> Use | None:
    """The axis along which the elements of a tensor belong to different sets; None if there is no single one."""
    if components.size and components.max() == components.min():
        return None
    for axis in range(components.ndim):
        rows = np.moveaxis(components, axis, 0).reshape(components.shape[axis], -1)
        if (rows == rows[:, :1]).all():
            first = np.moveaxis(labels, axis, 0).reshape(components.shape[axis], -1)[:, 0]
            return Use(name, axis, np.arange(components.shape[axis]), first, "follows")
    return None


def _slices(along: Iterable[Use], component: IntArray, tensors: NetworkTensors) -> dict[int, list[ChannelSlice]]:
    """Connected set -> its slices, in the order of the state dict."""
    order = {name: number for number, name in enumerate(tensors)}
    held: dict[tuple[str, int, Role], dict[int, int]] = {}
    for use in sorted(along, key=lambda use: order[use.tensor]):
        known = held.setdefault((use.tensor, use.axis, use.role), {})
        for index, label in zip(use.indices.tolist(), use.labels.tolist(), strict=True):
            if label > 0:
                known[index] = int(component[label])
    found: dict[int, list[ChannelSlice]] = {}
    for (tensor, axis, role), known in held.items():
        grouped: dict[int, list[int]] = {}
        for index, number in sorted(known.items()):
            grouped.setdefault(number, []).append(index)
        for number, indices in grouped.items():
            found.setdefault(number, []).append(ChannelSlice(tensor, axis, tuple(indices), role))
    return found


def _listed(
    slices: Mapping[int, list[ChannelSlice]], reason_of: Mapping[int, str], component: IntArray, uses: Uses
) -> Channels:
    sets: list[ChannelSet] = []
    numbers: list[int] = []
    kept: dict[tuple[str, str], int] = {}
    for number, parts in slices.items():
        made = [part for part in parts if part.role == "makes"] or [part for part in parts if part.role == "follows"]
        if not made:
            continue
        reason = reason_of.get(number, "" if any(p.role == "makes" for p in parts) else "no layer makes them")
        if reason:
            key = (made[0].tensor, reason)
            kept[key] = kept.get(key, 0) + 1
        else:
            sets.append(ChannelSet(f"{made[0].tensor}[{made[0].indices[0]}]", tuple(parts)))
            numbers.append(number)
    set_of_component = np.full(component.max() + 1 if component.size else 1, -1)
    set_of_component[numbers] = np.arange(len(numbers))
    set_of = set_of_component[component]
    set_of[0] = -1
    pinned = tuple(PinnedChannels(name, count, reason) for (name, reason), count in kept.items())
    return Channels(tuple(sets), pinned, tuple(uses.readings), tuple(uses.passages), tuple(uses.heads), set_of)
