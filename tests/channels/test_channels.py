"""Channels: what is read agrees with the closed forms, and protected bits cost what codes take."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress.channels import (
    AnalogChannel,
    BinaryChannel,
    analog_channel,
    cells_per_protected_bit,
    majority_flip_rate,
    water_filling,
)


@pytest.mark.parametrize("name", qc.channels.names())
def test_writing_inverts_the_mean_response(name: str) -> None:
    channel, targets = analog_channel(name), np.linspace(0, 1, 101)
    assert np.allclose(channel.respond(channel.write(targets)), targets, atol=1e-9)


@pytest.mark.parametrize("name", qc.channels.names())
def test_reads_have_the_mean_and_deviation_of_the_closed_form(name: str) -> None:
    channel, generator = analog_channel(name, noise=2.0), torch.Generator().manual_seed(0)
    for target in (0.0, 0.3, 1.0):
        found = channel.read(torch.full((40_000,), target), generator)
        spread = float(channel.deviation(np.array([target]))[0])
        assert abs(float(found.mean()) - target) < 5 * spread / 200
        assert abs(float(found.std()) / spread - 1) < 0.03


def test_the_phase_change_cell_has_the_published_noise() -> None:
    for share, microsiemens in ((0.0, 0.26348), (1.0, 0.26348 + 1.9650 - 1.1731)):
        assert np.isclose(analog_channel("pcm").deviation(np.array([share]))[0], microsiemens / 25)


def test_majority_votes_are_counted_right() -> None:
    for copies in (1, 3, 5):
        by_hand = sum(
            np.prod([0.2 if flipped else 0.8 for flipped in flips])
            for flips in itertools.product((0, 1), repeat=copies)
            if sum(flips) > copies / 2
        )
        assert np.isclose(majority_flip_rate(0.2, copies), by_hand)


def test_bits_flip_at_the_rate_given() -> None:
    bits = torch.zeros(100_000, dtype=torch.bool)
    assert abs(float(BinaryChannel(0.03).read(bits, torch.Generator().manual_seed(1)).float().mean()) - 0.03) < 0.003


def test_reliable_bits_cost_more_in_poorer_cells_and_never_less_than_the_capacity_allows() -> None:
    rates = np.array([0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.05, 0.1])
    prices = np.array([cells_per_protected_bit(float(rate)) for rate in rates])
    assert (np.diff(prices) > 0).all()
    entropy = -rates[1:] * np.log2(rates[1:]) - (1 - rates[1:]) * np.log2(1 - rates[1:])
    assert (prices[1:] >= 1 / (1 - entropy)).all()
    analog = [analog_channel("pcm", noise).cells_per_reliable_bit for noise in (0.5, 1.0, 2.0, 4.0)]
    assert analog == sorted(analog) and analog[0] < 0.5


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=4), st.integers(0, 9), st.integers(1, 4))
def test_water_filling_is_the_best_of_all_allocations(damages: list[float], extra: int, most: int) -> None:
    sizes = np.ones(len(damages), dtype=np.int64)
    budget = len(damages) + extra
    found = water_filling(np.array(damages), sizes, budget, most)
    assert found.sum() <= budget and found.min() >= 1 and found.max() <= most
    every = (c for c in itertools.product(range(1, most + 1), repeat=len(damages)) if sum(c) <= budget)
    best = min(float((np.array(damages) / np.array(c)).sum()) for c in every)
    assert float((np.array(damages) / found).sum()) <= best + 1e-9 * (1 + best)


def test_water_filling_follows_the_square_root() -> None:
    generator = np.random.default_rng(0)
    damages = generator.gamma(0.3, size=4000)
    cells = water_filling(damages, np.ones(4000, dtype=np.int64), 12_000, 1000)
    assert cells.sum() == 12_000
    continuous = damages.__pow__(0.5).sum() ** 2 / 12_000
    assert continuous <= float((damages / cells).sum()) < 0.65 * damages.sum() / 3


def test_impossible_channels_are_refused() -> None:
    for wrong, said in (
        (lambda: AnalogChannel((0, 1), (1, 0), (0, 0)), "increase"),
        (lambda: AnalogChannel((0, 1), (0, 1), (0, -1)), "negative"),
        (lambda: AnalogChannel((0,), (0,), (0,)), "at least two"),
        (lambda: BinaryChannel(0.7), "0 to 0.5"),
        (lambda: majority_flip_rate(0.1, 2), "odd"),
        (lambda: cells_per_protected_bit(0.5), "cannot be protected"),
        (lambda: water_filling(np.ones(3), np.ones(3, dtype=np.int64), 2, 4), "fewer than one"),
    ):
        with pytest.raises(qc.errors.InvalidChannel, match=said):
            wrong()
    with pytest.raises(qc.errors.UnknownName, match="pcm"):
        analog_channel("pmc")
