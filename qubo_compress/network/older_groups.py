"""The groups that version 0.3 made of a network, to tell its files and plans from those of another network.

Version 0.4 began to compress the weights of attention, of recurrent and transposed layers, and of some others. Version
0.3 kept them as they were. Its files hold no version, but they name, or sign, the groups.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from qubo_compress.network.groups import EXTRA, Group, Kept, Layout, Member
from qubo_compress.network.roles import LEFT_ALONE
from qubo_compress.network.tensors import NetworkTensors, Place

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
"""Modules whose weights and biases version 0.3 compressed, beside normalisations."""


def older_layout(model: nn.Module, layout: Layout) -> Layout | None:
    """The layout of version 0.3 by the same rule, or None where nothing is compressed that was not then.

    Args:
        model: the network.
        layout: of this version.

    Example:
        >>> from qubo_compress.network.discovery import discover
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LSTM(2, 2, bias=False))
        >>> older = older_layout(net, discover(net))
        >>> [group.name for group in older.groups], [item.name for item in older.kept]
        (['0.weight'], ['1.weight_ih_l0', '1.weight_hh_l0'])
    """
    layout = replace(layout, kept=tuple(item for item in layout.kept if item.dtype != EXTRA))
    tensors = NetworkTensors(model)
    order = {name: number for number, name in enumerate(tensors)}
    groups: list[Group] = []
    moved: dict[str, Kept] = {}
    for group in layout.groups:
        known = [member for member in group.members if _was_known(group, member, tensors.owners(member.name))]
        newer = [member.name for member in group.members if member not in known]
        moved.update((name, Kept.of(name, tensors[name], "version 0.3 kept it")) for name in newer)
        if len(known) == len(group.members):
            groups.append(group)
        elif known:
            groups.append(replace(group, name=known[0].name, members=tuple(known)))
    if not moved:
        return None
    left_alone = (item.name for item in layout.kept if item.reason == LEFT_ALONE)
    asked = {name for name in left_alone if _compressible(tensors.owners(name))}
    last = [item for item in layout.kept if item.name in asked]
    named = [*moved.values(), *(item for item in layout.kept if item.name not in asked)]
    return replace(
        layout,
        groups=tuple(sorted(groups, key=lambda group: order[group.members[0].name])),
        kept=(*sorted(named, key=lambda item: order[item.name]), *last),
    )


def newer_names(layout: Layout, older: Layout, most: int = 3) -> str:
    """The names of the tensors that the older layout keeps and this one does not, as text."""
    kept = {item.name for item in layout.kept}
    names = [item.name for item in older.kept if item.name not in kept]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _was_known(group: Group, member: Member, owners: list[Place]) -> bool:
    return group.kind == "normalisation" or (not member.inputs_first and _compressible(owners))


def _compressible(owners: list[Place]) -> bool:
    return all(isinstance(module, WEIGHTED) for module, _ in owners)
