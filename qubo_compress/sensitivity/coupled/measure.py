"""Measures a table whose decisions are coupled channels, to keep or to remove, beside choices of layers if wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch

from qubo_compress.errors import InvalidModel
from qubo_compress.network.channels import Channels, find_channels
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.sensitivity.cache import UnitCache
from qubo_compress.sensitivity.costs import price_choices
from qubo_compress.sensitivity.coupled.choices import RemovalChoices, blocks_of_sets, branches
from qubo_compress.sensitivity.coupled.prices import AxisCounts
from qubo_compress.sensitivity.coupled.rows import removals
from qubo_compress.sensitivity.coupled.statistics import ChannelMoments, channel_moments
from qubo_compress.sensitivity.coupled.table import MeasuredRows, channel_table, layer_prices
from qubo_compress.sensitivity.forecast import forecast_within
from qubo_compress.sensitivity.measurement import BRANCH
from qubo_compress.sensitivity.metrics.products import Products, rows_with
from qubo_compress.sensitivity.preparation import prepared
from qubo_compress.sensitivity.progress import progress_bar, say
from qubo_compress.sensitivity.specimen import Specimen
from qubo_compress.sensitivity.subject import PROBE_EXAMPLES, Subject, Work
from qubo_compress.sensitivity.table import SensitivityTable

BRANCHES_ONLY = "the network cannot do without all of them, and only whole branches are decided about"


def measure_channels(specimen: Specimen) -> SensitivityTable:
    """The table of a network whose choices are to keep or to remove coupled channels.

    Args:
        specimen: the network with its layers as groups; a menu with more than ``keep`` is for these layers.
    """
    started, settings = time.perf_counter(), specimen.settings
    metric = settings.asked if isinstance(settings.asked, Products) else Products()
    weights = NetworkTensors(specimen.model).signature()
    specimen = specimen.private()
    specimen = replace(specimen, settings=replace(specimen.settings, metric=metric))
    with every_layer_runs(), torch.no_grad():
        specimen, subject = _within(specimen, prepared(specimen))
        few = specimen.examples.first(PROBE_EXAMPLES).inputs
        channels = _removable(find_channels(specimen.model, few, settings.about_branches), subject)
        moments = channel_moments(subject.tensors, subject.examples, channels.readings)
        subject = replace(subject, work=Work(_cache(specimen, weights, metric)))
        costs: Mapping[str, IntArray] = {}
        if settings.mixed:
            with progress_bar(settings.progress, "storing choices", len(subject.layout.groups)) as advance:
                found = price_choices(subject, advance)
            costs, subject = found.costs, replace(subject, choices=subject.choices.with_fits(found.fits))
        with progress_bar(settings.progress, "measuring channels (products)", metric.evaluations(subject)) as advance:
            layers, removing = _rows(subject.with_progress(advance), metric, channels, moments)
    if settings.about_branches:
        blocks = branches(channels)
    else:
        blocks = blocks_of_sets(channels, removing.squares, settings.channels_together)
    counts = AxisCounts.of(channels, blocks, subject.tensors)
    prices = layer_prices(subject, counts, costs) if settings.mixed else None
    known = replace(specimen, examples=subject.examples)
    choices = RemovalChoices(known, weights, channels, blocks, moments, counts, prices)
    return channel_table(subject, choices, layers, removing.together(blocks), started)


def _within(specimen: Specimen, subject: Subject) -> tuple[Specimen, Subject]:
    """As many of the examples as the time allows."""
    settings = specimen.settings
    if settings.seconds is None:
        return specimen, subject
    _, forecast = forecast_within(subject, settings)
    if forecast.examples == subject.examples.count:
        return specimen, subject
    if settings.progress:
        say(
            f"measuring channels on {forecast.examples:,} of {subject.examples.count:,} examples, to stay within "
            f"{settings.seconds:g} s"
        )
    fewer = specimen.on(specimen.examples.leading(forecast.examples))
    return fewer, prepared(fewer)


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
    if subject.settings.about_branches:
        found = found.without({item.name: BRANCHES_ONLY for item in found.sets if item.family not in found.dispensable})
    if not found.sets:
        said = "; ".join(f"{pinned.count} of {pinned.name}: {pinned.reason}" for pinned in found.pinned[:4])
        what = "branch" if subject.settings.about_branches else "channels"
        raise InvalidModel(f"no {what} of this network can be removed: {said}")
    return found


def _cache(specimen: Specimen, weights: str, metric: Products) -> UnitCache:
    settings = specimen.settings
    signature = {
        "weights": weights,
        "data": specimen.examples.signature(),
        "groups": BRANCH if settings.about_branches else "channel",
        "menu": ",".join(settings.offered.names),
        "metric": repr(metric),
        "loss": str(settings.loss),
        "options": f"seed={settings.seed} first_order={settings.first_order}",
    }
    return UnitCache(settings.cache, signature)


def _rows(
    subject: Subject, metric: Products, channels: Channels, moments: dict[str, ChannelMoments]
) -> tuple[MeasuredRows, MeasuredRows]:
    """Of the layers' choices, and of removing every set."""
    first = int(subject.offsets[-1])
    added = removals(channels, subject.tensors, moments, first)
    rows, slope = rows_with(subject, metric, added)
    found = MeasuredRows(rows, slope)
    linear = slope + found.squares
    return MeasuredRows(rows[:first], linear[:first]), MeasuredRows(rows[first:], linear[first:])
