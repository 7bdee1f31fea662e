"""The decisions about coupled channels, and the plan that removes some of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from qubo_compress.menu.operator import stored_as
from qubo_compress.menu.storage.file_format import fixed_bytes
from qubo_compress.network.channels import Channels, Removal
from qubo_compress.network.channels.cutting import removal_of_sets
from qubo_compress.network.discovery import discover_stored
from qubo_compress.network.private import independent_copy
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.coupled.compensation import compensated
from qubo_compress.sensitivity.coupled.statistics import ChannelMoments

MOST_DECISIONS = 1200
"""Networks with more sets decide about blocks of them: channels of one family that matter about equally."""

REMOVE = "remove"


@dataclass(frozen=True, eq=False)
class RemovalChoices:
    """What a table needs to know to remove channels.

    Attributes:
        model: the network that was measured.
        channels: its coupled sets.
        blocks: the sets of every decision.
        moments: weight -> moments of what its layer reads.
    """

    model: nn.Module
    channels: Channels
    blocks: tuple[tuple[int, ...], ...]
    moments: Mapping[str, ChannelMoments]

    def gone(self, names: Sequence[str], choices: Mapping[str, str]) -> list[int]:
        """Positions of the sets that leave, from decision name -> choice."""
        pairs = zip(names, self.blocks, strict=True)
        return sorted(number for name, block in pairs if choices[name] == REMOVE for number in block)

    def removed(self, gone: Collection[int]) -> tuple[Removal, dict[str, bytes], int]:
        """What is left, the bytes of every group of the smaller network that compensates, and the size of its file."""
        removal = removal_of_sets(self.channels, gone, self.model)
        values = compensated(self.channels, gone, NetworkTensors(self.model), self.moments)
        whole = independent_copy(self.model)
        NetworkTensors(whole).fill(values)
        small = removal.applied(whole)
        tensors, layout = NetworkTensors(small), discover_stored(small, "layer")
        payloads = {}
        size = fixed_bytes(layout, ("keep",))
        for group in layout.groups:
            stored = stored_as("keep", group, tensors.parts(group))
            size += stored.nbytes
            if any(member.name in values for member in group.members):
                payloads[group.name] = stored.to_bytes()
        return removal, payloads, size


def blocks_of_sets(
    channels: Channels, importance: npt.NDArray[np.float64], together: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Which sets are decided together: each alone, or, if there are very many, those of a family that matter alike.

    Args:
        channels: of the network.
        importance: (S,) of every set.
        together: how many; None: as few as give at most ``MOST_DECISIONS``. A family of fewer sets is one of single
            sets, such as heads.
    """
    families: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for number, item in enumerate(channels.sets):
        families.setdefault(item.family, []).append(number)
    size = together or -(-len(channels.sets) // MOST_DECISIONS)
    found: list[tuple[int, ...]] = []
    for members in families.values():
        ordered = members if size == 1 else sorted(members, key=lambda number: importance[number])
        width = size if len(members) > size else 1
        found += [tuple(ordered[start : start + width]) for start in range(0, len(ordered), width)]
    return tuple(found)


def always_kept(
    channels: Channels, blocks: Sequence[Sequence[int]], importance: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """(G,) the most important block of every family, which stays so that something is left of every axis."""
    best: dict[tuple[tuple[str, int], ...], int] = {}
    for number, block in enumerate(blocks):
        family = channels.sets[block[0]].family
        if family not in best or importance[number] > importance[best[family]]:
            best[family] = number
    kept = np.zeros(len(blocks), dtype=bool)
    kept[[*best.values()]] = True
    return kept
