"""Encoding many choices at once: the same stored groups and prices as one by one, whatever is shared."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import qubo_compress as qc
from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.menu.compensation.compensate import FINALISTS, Compensate
from qubo_compress.menu.compensation.moments import propagated
from qubo_compress.menu.operator import operators, parse
from qubo_compress.menu.prune import magnitude_mask, survivors_of
from qubo_compress.menu.quantize import Quantize, fit_scale, half_scale, highest_level, nearest_codes, round_to_codes
from qubo_compress.menu.storage.many import Fits, Rows, encoded, of_equal_values
from qubo_compress.menu.storage.packing import mask_size, pack_mask
from qubo_compress.menu.storage.row_kernels import half_of, mask_sizes
from qubo_compress.network.groups import Group, Member

MENU = qc.Menu(bits=(2, 3, 8, 12, None), sparsity=(0.0, 0.5, 0.8))


def weights(seed: int, rows: int, columns: int, ties: bool) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return (2 * weight).round() / 8 if ties else weight


def group_of(weight: Tensor, kind: Any = "weight") -> Group:
    return Group("w", kind, (Member("w", tuple(weight.shape), weight.dtype),), "Linear")


CASES = given(
    seed=st.integers(0, 10_000), rows=st.integers(1, 5), columns=st.integers(1, 70), ties=st.booleans()
)  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True)
@CASES
def test_choices_made_together_are_those_made_one_by_one(seed: int, rows: int, columns: int, ties: bool) -> None:
    weight = weights(seed, rows, columns, ties)
    group, offered = group_of(weight), {name: MENU.operator(name) for name in MENU.offered(group_of(weight), [weight])}
    together = dict(encoded(group, [weight], offered))
    assert list(together) == list(offered)
    for name, operator in offered.items():
        assert operator.quick
        alone = operator.encode(group, [weight])
        again = operator.encode_at(group, [weight], operator.fit(alone))
        assert together[name].to_bytes() == alone.to_bytes() == again.to_bytes(), name
        assert together[name].nbytes == len(alone.to_bytes())
        assert torch.equal(together[name].tensors()[0], alone.tensors()[0])


@settings(max_examples=40, deadline=None, derandomize=True)
@CASES
def test_rows_priced_together_cost_what_each_costs(seed: int, rows: int, columns: int, ties: bool) -> None:
    weight = weights(seed, rows, columns, ties)
    found = Rows(weight)
    for name, operator in MENU.offered(group_of(weight), [weight]).items():
        prices, stored = found.priced(operator), found.stored(operator)
        for row in range(rows):
            part = weight[row : row + 1]
            packed = operator.encode(group_of(part), [part])
            assert (prices.nbytes[row], prices.nonzeros[row]) == (packed.nbytes, packed.nonzeros), name
            assert prices.weight_bits == packed.weight_bits
            assert torch.equal(stored[row : row + 1].reshape(part.shape), packed.tensors()[0]), name
            assert prices.fits[row] == operator.fit(packed)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 3000), share=st.floats(0.0, 1.0), clustered=st.booleans())
def test_the_size_of_a_mask_is_known_without_packing_it(seed: int, count: int, share: float, clustered: bool) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(count) < share
    if clustered:
        mask[rng.integers(count) :] = False
    sizes = np.zeros(1, dtype=np.int64)
    mask_sizes(mask[None], sizes)
    assert mask_size(mask) == len(pack_mask(mask)) == sizes[0]


def test_nbytes_of_every_operator_is_the_length_of_its_bytes() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    checked = 0
    for name in operators.names():
        for operator in operators.get(name).samples():
            group = Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype),), "Conv2d")
            if operator.refusal(group, [weight]) is None and not operator.needs:
                packed = operator.encode(group, [weight])
                assert packed.nbytes == len(packed.to_bytes()), operator
                checked += 1
    assert checked > 15


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000), count=st.integers(1, 60), ties=st.booleans(), sparsity=st.floats(0.0, 0.99),
    zeros=st.floats(0.0, 1.0),
)  # fmt: skip
def test_the_largest_magnitudes_survive_and_ties_go_to_the_earlier(
    seed: int, count: int, ties: bool, sparsity: float, zeros: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = weights(seed, 1, count, ties)[0] * (torch.rand(count, generator=generator) >= zeros)
    order = torch.argsort(weight.abs(), descending=True, stable=True)
    expected = torch.zeros(count, dtype=torch.bool)
    expected[order[: survivors_of(weight, sparsity)]] = True
    assert torch.equal(magnitude_mask(weight, sparsity), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000), columns=st.integers(1, 700), bits=st.sampled_from([2, 3, 4, 8, 13]),
    masked=st.booleans(), size=st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
)  # fmt: skip
def test_no_clipping_range_and_no_refit_has_a_smaller_error(
    seed: int, columns: int, bits: int, masked: bool, size: float
) -> None:
    values = size * weights(seed, 2, columns, False)
    mask = magnitude_mask(values, 0.5).reshape(values.shape) if masked else None
    values = values if mask is None else values * mask
    keep = torch.ones_like(values) if mask is None else mask.float()
    signs = masked and bits == 2

    def error(scale: Tensor) -> Tensor:
        codes = round_to_codes(values, scale, bits, signs) * keep
        return (values.double() - codes.double() * scale.double()).square().sum(1)

    scale = fit_scale(values, mask, bits)
    least, level = error(scale), highest_level(bits)
    largest = values.abs().amax(1, keepdim=True).clamp(min=level * 2.0**-24)
    for share in [*np.linspace(0.15, 1.0, 16, endpoint=False), 1.0]:
        assert bool((least <= error(half_scale(share * largest / level)) * (1 + 1e-4) + 1e-30).all())
    codes = nearest_codes(values, mask, scale, bits)
    assert torch.equal(codes.float(), round_to_codes(values, scale, bits, signs) * keep)
    assert codes.dtype == (torch.int8 if bits <= 8 else torch.int16)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(2.0**-40, 2.0**23, width=32) | st.integers(0, 70_000).map(lambda n: n / 2**25))
def test_scales_are_rounded_as_float16(value: float) -> None:
    assert half_of(np.float32(value)) == float(half_scale(torch.tensor([value]))[0])


class Made(TorchDispatchMode):
    """Counts the values of all tensors that torch makes; views of others are none."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and not func.is_view:
            self.values += found.numel()
        return found


