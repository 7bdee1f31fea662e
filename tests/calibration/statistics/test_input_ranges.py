"""Counted inputs and fitted ranges: one pass gives what all values at once would, and no shrunk range does better."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_compress.calibration.statistics.input_ranges import ValueCounts
from qubo_compress.errors import InvalidMenu
from qubo_compress.network.rounding import InputRange

VALUES = st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12), min_size=1, max_size=5)


@settings(max_examples=50)
@given(VALUES)
def test_counting_in_parts_counts_every_value_once(parts: list[list[float]]) -> None:
    counts, once = ValueCounts(), ValueCounts()
    for part in parts:
        counts.add(torch.tensor(part))
    flat = torch.tensor([value for part in parts for value in part])
    once.add(flat)
    assert sum(found[0].sum() for found in counts.octaves.values()) + counts.zeros == len(flat)
    assert counts.low == min(0.0, float(flat.min())) and counts.high == max(0.0, float(flat.max()))
    assert counts.octaves.keys() == once.octaves.keys()
    assert all(np.array_equal(counts.octaves[one], once.octaves[one]) for one in once.octaves)


def _error(found: InputRange, x: Tensor) -> float:
    """Squared error, relative to each row."""
    return float(((found.rounded(x) - x).square().sum(1) / x.square().sum(1)).sum())


def _counted(x: Tensor) -> ValueCounts:
    """The counts of rows, as the statistic adds them."""
    counts = ValueCounts()
    squares = x.square().sum(1, keepdim=True)
    counts.add(x, torch.ones_like(x), (1 / squares).expand_as(x))
    return counts


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([2, 4, 8]), st.sampled_from(["normal", "relu", "tails", "shifted"]))
def test_the_fitted_range_beats_the_extremes_and_every_uniform_shrinkage(seed: int, bits: int, kind: str) -> None:
    x = torch.randn(10, 300, generator=torch.Generator().manual_seed(seed))
    x = {"normal": x, "relu": x.relu(), "tails": x**5, "shifted": x + 3.0}[kind]
    found = _counted(x).fitted(bits)
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    for share in (1.0, 0.8, 0.6, 0.4, 0.2):
        scale = share * (high - low) / ((1 << bits) - 1)
        assert _error(found, x) <= 1.03 * _error(InputRange(scale, round(-share * low / scale), bits), x)
    if kind == "relu":
        assert found.zero_point == 0


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([4, 8]), st.sampled_from([1e3, -1e6, 1e12]), st.integers(5, 40))
def test_one_huge_input_spoils_no_range_and_large_inputs_of_all_examples_are_kept(
    seed: int, bits: int, huge: float, rows: int
) -> None:
    x = torch.randn(rows, 200, generator=torch.Generator().manual_seed(seed))
    spoiled = x.clone()
    spoiled[0, 0] = huge
    assert _error(_counted(spoiled).fitted(bits), x[1:]) <= 0.05 * rows  # rows, if all were rounded to zero
    in_all = x.clone()
    in_all[:, 0] = huge
    assert _error(_counted(in_all).fitted(bits), in_all) <= 0.02 * rows


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([60.0, 95.0, 99.9]))
def test_percentiles_are_those_of_the_values(seed: int, percentile: float) -> None:
    x = torch.randn(10, 300, generator=torch.Generator().manual_seed(seed)) + 0.3
    found = _counted(x).fitted(8, percentile)
    share, near = percentile / 100, 2 / x.numel()
    assert abs(float((x <= found.high * 1.01).double().mean()) - share) <= near + 0.01 * share
    lower = float((x >= found.low * 1.01).double().mean())
    assert found.low == 0 or abs(lower - share) <= near + 0.01 * share
    whole = _counted(x).fitted(8, 100.0)
    assert whole.scale * 255 == pytest.approx(float(x.max() - x.min()), rel=1e-5)


def test_zeros_have_an_arbitrary_range_and_values_that_are_not_finite_have_none() -> None:
    counts = ValueCounts()
    counts.add(torch.zeros(5))
    assert counts.fitted(8).rounded(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(InvalidMenu, match="NaN or infinite"):
        counts.add(torch.tensor([1.0, float("nan")]))


def test_weights_count() -> None:
    twice, heavy = ValueCounts(), ValueCounts()
    x = torch.tensor([1.0, -2.0, 0.5, 0.0])
    twice.add(torch.cat([x, x[:1]]))
    heavy.add(x, torch.tensor([2.0, 1.0, 1.0, 1.0]))
    assert all(np.array_equal(twice.octaves[one], heavy.octaves[one]) for one in twice.octaves)
    assert twice.zeros == heavy.zeros == 1
