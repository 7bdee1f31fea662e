"""Means and variances of layers' outputs, taken in one pass over blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.recovery import statistics


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5), block=st.sampled_from([1, 7, 250_000]),
    offset=st.sampled_from([0.0, 3.0, -1e4]), seed=st.integers(0, 99), last=st.booleans(),
)  # fmt: skip
def test_moments_are_those_of_all_values(shape: list[int], block: int, offset: float, seed: int, last: bool) -> None:
    """For any number of axes, size of blocks and mean, and for channels that lie last in memory."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    y = 0.5 * x + noise + offset
    x = x + 2 * offset
    if last and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BLOCK_VALUES", block)
        found = statistics._JointMoments.of(x, y)
        mean = statistics._mean(y, 1)
    one, two = (np.moveaxis(values.numpy(), 1, 0).reshape(shape[1], -1) for values in (x, y))
    wanted = one.mean(1), two.mean(1), one.var(1), two.var(1)
    scale = 1.0 + abs(offset)
    for got, right in zip((found.x_mean, found.y_mean), wanted[:2], strict=True):
        assert np.allclose(got.numpy(), right, rtol=1e-12, atol=1e-12 * scale)
    for got, right in zip((found.x_variance, found.y_variance), wanted[2:], strict=True):
        assert np.allclose(got.numpy(), right, rtol=1e-9, atol=1e-10)
    covariance = ((one - wanted[0][:, None]) * (two - wanted[1][:, None])).mean(1)
    assert np.allclose(found.covariance.numpy(), covariance, rtol=1e-9, atol=1e-10)
    assert np.allclose(mean.numpy(), wanted[1], rtol=1e-12, atol=1e-12 * scale)


def test_a_constant_channel_has_no_variance() -> None:
    x = torch.full((3, 2, 4), 0.1)
    found = statistics._JointMoments.of(x, x)
    assert found.x_variance.tolist() == [0.0, 0.0] and found.covariance.tolist() == [0.0, 0.0]


def test_means_along_the_last_axis() -> None:
    values = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(statistics._mean(values, -1), values.double().mean((0, 1)))
