"""Even grids: codes stay in what can be stored, compensation lowers the error, a price on bits lowers the coded size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.coded import Coded
from qubo_compress.menu.compensation import output_error
from qubo_compress.menu.groups import Group, Member
from qubo_compress.menu.lattice import LARGEST_CODE, Lattice
from qubo_compress.statistics.input_moments import InputMoments, Moments


def _sample(rows: int, columns: int, seed: int) -> tuple[Group, Tensor, Moments]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    group = Group("w", "weight", (Member("w", (rows, columns), torch.float32),), "Linear")
    return group, weight, Moments((inputs.T @ inputs / len(inputs),), 0, rows)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 10), st.integers(0, 10_000), st.floats(0.01, 3.0), st.floats(0.0, 2.0))
def test_codes_are_whole_and_in_range(rows: int, columns: int, seed: int, step: float, rate: float) -> None:
    group, weight, moments = _sample(rows, columns, seed)
    (part,) = Lattice(step, rate).encode_with(group, [weight], {InputMoments(): (moments,)}).parts
    assert part.codes.dtype == torch.int16
    assert -LARGEST_CODE <= part.low == int(part.codes.min()) <= int(part.codes.max()) == part.high <= LARGEST_CODE


@pytest.mark.parametrize("step", [0.3, 1.0, 2.0])
def test_compensated_codes_beat_the_nearest(step: float) -> None:
    ours = nearest = 0.0
    for seed in range(5):
        group, weight, moments = _sample(8, 24, seed)
        (part,) = Lattice(step).encode_with(group, [weight], {InputMoments(): (moments,)}).parts
        damped, size = moments.damped(0, 0.01), part.step.float()
        ours += float(output_error(weight, part.value(), damped).sum())
        nearest += float(output_error(weight, torch.round(weight / size) * size, damped).sum())
    assert ours < 0.7 * nearest


def test_a_price_on_bits_makes_coded_bytes_fewer() -> None:
    group, weight, moments = _sample(48, 64, 0)
    sizes = [
        Coded(f"lattice(step=0.5,rate={rate})").encode_with(group, [weight], {InputMoments(): (moments,)}).nbytes
        for rate in (0.0, 2.0)
    ]
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize("given", [{"step": 0.0}, {"step": 0.5, "rate": 3.0}, {"step": 0.5, "damping": 0.0}])
def test_settings_out_of_range_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(InvalidMenu, match="must be a number from"):
        Lattice(**given)
