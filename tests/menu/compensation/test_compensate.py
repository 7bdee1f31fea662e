"""Codes chosen by output error: never worse than plain ones, and how far from the best."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.compensation.compensate import Compensate, solved
from qubo_compress.menu.compensation.moments import Codebook, descended, output_error, propagated, refitted
from qubo_compress.menu.compensation.qubo import MOST_WEIGHTS, annealed, rounding_problem
from qubo_compress.menu.prune import PrunedTensors, survivor_count
from qubo_compress.menu.quantize import Quantize, QuantizedTensors
from qubo_compress.network.groups import Group, Member
from qubo_compress.solvers.verification import solve


def correlated(size: int, generator: torch.Generator, examples: int | None = None) -> Tensor:
    """(D, D) moments of inputs that depend on each other; singular where examples are few."""
    inputs = torch.randn(examples or 3 * size, size, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    return inputs.T @ inputs / len(inputs)


def group_of(weight: Tensor) -> Group:
    return Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype),), "Linear")


def stored(choice: Compensate, weight: Tensor, *blocks: Tensor) -> QuantizedTensors | PrunedTensors:
    moments = Moments(blocks, 0, weight.shape[0])
    return choice.encode_with(group_of(weight), [weight], {InputMoments(): (moments,)})


def damped(matrix: Tensor, damping: float = 0.01) -> Tensor:
    return Moments((matrix,), 0, 1).damped(0, damping)


def error_of(weight: Tensor, packed: object, matrix: Tensor) -> Tensor:
    """(R,) output errors of what is stored."""
    return output_error(weight.flatten(1), packed.tensors()[0].flatten(1), matrix)  # type: ignore[attr-defined]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000), rows=st.integers(1, 5), size=st.integers(1, 9), bits=st.sampled_from([2, 3, 4, 8]),
    sparsity=st.sampled_from([0.0, 0.0, 0.3, 0.6]), scale=st.sampled_from([1e-6, 1.0, 1e3]), few=st.booleans(),
)  # fmt: skip
def test_never_worse_than_quantize(
    seed: int, rows: int, size: int, bits: int, sparsity: float, scale: float, few: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(rows, size, generator=generator)
    matrix = correlated(size, generator, 2 if few else None)
    ours = stored(Compensate(bits, sparsity), weight, matrix)
    plain = Quantize(bits, sparsity).encode(group_of(weight), [weight])
    left, right = error_of(weight, ours, damped(matrix)), error_of(weight, plain, damped(matrix))
    slack = 1e-6 * right + 1e-12 * scale**2
    if sparsity == 0:
        assert bool((left <= right + slack).all())
        assert ours.nbytes == plain.nbytes
    assert float(left.sum()) <= float((right + slack).sum())


def test_correlated_inputs_gain_much() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, matrix = torch.randn(16, 32, generator=generator), correlated(32, generator)
    for bits, most in ((2, 0.6), (3, 0.5), (4, 0.5)):
        plain = Quantize(bits).encode(group_of(weight), [weight])
        ours = error_of(weight, stored(Compensate(bits), weight, matrix), matrix).sum()
        assert float(ours) < most * float(error_of(weight, plain, matrix).sum())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000), size=st.integers(1, 8), book=st.sampled_from(
        [Codebook(-1, 1), Codebook(-3, 3), Codebook(-7, 7), Codebook(-1, 1, signs_only=True)]
    ), masked=st.booleans(), price=st.sampled_from([0.0, 0.0, 0.01, 1.0, 50.0]),
)  # fmt: skip
def test_descent_never_rises_and_ends_where_no_single_change_helps(
    seed: int, size: int, book: Codebook, masked: bool, price: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(4, size, generator=generator, dtype=torch.float64)
    matrix = damped(correlated(size, generator))
    scale = 0.3 + torch.rand(4, 1, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, size, generator=generator) < 0.7 if masked else None
    kept = torch.ones(4, size, dtype=torch.bool) if mask is None else mask
    start = book.nearest(values / scale * torch.rand(4, size, generator=generator)) * kept
    if book.signs_only:
        price = 0.0
    book = book.priced(start, price) if price else book

    def cost(codes: Tensor) -> Tensor:
        reach = (book.bits.numel() - 1) // 2
        paid = price * book.bits[(codes + reach).long()].sum(1) if price else 0.0
        return output_error(values, codes * scale, matrix) + paid

    found = descended(values, start, scale, mask, matrix, book)
    assert torch.equal(found, book.nearest(found) * kept)
    before, after = cost(start), cost(found)
    assert bool((after <= before * (1 + 1e-12) + 1e-12).all())
    again = descended(values, found, scale, mask, matrix, book)
    if torch.equal(again, found) and not price:
        for column, code in itertools.product(range(size), range(int(book.low), int(book.high) + 1)):
            moved = found.clone()
            moved[:, column] = code
            allowed = kept[:, column] & (code != 0 if book.signs_only else True)
            assert bool((cost(moved) >= after * (1 - 1e-9) - 1e-9)[allowed].all())


def test_how_far_the_descent_is_from_the_best() -> None:
    """Every assignment of ternary codes to rows of six weights at one scale."""
    every = torch.tensor(list(itertools.product([-1.0, 0.0, 1.0], repeat=6)), dtype=torch.float64)
    totals = dict.fromkeys(("best", "nearest", "propagated", "descended"), 0.0)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(12, 6, generator=generator, dtype=torch.float64)
        matrix, book = damped(correlated(6, generator)), Codebook(-1, 1)
        scale = values.abs().amax(1, keepdim=True) * 0.7
        upper = Moments((matrix,), 0, 1).inverse_factor(0, 1e-12)
        apart = every * scale[:, None] - values[:, None]
        best = torch.einsum("rni,ij,rnj->rn", apart, matrix, apart).min(1).values
        spread = propagated(values, scale, None, upper, book)
        stages = {
            "nearest": book.nearest(values / scale),
            "propagated": spread,
            "descended": descended(values, spread, scale, None, matrix, book),
        }
        totals["best"] += float(best.sum())
        for name, codes in stages.items():
            error = output_error(values, codes * scale, matrix)
            assert bool((error >= best * (1 - 1e-9)).all())
            totals[name] += float(error.sum())
    assert totals["descended"] < totals["propagated"] < totals["nearest"]
    assert totals["descended"] < 1.4 * totals["best"]


def test_propagation_solves_what_is_left_exactly() -> None:
    """Once some columns are rounded, the error left is the least that the others can make of it."""
    generator = torch.Generator().manual_seed(0)
    values, matrix = torch.randn(3, 5, generator=generator, dtype=torch.float64), correlated(5, generator)
    upper = Moments((matrix,), 0, 1).inverse_factor(0, 1e-13)
    scale = torch.full((3, 1), 0.5, dtype=torch.float64)
    codes = propagated(values, scale, None, upper, Codebook(-100, 100))
    for column in range(1, 5):
        done, rest = slice(0, column), slice(column, None)
        apart = (codes * scale - values)[:, done]
        goal = values[:, rest] - apart @ matrix[done, rest] @ torch.linalg.inv(matrix[rest, rest])
        assert torch.equal(codes[:, column], torch.round(goal[:, 0] / 0.5))


@pytest.mark.parametrize("bits", [None, 2, 3])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_masks_have_exactly_as_many_survivors(bits: int | None, sparsity: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 3, 3, generator=generator)
    blocks = [correlated(9, generator) for _ in range(2)]
    packed = stored(Compensate(bits, sparsity), weight, *blocks)
    mask = packed.masks[0] if isinstance(packed, PrunedTensors) else packed.parts[0].mask
    assert mask is not None and int(mask.sum()) == survivor_count(54, sparsity)
    assert not bool(packed.tensors()[0].flatten()[~mask.flatten()].any())


def test_without_bits_survivors_are_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    raw = torch.randn(40, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
    matrix = raw.T @ raw
    packed = stored(Compensate(None, 0.5, damping=1e-9), weight, matrix)
    value, mask = packed.tensors()[0], packed.masks[0].reshape(4, 6)  # type: ignore[union-attr]
    for row in range(4):
        kept = mask[row]
        expected = torch.linalg.lstsq(raw[:, kept], raw @ weight[row]).solution
        torch.testing.assert_close(value[row, kept], expected, rtol=1e-6, atol=1e-7)
    inverse = torch.linalg.inv(damped(matrix, 1e-9))
    saliency = weight**2 / inverse.diagonal()
    assert saliency[mask].min() >= saliency[~mask].max()
    assert solved(weight, torch.zeros_like(mask), matrix).abs().sum() == 0


def test_a_group_of_a_convolution_uses_its_own_moments() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(4, 5, generator=generator)
    first, second = correlated(5, generator), correlated(5, generator)
    both = stored(Compensate(3), weight, first, second).tensors()[0]
    assert torch.equal(both[:2], stored(Compensate(3), weight[:2], first).tensors()[0])
    assert torch.equal(both[2:], stored(Compensate(3), weight[2:], second).tensors()[0])


@pytest.mark.parametrize("choice", [Compensate(3), Compensate(2, 0.5), Compensate(None, 0.5)])
def test_inputs_that_say_nothing(choice: Compensate) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(4, 6, generator=generator)
    silent = stored(choice, weight, torch.zeros(6, 6, dtype=torch.float64)).tensors()[0]
    assert bool(torch.isfinite(silent).all()) and float((silent - weight).norm()) < float(weight.norm())
    matrix = correlated(6, generator)
    matrix[1], matrix[:, 1] = 0.0, 0.0  # an input that never fires
    dead = stored(choice, weight, matrix)
    assert bool(torch.isfinite(dead.tensors()[0]).all())
    if isinstance(dead, PrunedTensors):
        assert torch.equal(dead.tensors()[0][:, 1], torch.zeros(4))  # what cannot be heard goes first


def test_one_input_and_scales_beyond_half_precision() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    weight = torch.tensor([[2.0], [-0.5], [0.0]])
    assert torch.allclose(stored(Compensate(3), weight, one).tensors()[0], weight, rtol=1e-3)
    for size in (1e-30, 1e9, 1e30):
        value = stored(Compensate(2), size * weight, 1e-20 * one).tensors()[0]
        assert bool(torch.isfinite(value).all())
    tiny = stored(Compensate(4), weight, torch.full((1, 1), 5e-324, dtype=torch.float64)).tensors()[0]
    assert bool(torch.isfinite(tiny).all())


def test_scales_are_refitted_to_the_least_error() -> None:
    generator = torch.Generator().manual_seed(6)
    values, matrix = torch.randn(3, 5, generator=generator, dtype=torch.float64), correlated(5, generator)
    codes = torch.round(3 * values)
    scale = refitted(values, codes, matrix, torch.ones(3, 1, dtype=torch.float64))
    least = output_error(values, codes * scale, matrix)
    for factor in (0.99, 1.01):
        assert bool((output_error(values, codes * scale * factor, matrix) > least).all())
    assert torch.equal(refitted(values, 0 * codes, matrix, torch.ones(3, 1).double()), torch.ones(3, 1).double())


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 1},
        {"bits": None},
        {"bits": 3, "damping": 0.0},
        {"bits": 3, "sparsity": 1.0},
        {"bits": 3, "rounding": "nearest"},
        {"bits": None, "sparsity": 0.5, "rounding": "qubo"},
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidMenu):
        Compensate(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("book", [Codebook(-1, 1), Codebook(-7, 7), Codebook(-1, 1, signs_only=True)])
def test_the_rounding_problem_is_the_change_of_the_error(book: Codebook) -> None:
    generator = torch.Generator().manual_seed(7)
    values, matrix = torch.randn(1, 9, generator=generator, dtype=torch.float64), damped(correlated(9, generator))
    scale = torch.full((1, 1), 0.4, dtype=torch.float64)
    mask = torch.tensor([[True] * 8 + [False]])
    codes = descended(values, book.nearest(values / scale) * mask, scale, mask, matrix, book)
    free, moves, problem = rounding_problem(values[0], codes[0], 0.4, mask[0], matrix, book)
    assert problem is not None and not bool(free[8])
    before = float(output_error(values, codes * scale, matrix)[0])
    apart = []
    for taken in itertools.product([0, 1], repeat=int(free.sum())):
        moved = codes.clone()
        moved[0, free] += moves * torch.tensor(taken)
        assert torch.equal(moved, book.nearest(moved) * mask)
        apart.append((problem.energy(list(taken)), float(output_error(values, moved * scale, matrix)[0]) - before))
    energies, changes = torch.tensor(apart, dtype=torch.float64).T
    unit = changes[energies.argmax()] / energies.max()
    torch.testing.assert_close(energies * unit, changes, rtol=1e-9, atol=1e-9)


def test_the_annealer_finds_the_best_rounding_of_small_rows() -> None:
    generator = torch.Generator().manual_seed(8)
    values, matrix = torch.randn(6, 14, generator=generator, dtype=torch.float64), damped(correlated(14, generator))
    scale, book = torch.full((6, 1), 0.5, dtype=torch.float64), Codebook(-3, 3)
    upper = Moments((matrix,), 0, 6).inverse_factor(0, 1e-12)
    codes = descended(values, propagated(values, scale, None, upper, book), scale, None, matrix, book)
    found = annealed(values, codes, scale, None, matrix, book)
    assert torch.equal(found, annealed(values, codes, scale, None, matrix, book))
    before, after = (output_error(values, c * scale, matrix) for c in (codes, found))
    assert bool((after <= before).all()) and float((after / before).log().mean()) < -0.1
    for row in range(6):
        free, moves, problem = rounding_problem(values[row], codes[row], 0.5, None, matrix, book)
        assert problem is not None
        best = codes[row].clone()
        best[free] += moves * torch.tensor(solve(problem, "exact", time_limit=20.0).assignment.tolist())
        exact = float(output_error(values[row : row + 1], (best * 0.5)[None], matrix)[0])
        assert float(after[row]) <= exact * (1 + 1e-9)


def test_rows_of_many_weights_ask_about_the_least_decided() -> None:
    generator = torch.Generator().manual_seed(9)
    size = MOST_WEIGHTS + 20
    values, matrix = torch.randn(1, size, generator=generator, dtype=torch.float64), damped(correlated(size, generator))
    scale, book = torch.full((1, 1), 0.5, dtype=torch.float64), Codebook(-3, 3)
    codes = descended(values, book.nearest(values / scale), scale, None, matrix, book)
    free, moves, problem = rounding_problem(values[0], codes[0], 0.5, None, matrix, book)
    assert problem is not None and problem.num_groups == int(free.sum()) == len(moves) == MOST_WEIGHTS
    apart = ((codes * scale - values) @ matrix)[0] / matrix.diagonal() / 0.5
    inside = (codes[0] - apart.sign()).abs() <= 3
    assert float(apart[free].abs().min()) >= float(apart[~free & inside].abs().max())


@pytest.mark.parametrize("choice", [Compensate(3), Compensate(2, 0.4)])
def test_qubo_rounding_is_never_worse_than_the_descent(choice: Compensate) -> None:
    generator = torch.Generator().manual_seed(10)
    weight, matrix = torch.randn(6, 24, generator=generator), correlated(24, generator)
    asked = replace(choice, rounding="qubo")
    first, second = (stored(c, weight, matrix) for c in (choice, asked))
    left, right = (error_of(weight, packed, damped(matrix)).sum() for packed in (first, second))
    assert float(right) < 0.99 * float(left)
    assert stored(asked, weight, matrix).to_bytes() == second.to_bytes()
    assert first.nbytes == second.nbytes
