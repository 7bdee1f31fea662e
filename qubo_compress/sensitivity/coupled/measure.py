"""Measures a table whose decisions are coupled channels: keep or remove."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from qubo_compress.errors import InvalidModel
from qubo_compress.menu.menu import Menu
from qubo_compress.menu.storage.file_format import fixed_bytes
from qubo_compress.network.channels import Channels, find_channels
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.groups import Group, Layout
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.sensitivity.cache import UnitCache
from qubo_compress.sensitivity.costs import multiplications_per_value
from qubo_compress.sensitivity.coupled.choices import REMOVE, RemovalChoices, always_kept, blocks_of_sets
from qubo_compress.sensitivity.coupled.prices import PairPrices, keeping_prices
from qubo_compress.sensitivity.coupled.rows import removals
from qubo_compress.sensitivity.coupled.statistics import ChannelMoments, channel_moments
from qubo_compress.sensitivity.factor import reduce_features
from qubo_compress.sensitivity.metrics.auto import multiplications
from qubo_compress.sensitivity.metrics.products import Products, rows_with
from qubo_compress.sensitivity.preparation import prepared
from qubo_compress.sensitivity.progress import progress_bar
from qubo_compress.sensitivity.shrinkage import agreement
from qubo_compress.sensitivity.specimen import Specimen
from qubo_compress.sensitivity.subject import PROBE_EXAMPLES, Subject, Work
from qubo_compress.sensitivity.table import Provenance, SensitivityTable

LARGEST_HEADER_SHARE = 512
"""Bytes that the list of removed channels takes in a file, beside a quarter of a byte per channel."""


def measure_channels(specimen: Specimen) -> SensitivityTable:
    """The table of a network whose choices are to keep or to remove coupled channels.

    Args:
        specimen: the network with its layers as groups, and nothing to choose but ``keep``.
    """
    started, settings = time.perf_counter(), specimen.settings
    metric = settings.asked if isinstance(settings.asked, Products) else Products()
    weights = NetworkTensors(specimen.model).signature()
    specimen = specimen.private()
    specimen = replace(specimen, settings=replace(specimen.settings, menu=Menu([]), metric=metric))
    with every_layer_runs(), torch.no_grad():
        subject = prepared(specimen)
        channels = _removable(find_channels(specimen.model, specimen.examples.first(PROBE_EXAMPLES).inputs), subject)
        moments = channel_moments(subject.tensors, subject.examples, channels.readings)
        subject = replace(subject, work=Work(_cache(specimen, weights, metric)))
        with progress_bar(settings.progress, "measuring channels (products)", metric.evaluations(subject)) as advance:
            rows, linear = _rows(subject.with_progress(advance), metric, channels, moments)
    importance = 0.5 * np.einsum("vc,vc->v", rows, rows, dtype=np.float64)
    blocks = blocks_of_sets(channels, importance, settings.channels_together)
    rows = np.stack([rows[list(block)].sum(0) for block in blocks])
    linear = np.array([linear[list(block)].sum() for block in blocks])
    linear = linear + 0.5 * np.einsum("vc,vc->v", rows, rows, dtype=np.float64)
    kept = always_kept(channels, blocks, linear)
    return _table(
        subject, RemovalChoices(specimen.model, channels, blocks, moments), kept, rows, linear, weights, started
    )


def _removable(channels: Channels, subject: Subject) -> Channels:
    """The sets whose readers can be measured."""
    known = {
        member.name for group in subject.layout.groups for member in group.members if member.dtype.is_floating_point
    }
    refused = {
        item.name: f"what reads them, {part.tensor}, is no weight of a known layer"
        for item in channels.sets
        for part in item.slices
        if part.role == "reads" and part.tensor not in known
    }
    found = channels.without(refused)
    if not found.sets:
        said = "; ".join(f"{pinned.count} of {pinned.name}: {pinned.reason}" for pinned in found.pinned[:4])
        raise InvalidModel(f"no channels of this network can be removed: {said}")
    return found


def _cache(specimen: Specimen, weights: str, metric: Products) -> UnitCache:
    settings = specimen.settings
    signature = {
        "weights": weights,
        "data": specimen.examples.signature(),
        "groups": "channel",
        "metric": repr(metric),
        "loss": str(settings.loss),
        "options": f"seed={settings.seed} first_order={settings.first_order}",
    }
    return UnitCache(settings.cache, signature)


def _rows(
    subject: Subject, metric: Products, channels: Channels, moments: dict[str, ChannelMoments]
) -> tuple[np.ndarray, FloatArray]:
    """(S, columns) rows and (S,) slopes of removing every set."""
    first = int(subject.offsets[-1])
    added = removals(channels, subject.tensors, moments, first)
    rows, slope = rows_with(subject, metric, added)
    return rows[first:], slope[first:]


def _table(
    subject: Subject, choices: RemovalChoices, always: np.ndarray, rows: np.ndarray, linear: FloatArray, weights: str,
    started: float,
) -> SensitivityTable:  # fmt: skip
    settings = subject.settings
    names = [choices.channels.sets[block[0]].name for block in choices.blocks]
    offered = tuple(("keep",) if fixed else ("keep", REMOVE) for fixed in always)
    offsets = np.concatenate([[0], np.cumsum([len(group) for group in offered])]).astype(np.int64)
    removing = offsets[:-1][~always] + 1
    features = np.zeros((int(offsets[-1]), rows.shape[1]), dtype=np.float32)
    features[removing] = rows[~always]
    terms = np.zeros(int(offsets[-1]))
    terms[removing] = linear[~always]
    trust = 0.0
    if settings.interactions:
        half = np.repeat(np.arange(subject.examples.count) % 2 == 1, rows.shape[1] // subject.examples.count)
        generator = np.random.default_rng(subject.seed)
        trust = agreement(features, half, offsets, generator)
        trust = float(settings.interactions) if not isinstance(settings.interactions, bool) else trust
    factor, dropped = reduce_features(features, settings.max_rank, subject.seed)
    prices = _prices(subject, choices)
    costs = {name: np.zeros(int(offsets[-1]), dtype=np.int64) for name in prices}
    pairs = {}
    for name, price in prices.items():
        costs[name][offsets[:-1]] = price.linear
        spread = price.pairs.tocoo()
        where = (offsets[spread.row], offsets[spread.col])
        pairs[name] = type(price.pairs)((spread.data, where), shape=(int(offsets[-1]),) * 2)
    stays = "one of these channels has to stay"
    return SensitivityTable(
        layout=_layout(subject.layout, names),
        menu_names=("keep", REMOVE),
        choices=offered,
        linear=terms,
        costs=costs,
        fixed_costs={name: price.fixed for name, price in prices.items()},
        provenance=Provenance(
            "products", str(settings.loss), subject.examples.count, _baseline(subject), 0,
            time.perf_counter() - started, dropped, 1.0, weights, subject.cache.loaded, trust,
            multiplications(subject),
        ),
        factor=np.asarray(factor * np.float32(trust**0.5), dtype=np.float32) if settings.interactions else None,
        divergence=terms.copy(),
        kept_because={name: stays for name, fixed in zip(names, always, strict=True) if fixed},
        pair_costs=pairs,
        removals=choices,
    )  # fmt: skip


def _baseline(subject: Subject) -> float:
    """Mean loss of the network on the examples."""
    total = 0.0
    for number, part in subject.slices():
        rows = subject.reference[number]
        values = subject.loss.values(rows, part.targets, rows).double()
        total += float((values * subject.row_weights(number)).sum())
    return total


def _prices(subject: Subject, choices: RemovalChoices) -> dict[str, PairPrices]:
    """Budget name -> cost of keeping every block."""
    sizes = {name: tensor.element_size() for name, tensor in subject.tensors.items()}
    times = {
        member.name: count
        for group in subject.layout.groups
        for member, count in zip(
            group.members, multiplications_per_value(subject.tensors, group, subject.trace), strict=True
        )
    }
    held = keeping_prices(choices.channels, choices.blocks, subject.tensors, sizes)
    made = keeping_prices(choices.channels, choices.blocks, subject.tensors, times)
    extra = fixed_bytes(subject.layout, ("keep",)) - sum(kept.nbytes for kept in subject.layout.kept)
    extra += LARGEST_HEADER_SHARE + len(choices.channels.sets) // 4 + 24 * len(subject.tensors)
    return {
        "bytes": PairPrices(held.fixed + extra, held.linear, held.pairs),
        "macs": made,
        "bit_operations": PairPrices(1024 * made.fixed, 1024 * made.linear, 1024 * made.pairs),
        "cells": PairPrices(8 * held.fixed, 8 * held.linear, 8 * held.pairs),
    }


def _layout(layout: Layout, names: list[str]) -> Layout:
    """The decisions as groups, in the layout of the whole network."""
    groups = tuple(Group(name, "channels", (), "ChannelSet") for name in names)
    return replace(layout, groups=groups, kept=(), rule="channel")
