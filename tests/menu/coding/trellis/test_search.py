"""Viterbi searches down columns: exact for one, and never worse for all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.calibration.statistics.input_moments import Moments
from qubo_compress.menu.coding.layout import CodeLayout, states_of
from qubo_compress.menu.coding.trellis import search
from qubo_compress.menu.coding.trellis.rates import Rates
from qubo_compress.menu.coding.trellis.search import Quantizers, Target, descended, nearest, propagated

STATES = st.sampled_from([0, 4, 8])


def mixed(size: int, generator: np.random.Generator) -> torch.Tensor:
    """Moments of correlated inputs."""
    inputs = generator.normal(size=(3 * size, size)) @ (np.eye(size) + generator.normal(size=(size, size)) / size**0.5)
    return torch.from_numpy(inputs.T @ inputs / len(inputs))


def target_of(rows: int, columns: int, blocks: int, seed: int) -> Target:
    generator = np.random.default_rng(seed)
    moments = Moments(tuple(mixed(columns, generator) for _ in range(blocks)), 0, rows)
    return Target.of(generator.normal(size=(rows, columns)), moments, 0.01)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    states=STATES, rows=st.integers(1, 5), price=st.sampled_from([0.0, 0.1, 1.0]), scale=st.floats(0.1, 4.0),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_no_sequence_of_codes_is_better(states: int, rows: int, price: float, scale: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values, quantizers = (
        scale * generator.normal(size=(1, rows)),
        Quantizers(CodeLayout(rows, 1, states=states), 1.0, 2),
    )
    bits = price * np.sort(generator.random((2, 2 if states else 1, 3)), axis=-1)
    rates = Rates(bits, generator.integers(0, 2, (1, rows)).astype(np.uint8), states)

    def cost(codes: np.ndarray) -> float:
        return float(((quantizers.values(codes) - values) ** 2).sum()) + rates.total(codes)

    found = cost(nearest(values, quantizers, rates))
    least = min(cost(np.array([codes])) for codes in itertools.product(range(-2, 3), repeat=rows))
    assert found == pytest.approx(least, rel=1e-12, abs=1e-12)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    states=STATES, blocks=st.sampled_from([1, 2, 6]), columns=st.integers(1, 9), width=st.floats(0.2, 4.0),
    price=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 99),
)  # fmt: skip
def test_error_plus_price_of_bits_falls_by_what_a_sweep_says(
    states: int, blocks: int, columns: int, width: float, price: float, seed: int
) -> None:
    target, quantizers = (
        target_of(12, columns, blocks, seed),
        Quantizers(CodeLayout(12, columns, states=states), width, 40),
    )
    codes = propagated(target, quantizers, quantizers.free())
    for _ in range(3):
        rates = quantizers.rates(codes).priced(price)
        before = target.error(quantizers.values(codes)) + rates.total(codes)
        fallen = descended(target, codes, quantizers, rates)
        after = target.error(quantizers.values(codes)) + rates.total(codes)
        assert fallen >= 0 and before - after == pytest.approx(fallen, abs=1e-9 * max(before, 1.0))
    # A column that no search improves stays.
    kept = codes.copy()
    while descended(target, codes, quantizers, rates) > 0:
        kept = codes.copy()
    assert np.array_equal(kept, codes)


@pytest.mark.parametrize("states", [0, 8])
@pytest.mark.parametrize("blocks", [1, 3])
def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch, states: int, blocks: int) -> None:
    target, quantizers = target_of(12, 30, blocks, 1), Quantizers(CodeLayout(12, 30, states=states), 1.0, 10)
    rates = quantizers.rates(np.arange(360).reshape(30, 12) % 5).priced(0.1)

    def solved() -> np.ndarray:
        codes = propagated(target, quantizers, rates)
        descended(target, codes, quantizers, rates)
        return codes

    whole = solved()
    monkeypatch.setattr(search, "BLOCK", 7)
    assert np.array_equal(solved(), whole)


def test_plain_rows_of_a_grouped_layer_are_those_of_each_group_alone() -> None:
    """Without states nothing connects the rows."""
    target, quantizers = target_of(12, 9, 3, 2), Quantizers(CodeLayout(12, 9), 0.8, 20)
    whole = propagated(target, quantizers, quantizers.free())
    descended(target, whole, quantizers, quantizers.free())
    for number, rows in target.parts():
        kept = slice(number, number + 1)
        alone = Target(
            np.ascontiguousarray(target.values[:, rows]), target.moments[kept], target.uppers[kept], np.array([0, 4])
        )
        codes = propagated(alone, quantizers, quantizers.free())
        descended(alone, codes, quantizers, quantizers.free())
        assert np.array_equal(codes, whole[:, rows])


def entropy(codes: np.ndarray, states: int) -> float:
    """Bits per code of (columns, rows) codes, given their states."""
    before, total = states_of(codes.T, states), 0.0
    for state in np.unique(before):
        counts = np.unique(codes.T[before == state], return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total / codes.size


@pytest.mark.parametrize(("columns", "gain"), [(1, 0.9), (60, 0.5)])
def test_eight_states_gain_over_plain_codes_at_equal_bits(columns: int, gain: float) -> None:
    """With independent inputs the theory says about 1 dB at high rates; compensation has taken a part of it."""
    rows = 8000 // columns
    target = target_of(rows, columns, 1, 3)

    def decibels(states: int) -> float:
        quantizers = Quantizers(CodeLayout(rows, columns, states=states), 0.5, 40)
        codes = propagated(target, quantizers, quantizers.free())
        descended(target, codes, quantizers, quantizers.free())
        # 6.02 dB per bit bring both to the same number of bits.
        return 10 * np.log10(target.error(quantizers.values(codes))) + 6.02 * entropy(codes, states)

    assert decibels(8) < decibels(0) - gain
