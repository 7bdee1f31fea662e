"""Codes in cells that flip: exact mean and variance, unequal protection, the price in cells."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import qubo_compress as qc
from qubo_compress.channels import cells_per_protected_bit
from qubo_compress.menu.unreliable.digital import Digital, bit_code
from qubo_compress.network.groups import Group, Member


def _weight(rows: int = 5, columns: int = 30) -> tuple[Group, torch.Tensor]:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return Group("w", "weight", (Member("w", (rows, columns), torch.float32),), "Linear"), weight


@pytest.mark.parametrize("representation", ["sign-magnitude", "offset"])
def test_mean_and_variance_are_those_of_all_flips(representation: str) -> None:
    rates = (0.3, 0.1, 0.02)
    code = bit_code(3, representation, rates)
    for pattern in range(8):
        chances, values = [], []
        for flips in itertools.product((0, 1), repeat=3):
            chances.append(np.prod([p if flipped else 1 - p for flipped, p in zip(flips, rates, strict=True)]))
            values.append(float(code.values[pattern ^ (4 * flips[0] + 2 * flips[1] + flips[2])]))
        mean = np.dot(chances, values)
        assert np.isclose(float(code.means[pattern]), mean, atol=1e-6)
        assert np.isclose(float(code.variances[pattern]), np.dot(chances, np.square(values)) - mean**2, atol=1e-5)


def test_without_flips_an_offset_code_errs_as_equal_flips_say() -> None:
    code = bit_code(4, "offset", (0.01,) * 4)
    # p (1 - p) sum of 4^k: the notes' closed form.
    assert torch.allclose(code.variances, torch.full((16,), 0.01 * 0.99 * 85))


@pytest.mark.parametrize("settings", [{}, {"copies": (3, 1, 1, 1)}, {"representation": "offset", "sparsity": 0.4}])
def test_reads_have_the_stated_mean_and_variance(settings: dict[str, object]) -> None:
    group, weight = _weight()
    packed = Digital(4, flip_rate=0.05, **settings).encode(group, [weight])  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    found = torch.stack([packed.drawn(generator)[0] for _ in range(4000)])
    variance = packed.variances()[0]
    assert torch.allclose(found.mean(0), packed.tensors()[0], atol=6 * float(variance.max() ** 0.5) / 63)
    assert abs(float(found.var(0).sum() / variance.sum()) - 1) < 0.03


def test_protecting_the_sign_is_worth_more_than_protecting_the_last_bit() -> None:
    group, weight = _weight()
    spread = {
        copies: float(Digital(4, 0.02, copies).encode(group, [weight]).variances()[0].sum())
        for copies in ((1, 1, 1, 1), (3, 1, 1, 1), (1, 1, 1, 3), (0, 0, 0, 0))
    }
    assert spread[3, 1, 1, 1] < spread[1, 1, 1, 3] < spread[1, 1, 1, 1] and spread[0, 0, 0, 0] == 0


def test_cells_are_those_of_the_formula() -> None:
    group, weight = _weight()
    price = cells_per_protected_bit(0.01)
    assert Digital(4).encode(group, [weight]).cells == 150 * 4 + math.ceil(80 * price)
    assert Digital(4, copies=(5, 3, 1, 1)).encode(group, [weight]).cells == 150 * 10 + math.ceil(80 * price)
    assert Digital(4, copies=(0, 1, 1, 1)).encode(group, [weight]).cells == 150 * 3 + math.ceil((80 + 150) * price)


def test_the_bias_of_flips_is_made_up_for() -> None:
    weight = torch.linspace(-1, 1, 64).reshape(1, 64)
    group = Group("w", "weight", (Member("w", (1, 64), torch.float32),), "Linear")
    packed = Digital(8, flip_rate=0.05).encode(group, [weight])
    inner = weight.abs() < 0.5
    assert float((packed.tensors()[0] - weight)[inner].abs().max()) < 0.05


def test_settings_out_of_range_are_refused() -> None:
    for wrong in (
        {"bits": 1},
        {"bits": 4, "copies": (1, 1)},
        {"bits": 4, "copies": 3},
        {"bits": 4, "representation": "gray"},
    ):
        with pytest.raises(qc.errors.InvalidMenu):
            Digital(**wrong)
    for wrong in ({"bits": 2, "flip_rate": 0.6}, {"bits": 2, "copies": (2, 1)}):
        with pytest.raises(qc.errors.InvalidChannel):
            Digital(**wrong)
