"""The table of decisions about channels, alone or behind the choices of the layers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.menu.storage.file_format import fixed_bytes
from qubo_compress.network.groups import Group, Layout
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.sensitivity.costs import multiplications_per_value
from qubo_compress.sensitivity.coupled.choices import REMOVE, RemovalChoices, always_kept
from qubo_compress.sensitivity.coupled.layer_prices import LayerPrices
from qubo_compress.sensitivity.coupled.prices import AxisCounts, PairPrices
from qubo_compress.sensitivity.factor import reduce_features
from qubo_compress.sensitivity.metrics.auto import multiplications
from qubo_compress.sensitivity.provenance import Provenance
from qubo_compress.sensitivity.shrinkage import agreement
from qubo_compress.sensitivity.subject import Subject
from qubo_compress.sensitivity.table import SensitivityTable

LARGEST_HEADER_SHARE = 512
"""Bytes that the list of removed channels takes in a file, beside a quarter of a byte per channel."""

STAYS = "one of these channels has to stay"

SIZES, WORK = ("bytes", "cells"), ("macs", "bit_operations")


@dataclass(frozen=True, eq=False)
class MeasuredRows:
    """Rows and linear terms of some choices.

    Attributes:
        rows: (V, columns) float32.
        linear: (V,) their divergences, to second order.
    """

    rows: npt.NDArray[np.float32]
    linear: FloatArray

    @property
    def squares(self) -> FloatArray:
        """(V,) half the squared rows."""
        return np.asarray(0.5 * np.einsum("vc,vc->v", self.rows, self.rows, dtype=np.float64))

    def together(self, blocks: Sequence[Sequence[int]]) -> MeasuredRows:
        """One choice for each block of several, whose displacements add up."""
        slopes = self.linear - self.squares
        joined = MeasuredRows(
            np.stack([self.rows[list(block)].sum(0) for block in blocks]),
            np.array([slopes[list(block)].sum() for block in blocks]),
        )
        return replace(joined, linear=joined.linear + joined.squares)


def channel_table(
    subject: Subject, choices: RemovalChoices, layers: MeasuredRows, removing: MeasuredRows, started: float
) -> SensitivityTable:
    """The table of the layers' choices, if they have any, and of the decisions.

    Args:
        subject: the measurement.
        choices: the decisions.
        layers: of the subject's choices.
        removing: of removing each block.
        started: when the measurement began, by ``time.perf_counter``.
    """
    names = [choices.channels.sets[block[0]].name for block in choices.blocks]
    always = always_kept(choices.channels, choices.blocks, removing.linear)
    decisions = tuple(("keep",) if fixed else ("keep", REMOVE) for fixed in always)
    layer_choices = () if choices.prices is None else tuple(tuple(each) for each in subject.choices)
    offered = (*layer_choices, *decisions)
    offsets = np.concatenate([[0], np.cumsum([len(group) for group in offered])]).astype(np.int64)
    rows = np.zeros((int(offsets[-1]), removing.rows.shape[1]), dtype=np.float32)
    linear = np.zeros(len(rows))
    first = len(choices.layers)
    if first:
        rows[: offsets[first]], linear[: offsets[first]] = layers.rows, layers.linear
    where = offsets[first:-1][~always] + 1
    rows[where], linear[where] = removing.rows[~always], removing.linear[~always]
    trust, factor, dropped = _factor(subject, rows, offsets)
    costs, fixed, pairs = _priced(subject, choices, offsets)
    menu_names = (*(subject.settings.offered.names if first else ("keep",)),)
    return SensitivityTable(
        layout=_layout(subject.layout, names, choices.prices is not None),
        menu_names=menu_names if REMOVE in menu_names else (*menu_names, REMOVE),
        choices=offered,
        linear=linear,
        costs=costs,
        fixed_costs=fixed,
        provenance=Provenance(
            "products", str(subject.settings.loss), subject.examples.count, subject.mean_loss(subject.reference), 0,
            time.perf_counter() - started, dropped, 1.0, choices.weights, subject.cache.loaded, trust,
            multiplications(subject),
        ),
        factor=factor,
        divergence=linear.copy(),
        kept_because={
            **subject.choices.kept_because, **{name: STAYS for name, one in zip(names, always, strict=True) if one}
        },
        pair_costs=pairs,
        removals=choices,
    )  # fmt: skip


def _factor(
    subject: Subject, rows: npt.NDArray[np.float32], offsets: IntArray
) -> tuple[float, npt.NDArray[np.float32] | None, float]:
    """Trust in the pairs, the factor, and the share of the rows that it lacks."""
    settings = subject.settings
    if not settings.interactions:
        return 0.0, None, 0.0
    if isinstance(settings.interactions, bool):
        half = np.repeat(np.arange(subject.examples.count) % 2 == 1, rows.shape[1] // subject.examples.count)
        trust = agreement(rows, half, offsets, np.random.default_rng(subject.seed))
    else:
        trust = float(settings.interactions)
    factor, dropped = reduce_features(rows, settings.max_rank, subject.seed)
    return trust, np.asarray(factor * np.float32(trust**0.5), dtype=np.float32), dropped


def layer_prices(subject: Subject, counts: AxisCounts, costs: Mapping[str, IntArray]) -> LayerPrices:
    """Costs of the layers' choices, and how much of each layer the decisions leave.

    Args:
        subject: the measurement.
        counts: of the decisions.
        costs: budget -> (V,) cost of every choice with all channels.
    """
    groups, offsets = subject.layout.groups, subject.offsets
    sizes, work = _tensor_prices(subject)
    of_group = [{member.name for member in group.members} for group in groups]
    left = {
        "size": [counts.priced({name: sizes[name] for name in names}) for names in of_group],
        "work": [counts.priced({name: work[name] for name in names}) for names in of_group],
    }
    kinds = {**dict.fromkeys(SIZES, "size"), **dict.fromkeys(WORK, "work")}
    nothing = PairPrices.nothing(counts.decisions)
    grouped = set().union(*of_group)
    loose = counts.priced({name: size for name, size in sizes.items() if name not in grouped})
    extra = _header(subject, subject.settings.offered.names, counts)
    return LayerPrices(
        tuple(group.name for group in groups),
        {
            name: [
                dict(zip(each, costs[name][first : first + len(each)].tolist(), strict=True))
                for each, first in zip(subject.choices, offsets[:-1].tolist(), strict=True)
            ]
            for name in kinds
        },
        {name: left[kind] for name, kind in kinds.items()},
        {**dict.fromkeys(kinds, nothing), "bytes": replace(loose, fixed=loose.fixed + extra)},
    )


def _priced(
    subject: Subject, choices: RemovalChoices, offsets: IntArray
) -> tuple[dict[str, IntArray], dict[str, int], dict[str, sparse.csr_array]]:
    """Costs, fixed costs and pair costs; beside choices of layers, the latter depend on the plan to expand around."""
    count = int(offsets[-1])
    if choices.prices is not None:
        found = {}
        for name, layers in choices.prices.whole.items():
            found[name] = np.zeros(count, dtype=np.int64)
            found[name][: offsets[len(layers)]] = [cost for layer in layers for cost in layer.values()]
        return found, {"bytes": choices.prices.rest["bytes"].fixed}, {}
    costs, pairs, prices = {}, {}, _channel_prices(subject, choices.counts)
    for name, price in prices.items():
        costs[name] = np.zeros(count, dtype=np.int64)
        costs[name][offsets[:-1]] = price.linear
        spread = price.pairs.tocoo()
        places = (offsets[spread.row], offsets[spread.col])
        pairs[name] = type(price.pairs)((spread.data, places), shape=(count, count))
    return costs, {name: price.fixed for name, price in prices.items()}, pairs


def _channel_prices(subject: Subject, counts: AxisCounts) -> dict[str, PairPrices]:
    """Budget name -> cost of keeping every block, with every layer as it is."""
    sizes, work = _tensor_prices(subject)
    held, made = counts.priced(sizes), counts.priced(work)
    extra = _header(subject, ("keep",), counts)
    return {"bytes": replace(held, fixed=held.fixed + extra), "macs": made,
            "bit_operations": made.times(1024), "cells": held.times(8)}  # fmt: skip


def _tensor_prices(subject: Subject) -> tuple[dict[str, int], dict[str, int]]:
    """Tensor -> bytes, and multiplications, of one of its numbers."""
    sizes = {name: tensor.element_size() for name, tensor in subject.tensors.items()}
    work = {
        member.name: count
        for group in subject.layout.groups
        for member, count in zip(
            group.members, multiplications_per_value(subject.tensors, group, subject.trace), strict=True
        )
    }
    return sizes, work


def _header(subject: Subject, menu_names: Sequence[str], counts: AxisCounts) -> int:
    """Most bytes of a file that belong to no tensor."""
    kept = sum(item.nbytes for item in subject.layout.kept if item.name in subject.tensors)
    extra = fixed_bytes(subject.layout, menu_names) - kept
    return extra + LARGEST_HEADER_SHARE + counts.sets // 4 + 24 * len(subject.tensors)


def _layout(layout: Layout, names: list[str], with_layers: bool) -> Layout:
    """The layers, if they have choices, and the decisions as groups, in the layout of the whole network."""
    decisions = tuple(Group(name, "channels", (), "ChannelSet") for name in names)
    if with_layers:
        return replace(layout, groups=(*layout.groups, *decisions), rule="channel")
    return replace(layout, groups=decisions, kept=(), rule="channel")
