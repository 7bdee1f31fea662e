"""Counted inputs and fitted ranges: one pass gives what all values at once would, and no shrunk range does better."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.calibration.statistics.input_ranges import BINS, ValueCounts
from qubo_compress.errors import InvalidMenu

VALUES = st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=50)
@given(VALUES)
def test_counting_in_parts_covers_every_value_and_loses_none(parts: list[list[float]]) -> None:
    counts = ValueCounts()
    for part in parts:
        counts.add(torch.tensor(part))
    flat = np.array([value for part in parts for value in part])
    if counts.exponent is None:
        assert not flat.any()
        return
    first = next(number for number, part in enumerate(parts) if any(part))
    assert counts.counts.sum() == sum(len(part) for part in parts[first:])
    assert float(np.abs(flat).max()) <= 2.0**counts.exponent


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]), st.sampled_from(["normal", "relu", "tails", "shifted"]))
def test_the_fitted_range_beats_the_extremes_and_every_uniform_shrinkage(seed: int, bits: int, kind: str) -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(seed))
    x = {"normal": x, "relu": x.relu(), "tails": x**5, "shifted": x + 3.0}[kind]
    counts = ValueCounts()
    counts.add(x)
    found = counts.fitted(bits)
    error = float((found.rounded(x) - x).square().mean())
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    for share in (1.0, 0.8, 0.6, 0.4, 0.2):
        scale = share * (high - low) / ((1 << bits) - 1)
        zero = round(-share * low / scale)
        q = (torch.round(x / scale) + zero).clamp(0, (1 << bits) - 1)
        assert error <= 1.02 * float(((q - zero) * scale - x).square().mean()) + (4 * 2.0**counts.exponent / BINS) ** 2
    if kind == "relu":
        assert found.zero_point == 0


def test_zeros_have_an_arbitrary_range_and_values_that_are_not_finite_have_none() -> None:
    counts = ValueCounts()
    counts.add(torch.zeros(5))
    assert counts.fitted(8).rounded(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(InvalidMenu, match="NaN or infinite"):
        counts.add(torch.tensor([1.0, float("nan")]))


def test_weights_count() -> None:
    twice, heavy = ValueCounts(), ValueCounts()
    x = torch.tensor([1.0, -2.0, 0.5])
    twice.add(torch.cat([x, x[:1]]))
    heavy.add(x, torch.tensor([2.0, 1.0, 1.0]))
    assert np.array_equal(twice.counts, heavy.counts)