@pytest.mark.parametrize("masked", [False, True])
def test_no_copy_of_a_whole_tensor_is_made_for_a_scale_that_is_tried(masked: bool) -> None:
    weight = weights(0, 64, 500, ties=False)
    mask = weight.abs() > 0.5 if masked else None
    values = weight if mask is None else weight * mask
    with Made():
        fit_scale(values, mask, 4)  # compiles, and imports what counting needs
    tracemalloc.start()
    try:
        with Made() as made:
            fit_scale(values, mask, 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.values <= 4 * len(weight), "a few numbers for every row"
    assert peak < weight.numel(), "a quarter of a copy"


def test_a_coded_choice_takes_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("constriction")
    weight = weights(0, 4, 30, False)
    names = ("quantize(bits=4)", "coded(of='quantize(bits=4)')", "coded(of='svd(rank=2)')")
    expected = {name: parse(name).encode(group_of(weight), [weight]).to_bytes() for name in names}
    monkeypatch.setattr(Quantize, "encode", None)
    found = encoded(group_of(weight), [weight], {name: parse(name) for name in names})
    assert {name: packed.to_bytes() for name, packed in found} == expected
    assert of_equal_values(parse(names[1])) == Quantize(4)
    rated = parse("coded(of='quantize(bits=4)',rate=0.5)")
    assert of_equal_values(rated) is rated


def test_fits_of_some_choices() -> None:
    fits = Fits.joined([b"abc", b"", b"de"])
    assert [fits.of(k) for k in range(3)] == [b"abc", b"", b"de"]
    assert [fits.select(np.array([2, 1])).of(k) for k in range(2)] == [b"de", b""]
    assert Fits.joined([]).ends.size == 0


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000), channels=st.integers(2, 6), rows=st.integers(1, 2), bits=st.sampled_from([2, 4]),
    sparsity=st.sampled_from([0.0, 0.5]), silent=st.booleans(),
)  # fmt: skip
def test_depthwise_compensation_is_that_of_every_channel_alone(
    seed: int, channels: int, rows: int, bits: int, sparsity: float, silent: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels * rows, 1, 3, 3, generator=generator)
    blocks = []
    for _ in range(channels):
        inputs = torch.randn(20, 9, generator=generator, dtype=torch.float64)
        inputs = inputs @ torch.randn(9, 9, generator=generator, dtype=torch.float64)
        blocks.append(inputs.T @ inputs / 20)
    if silent:
        blocks[0] = torch.zeros_like(blocks[0])
    group = Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype),), "Conv2d")
    together = Moments(tuple(blocks), 0, len(weight))
    alone = Moments(tuple(blocks), 0, len(weight))
    alone.even_blocks = lambda rows: ()  # type: ignore[method-assign]
    assert len(together.even_blocks(len(weight))) == channels
    choice = Compensate(bits, sparsity)
    found, expected = (
        choice.encode_with(group, [weight], {InputMoments(): (moments,)}).tensors()[0] for moments in (together, alone)
    )
    assert math.isclose(float((found - weight).norm()), float((expected - weight).norm()), rel_tol=1e-6)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("choice", [Compensate(3), Compensate(3, 0.5)])
def test_depthwise_compensation_takes_as_many_steps_for_many_channels_as_for_few(
    choice: Compensate, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def counted(values: Tensor, *rest: Any) -> Tensor:
        steps.append(len(values))
        return propagated(values, *rest)

    monkeypatch.setattr("qubo_compress.menu.compensation.compensate.propagated", counted)
    for channels in (4, 60):
        weight = weights(0, channels, 9, ties=False).reshape(channels, 1, 3, 3)
        group = Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype),), "Conv2d")
        moments = Moments(tuple((1 + c) * torch.eye(9, dtype=torch.float64) for c in range(channels)), 0, channels)
        choice.encode_with(group, [weight], {InputMoments(): (moments,)})
    assert steps == [4] * FINALISTS + [60] * FINALISTS, "all channels at once"
