"""The decisions about coupled channels, alone or beside the choices of layers, and the network that they leave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qubo_compress.network.channels import Channels
from qubo_compress.network.channels.bypass import constants
from qubo_compress.network.channels.cutting import removal_of_sets
from qubo_compress.network.channels.sets import Family
from qubo_compress.network.private import independent_copy
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.coupled.compensation import compensated
from qubo_compress.sensitivity.coupled.layer_prices import LayerPrices
from qubo_compress.sensitivity.coupled.prices import AxisCounts
from qubo_compress.sensitivity.coupled.remainder import Remainder
from qubo_compress.sensitivity.coupled.statistics import ChannelMoments
from qubo_compress.sensitivity.specimen import Specimen

MOST_DECISIONS = 1200
"""Networks with more sets decide about blocks of them: channels of one family that matter about equally."""

REMOVE = "remove"


@dataclass(frozen=True, eq=False)
class RemovalChoices:
    """What a table needs to know to remove channels.

    Attributes:
        specimen: the network that was measured, with its layers as groups.
        weights: signature of its weights.
        channels: its coupled sets.
        blocks: the sets of every decision.
        moments: weight -> moments of what its layer reads.
        counts: indices that every decision keeps.
        prices: what layers cost whose channels leave, if layers have choices beside the decisions; else None.
    """

    specimen: Specimen
    weights: str
    channels: Channels
    blocks: tuple[tuple[int, ...], ...]
    moments: Mapping[str, ChannelMoments]
    counts: AxisCounts
    prices: LayerPrices | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Groups of the table in front of the decisions."""
        return () if self.prices is None else self.prices.layers

    def gone(self, names: Sequence[str], choices: Mapping[str, str]) -> list[int]:
        """Positions of the sets that leave.

        Args:
            names: of the table's groups.
            choices: group -> choice.
        """
        pairs = zip(names[len(self.layers) :], self.blocks, strict=True)
        return sorted(number for name, block in pairs if choices[name] == REMOVE for number in block)

    def kept(self, names: Sequence[str], choices: Mapping[str, str]) -> npt.NDArray[np.bool_]:
        """(G,) which decisions are to keep."""
        return np.array([choices.get(name, "keep") != REMOVE for name in names[len(self.layers) :]], dtype=bool)

    def without(self, gone: Collection[int]) -> Remainder:
        """The network without some sets; the channels that stay stand in for them."""
        model = self.specimen.model
        removal = removal_of_sets(self.channels, gone, model)
        values = compensated(self.channels, gone, NetworkTensors(model), self.moments)
        whole = independent_copy(model)
        NetworkTensors(whole).fill(values)
        changed = frozenset(values) | constants(removal.bypassed)
        return Remainder(removal.applied(whole), removal, changed, self.specimen, self.weights)


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
    size = together or -(-len(channels.sets) // MOST_DECISIONS)
    found: list[tuple[int, ...]] = []
    for members in branches(channels):
        ordered = [*members] if size == 1 else sorted(members, key=lambda number: importance[number])
        width = size if len(members) > size else 1
        found += [tuple(ordered[start : start + width]) for start in range(0, len(ordered), width)]
    return tuple(found)


def branches(channels: Channels) -> tuple[tuple[int, ...], ...]:
    """The sets of every family, which are decided about together: the inside of a branch."""
    families: dict[Family, list[int]] = {}
    for number, item in enumerate(channels.sets):
        families.setdefault(item.family, []).append(number)
    return tuple(map(tuple, families.values()))


def always_kept(
    channels: Channels, blocks: Sequence[Sequence[int]], importance: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """(G,) the most important block of every family, which stays so that something is left of every axis.

    Not in a family that the network can do without, such as the inner channels of a residual block.
    """
    best: dict[Family, int] = {}
    for number, block in enumerate(blocks):
        family = channels.sets[block[0]].family
        if family in channels.dispensable:
            continue
        if family not in best or importance[number] > importance[best[family]]:
            best[family] = number
    kept = np.zeros(len(blocks), dtype=bool)
    kept[[*best.values()]] = True
    return kept
