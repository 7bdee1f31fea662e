"""Weights in analog cells: variances, protections and the price in cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import qubo_compress as qc
from qubo_compress.calibration.statistics.curvature import Curvature
from qubo_compress.channels import analog_channel
from qubo_compress.menu.operator import choice_name, parse
from qubo_compress.menu.unreliable.analog import Analog
from qubo_compress.network.groups import Group, Member


def _weight(rows: int = 6, columns: int = 40) -> tuple[Group, torch.Tensor]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return Group("w", "weight", (Member("w", (rows, columns), torch.float32),), "Linear"), weight


@pytest.mark.parametrize("settings", [{}, {"cells": 3, "sign": False}, {"small": 0.3, "sparsity": 0.5}])
def test_reads_have_the_stated_mean_and_variance(settings: dict[str, float]) -> None:
    group, weight = _weight()
    packed = Analog(**settings).encode(group, [weight])
    generator = torch.Generator().manual_seed(1)
    found = torch.stack([packed.drawn(generator)[0] for _ in range(4000)])
    variance = packed.variances()[0]
    assert torch.allclose(found.mean(0), packed.tensors()[0], atol=6 * float(variance.max() ** 0.5) / 63)
    assert abs(float(found.var(0).sum() / variance.sum()) - 1) < 0.02
    assert torch.equal(found.var(0) == 0, variance == 0)


def test_noise_is_that_of_the_cells_that_are_written() -> None:
    group, weight = _weight(1, 50)
    part = Analog(cells=2).encode(group, [weight]).parts[0]
    reach = float(part.ranges)
    shares = (part.value().abs() / reach).double().numpy()
    by_hand = (analog_channel("pcm").deviation(shares) * reach) ** 2 / 2
    assert np.allclose(part.variance().numpy(), by_hand, rtol=1e-4)


def test_protections_reduce_the_noise_that_they_are_meant_for() -> None:
    group, weight = _weight()
    plain = Analog(sign=False).encode(group, [weight])
    signed = Analog().encode(group, [weight])
    assert float(signed.variances()[0].sum()) < 0.5 * float(plain.variances()[0].sum())
    gained = Analog(small=0.25).encode(group, [weight])
    own = gained.parts[0].small
    assert own is not None and 0 < int(own.sum()) < own.numel()
    assert float(gained.variances()[0][own].sum()) < 0.5 * float(signed.variances()[0][own].sum())
    pruned = Analog(sparsity=0.5).encode(group, [weight])
    zeros = pruned.tensors()[0] == 0
    assert not pruned.variances()[0][~pruned.parts[0].survivors].any() and int(zeros.sum()) >= 120
    averaged = Analog(cells=4).encode(group, [weight])
    assert float(averaged.variances()[0].sum()) < float(signed.variances()[0].sum()) / 3.5


def test_cells_are_those_of_the_formula() -> None:
    group, weight = _weight()
    price = analog_channel("pcm").cells_per_reliable_bit
    assert Analog(cells=3).encode(group, [weight]).cells == 3 * 240 + math.ceil(8 * (12 + 30) * price)
    assert Analog(sign=False).encode(group, [weight]).cells == 240 + math.ceil(8 * 12 * price)
    assert Analog(sparsity=0.5).encode(group, [weight]).cells == 120 + math.ceil(8 * (12 + 31 + 15) * price)


def test_redundancy_follows_the_curvature_within_its_budget() -> None:
    group, weight = _weight()
    operator = Analog(cells=2.5, redundancy="curvature", block=4)
    diagonal = torch.full_like(weight, 1e-3)
    diagonal[2] = 1.0
    packed = operator.encode_with(group, [weight], {Curvature(): (diagonal,)})
    cells = packed.parts[0].copies_of_survivors().reshape(6, 40).float()
    assert float(cells.mean()) <= 2.5 and float(cells.mean()) > 2.4
    assert float(cells[2].mean()) > 3 * float(cells[[0, 1, 3, 4, 5]].mean())
    harm = [
        float((v * diagonal).sum())
        for v in (packed.variances()[0], Analog(cells=2).encode(group, [weight]).variances()[0])
    ]
    assert harm[0] < 0.4 * harm[1]
    with pytest.raises(qc.errors.InvalidMenu, match="calibration data"):
        operator.encode(group, [weight])


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"cells": 0},
        {"cells": 1.5},
        {"redundancy": "much"},
        {"small": 1.0},
        {"bits": 2},
        {"block": None},
        {"block": "a"},
    ):
        with pytest.raises(qc.errors.InvalidMenu):
            Analog(**wrong)
    with pytest.raises(qc.errors.UnknownName):
        Analog(channel="paper")
    name = choice_name(Analog(cells=2, channel="gaussian"))
    assert name == "analog(cells=2,channel='gaussian')" and parse(name) == Analog(cells=2, channel="gaussian")
