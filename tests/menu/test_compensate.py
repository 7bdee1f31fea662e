"""Compensated codes: never worse than the plain choice of the same bytes, and near the best there is on tiny rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.compensate import Compensate, solved
from qubo_compress.menu.compensation import Codebook, descended, output_error, propagated
from qubo_compress.menu.groups import Group, Member
from qubo_compress.menu.prune import Prune
from qubo_compress.menu.quantize import Quantize
from qubo_compress.statistics.input_moments import InputMoments, Moments

SEEDS = st.integers(0, 10_000)
SHAPES = st.tuples(st.integers(1, 5), st.integers(2, 12))


def _sample(rows: int, columns: int, seed: int, rank: int = 40) -> tuple[Group, Tensor, Moments]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(rank, columns, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    group = Group("w", "weight", (Member("w", (rows, columns), torch.float32),), "Linear")
    return group, weight, Moments((inputs.T @ inputs / rank,), 0, rows)


def _errors(operator: Compensate, plain: Quantize | Prune, shape: tuple[int, int], seed: int, rank: int) -> list[float]:
    group, weight, moments = _sample(*shape, seed, rank)
    stored = operator.encode_with(group, [weight], {InputMoments(): (moments,)})
    other = plain.encode(group, [weight])
    assert stored.nbytes == other.nbytes
    damped = moments.damped(0, operator.damping)
    return [float(output_error(weight, packed.tensors()[0], damped).sum()) for packed in (stored, other)]


@settings(deadline=None, max_examples=60)
@given(SHAPES, SEEDS, st.sampled_from([2, 3, 4, 8]), st.sampled_from([0.0, 0.5, 0.8]), st.sampled_from([1, 3, 40]))
def test_output_error_is_never_above_that_of_plain_quantization(
    shape: tuple[int, int], seed: int, bits: int, sparsity: float, rank: int
) -> None:
    ours, plain = _errors(Compensate(bits, sparsity), Quantize(bits, sparsity), shape, seed, rank)
    assert ours <= plain * (1 + 1e-5) + 1e-12


@settings(deadline=None, max_examples=60)
@given(SHAPES, SEEDS, st.sampled_from([0.3, 0.5, 0.8]), st.sampled_from([1, 3, 40]))
def test_output_error_is_never_above_that_of_plain_pruning(
    shape: tuple[int, int], seed: int, sparsity: float, rank: int
) -> None:
    ours, plain = _errors(Compensate(None, sparsity), Prune(sparsity), shape, seed, rank)
    assert ours <= plain * (1 + 1e-5) + 1e-12


def test_compensation_pays_on_correlated_inputs() -> None:
    found = [_errors(Compensate(3), Quantize(3), (8, 24), seed, 60) for seed in range(5)]
    assert sum(ours for ours, _ in found) < 0.5 * sum(plain for _, plain in found)


def _ternary(columns: int) -> Tensor:
    return torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=columns)), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 6), SEEDS)
def test_descent_against_every_combination_of_codes(columns: int, seed: int) -> None:
    _, weight, moments = _sample(1, columns, seed)
    values, damped = weight.double(), moments.damped(0, 0.01)
    scale, book = torch.full((1, 1), 0.8, dtype=torch.float64), Codebook(-1, 1)
    start = propagated(values, scale, None, moments.inverse_factor(0, 0.01), book)
    found = descended(values, start, scale, None, damped, book)
    every = _ternary(columns)
    errors = output_error(values.expand(len(every), -1), every * scale, damped)
    reached = float(output_error(values, found * scale, damped))
    assert float(errors.min()) - 1e-9 <= reached <= float(output_error(values, start * scale, damped)) + 1e-9
    # No code that differs in one place is better.
    near = (every != found).sum(1) == 1
    assert reached <= float(errors[near].min()) + 1e-9


def test_descent_is_mostly_exact_on_tiny_rows() -> None:
    exact = 0
    for seed in range(60):
        _, weight, moments = _sample(1, 3, seed)
        values, damped = weight.double(), moments.damped(0, 0.01)
        scale, book = torch.full((1, 1), 0.8, dtype=torch.float64), Codebook(-1, 1)
        start = propagated(values, scale, None, moments.inverse_factor(0, 0.01), book)
        found = descended(values, start, scale, None, damped, book)
        every = _ternary(3)
        least = float(output_error(values.expand(len(every), -1), every * scale, damped).min())
        exact += float(output_error(values, found * scale, damped)) <= least + 1e-9
    assert exact >= 40


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.floats(0.0, 0.5), st.floats(0.2, 1.5))
def test_descent_at_a_price_never_ends_above_its_start(seed: int, price: float, step: float) -> None:
    _, weight, moments = _sample(6, 12, seed)
    values, scale = 2 * weight.double(), torch.full((6, 1), step, dtype=torch.float64)
    start = torch.round(values / scale)
    book = Codebook(-2000, 2000).priced(start, price)
    reach = (len(book.bits) - 1) // 2

    def total(codes: Tensor) -> float:
        bits = float(book.bits[codes.long() + reach].sum())
        return float(output_error(values, codes * scale, moments.blocks[0]).sum()) + price * bits

    found = descended(values, start, scale, None, moments.blocks[0], book)
    assert total(found) <= total(start) * (1 + 1e-9) + 1e-9


@settings(deadline=None, max_examples=30)
@given(SHAPES, SEEDS)
def test_survivors_are_the_least_squares_solution(shape: tuple[int, int], seed: int) -> None:
    _, weight, moments = _sample(*shape, seed)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    damped = moments.damped(0, 0.01)
    left = solved(weight.double(), mask, damped)
    assert not bool(left[~mask].any())
    gradient = (left - weight.double()) @ damped
    assert float((gradient * mask).abs().max()) < 1e-8 * (1 + float(damped.abs().max()))


@pytest.mark.parametrize(
    "made",
    [
        lambda: Compensate(1),
        lambda: Compensate(None),
        lambda: Compensate(3, 1.0),
        lambda: Compensate(3, damping=0.0),
    ],
)
def test_settings_out_of_range_are_refused(made: object) -> None:
    with pytest.raises(InvalidMenu):
        made()  # type: ignore[operator]
