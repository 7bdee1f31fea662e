"""Operators: what goes in comes out, in exactly the bytes that were promised."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import qubo_compress as qc
from qubo_compress.menu.fold import Fold, scale_and_shift
from qubo_compress.menu.keep import Keep, KeptTensors
from qubo_compress.menu.operator import choice_name, parse
from qubo_compress.menu.prune import Prune, survivor_count
from qubo_compress.menu.quantize import Quantize
from qubo_compress.menu.storage.packing import (
    pack_codes,
    pack_mask,
    pack_ternary,
    packed_size,
    unpack_codes,
    unpack_mask,
    unpack_ternary,
)
from qubo_compress.menu.storage.vectors import StoredVector
from qubo_compress.network.groups import Group, Member
from qubo_compress.testing import check_faithful, check_operator, registered_samples, sample_groups

OPERATORS = registered_samples()


@pytest.mark.parametrize("operator", OPERATORS, ids=choice_name)
def test_operators_conform(operator: qc.menu.Operator) -> None:
    check_operator(operator)


@pytest.mark.parametrize("name", qc.menu.names())
def test_the_highest_fidelity_displaces_nothing(name: str) -> None:
    check_faithful(qc.menu.operators.get(name))


def test_an_operator_that_miscounts_its_bytes_is_caught() -> None:
    class OneMore(KeptTensors):
        @property
        def nbytes(self) -> int:
            return super().nbytes + 1

    class Miscounting(Keep):
        def encode(self, group: Group, parts: object) -> OneMore:
            return OneMore(super().encode(group, parts).values)  # type: ignore[arg-type]

    with pytest.raises(AssertionError, match="nbytes is .* to_bytes"):
        check_operator(Miscounting())


def _group(*shape: int, dtype: torch.dtype = torch.float32) -> Group:
    return Group("w", "weight", (Member("w", shape, dtype),), "Linear")


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 16), st.data())
def test_codes_round_trip(bits: int, data: st.DataObject) -> None:
    codes = data.draw(arrays.arrays(np.int64, st.integers(0, 70), elements=st.integers(0, (1 << bits) - 1)))
    packed = pack_codes(codes, bits)
    assert packed.nbytes == packed_size(codes.size, bits)
    assert np.array_equal(unpack_codes(packed, codes.size, bits), codes)


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(np.int64, st.integers(0, 60), elements=st.integers(0, 2)))
def test_ternary_digits_round_trip(digits: np.ndarray) -> None:
    packed = pack_ternary(digits)
    assert packed.nbytes == math.ceil(digits.size / 5)
    assert np.array_equal(unpack_ternary(packed, digits.size), digits)


@settings(deadline=None, max_examples=120)
@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_masks_round_trip_in_the_cheaper_of_two_forms(count: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(count) < density**3
    packed = pack_mask(mask)
    found, used = unpack_mask(packed + b"\xff\x00", count)
    assert np.array_equal(found, mask) and used == len(packed)
    assert len(packed) == min(_mask_sizes(mask))


def _mask_sizes(mask: np.ndarray) -> list[int]:
    """Bytes as a bit mask, and as run lengths in fields of 1 to 8 bits, counted one field at a time."""
    sizes = [1 + math.ceil(mask.size / 8)]
    for bits in range(1, 9):
        fields, run = 0, 0
        for survives in mask:
            if survives:
                fields, run = fields + 1, 0
            else:
                run += 1
                if run == (1 << bits) - 1:
                    fields, run = fields + 1, 0
        # Zeros behind the last survivor are not stored.
        tail = mask.size - 1 - int(np.flatnonzero(mask)[-1]) if mask.any() else mask.size
        fields -= tail // ((1 << bits) - 1)
        sizes.append(5 + math.ceil(fields * bits / 8))
    return sizes


def test_long_gaps_are_stored_as_runs_and_dense_masks_as_bits() -> None:
    sparse, dense = np.zeros(8000, dtype=bool), np.ones(8000, dtype=bool)
    sparse[::400] = True
    assert pack_mask(sparse)[0] > 0 and len(pack_mask(sparse)) < 100
    assert pack_mask(dense)[0] == 0


@pytest.mark.parametrize("shape", [(16, 27), (8, 3, 3, 3), (5, 1), (1, 40)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_displacement_shrinks_with_bits(shape: tuple[int, ...], sparsity: float) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    group = _group(*shape)
    pruned = Prune(sparsity).encode(group, [weight]).tensors()[0]
    errors = [float((Quantize(b, sparsity).encode(group, [weight]).tensors()[0] - pruned).norm()) for b in range(2, 13)]
    # Scales are float16, which leaves a relative error of about 2^-11 whatever the bits.
    slack = 2**-11 * float(weight.norm())
    assert all(later <= earlier + slack for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 2e-3 * float(weight.norm())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_clipping_range_is_about_the_best_of_a_fine_grid(bits: int) -> None:
    weight = torch.randn(4, 200, generator=torch.Generator().manual_seed(2))
    stored = Quantize(bits).encode(_group(4, 200), [weight]).tensors()[0]
    level = (1 << (bits - 1)) - 1
    for row, values in zip(weight, stored, strict=True):
        scales = torch.linspace(0.02, 1.0, 500) * row.abs().max() / level
        rounded = (row / scales[:, None]).round().clamp(-level, level) * scales[:, None]
        best = float(((rounded - row) ** 2).sum(1).min())
        assert float(((values - row) ** 2).sum()) <= 1.02 * best


def test_bytes_are_those_of_the_formula() -> None:
    group, weight = _group(8, 20), torch.randn(8, 20, generator=torch.Generator().manual_seed(3))
    scales = 2 * 8
    assert Quantize(4).encode(group, [weight]).nbytes == scales + 160 * 4 // 8
    assert Quantize(2).encode(group, [weight]).nbytes == scales + 160 // 5
    assert Quantize(3, 0.5).encode(group, [weight]).nbytes == scales + 1 + 20 + 80 * 3 // 8
    assert Quantize(2, 0.5).encode(group, [weight]).nbytes == scales + 1 + 20 + 80 // 8
    assert Prune(0.5).encode(group, [weight]).nbytes == 1 + 20 + 80 * 4


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 400), st.integers(0, 99))
def test_masks_have_the_promised_sparsity(count: int, percent: int) -> None:
    sparsity = percent / 100
    removed = (percent * count) // 100
    assert survivor_count(count, sparsity) == max(1, count - removed)
    weight = torch.randn(1, count, generator=torch.Generator().manual_seed(count))
    for operator in (Prune(sparsity), Quantize(8, sparsity)):
        values = operator.encode(_group(1, count), [weight]).tensors()[0]
        kept = values.abs() > 0
        assert int(kept.sum()) <= max(1, count - removed)
        smallest = weight.abs()[kept].min() if kept.any() else torch.tensor(torch.inf)
        assert not bool((weight.abs()[~kept] > smallest).any()) or isinstance(operator, Quantize)


@pytest.mark.parametrize("operator", [Prune(0.6), Quantize(3, 0.6), Quantize(2, 0.6)], ids=choice_name)
def test_projecting_keeps_the_mask(operator: qc.menu.Operator) -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(4))
    packed = operator.encode(_group(6, 10), [weight])
    zeros = packed.tensors()[0] == 0
    for refit in (False, True):
        moved = packed.project([torch.full((6, 10), 7.0)], refit).tensors()[0]
        assert not moved[zeros].any() and bool((moved[~zeros] != 0).all())


def test_the_stored_values_do_not_overflow_half_precision() -> None:
    weight = torch.full((2, 3), 65504.0, dtype=torch.float16)
    for bits in range(2, 17):
        values = Quantize(bits).encode(_group(2, 3, dtype=torch.float16), [weight]).tensors()[0]
        assert bool(torch.isfinite(values).all()), bits


def test_folding_is_exact_in_eval_mode() -> None:
    norm = torch.nn.BatchNorm2d(6)
    torch.manual_seed(0)
    norm(torch.randn(30, 6, 4, 4) * 3 + 1)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    norm.eval()
    layout = qc.menu.discover(norm)
    parts = [norm.state_dict()[m.name] for m in layout.groups[0].members]
    small = torch.nn.BatchNorm2d(6).eval()
    reference = Fold(16).reference(layout.groups[0], parts)
    small.load_state_dict(dict(zip([m.name for m in layout.groups[0].members], reference, strict=True)))
    inputs = torch.randn(5, 6, 3, 3)
    assert torch.allclose(small(inputs), norm(inputs), atol=2e-6)
    scale, _ = scale_and_shift(dict(norm.state_dict()), norm.eps)
    assert torch.allclose(small.weight.double(), scale, atol=1e-6)


def test_names_read_back() -> None:
    for operator in (*OPERATORS, Quantize(4, np.float64(0.25))):
        assert parse(choice_name(operator)) == operator
    with pytest.raises(qc.errors.UnknownName, match="quantize"):
        parse("quantise(bits=4)")
    for wrong in (
        "quantize(bits=1)",
        "quantize(4)",
        "quantize(bits=4",
        "prune(sparsity=1.0)",
        "fold(bits=12)",
        "cast()",
    ):
        with pytest.raises(qc.errors.InvalidMenu):
            parse(wrong)


def test_menus_say_what_is_wrong_with_them() -> None:
    for wrong, said in (
        (lambda: qc.Menu(bits=(4, 4)), "twice"),
        (lambda: qc.Menu([Quantize(4)], bits=(2,)), "not both"),
        (lambda: qc.Menu([4]), "is not an operator"),  # type: ignore[list-item]
        (lambda: qc.Menu(["quantize"]), "not a choice of operator 'quantize'"),
        (lambda: qc.Menu(bits=range(2, 17), sparsity=[i / 20 for i in range(19)]), "at most 255"),
        (lambda: qc.Menu(sparsity=(1.5,)), "1.5"),
    ):
        with pytest.raises(qc.errors.InvalidMenu, match=said):
            wrong()


def test_sample_groups_cover_what_is_asked() -> None:
    labels = [label for label, _, _ in sample_groups()]
    for wanted in (
        "Conv3d",
        "depthwise",
        "grouped",
        "Embedding",
        "filter",
        "bfloat16",
        "float16",
        "zero",
        "tiny",
        "huge",
    ):
        assert any(wanted in label for label in labels), wanted


@pytest.mark.parametrize(
    "name", ["quantize(bits=2,sparsity=0.5)", "quantize(bits=8,sparsity=0.5)", "prune(sparsity=0.5)"]
)
def test_weights_that_are_zero_already_stay_so_and_take_no_place(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 32, generator=generator)
    weight[torch.rand(32, 32, generator=generator) < 0.8] = 0.0
    stored = parse(name).encode(_group(32, 32), [weight])
    assert bool((stored.tensors()[0][weight == 0] == 0).all())
    assert stored.nonzeros <= int(torch.count_nonzero(weight))


def test_sixteen_bit_vectors_never_become_infinite() -> None:
    assert StoredVector.of(torch.tensor([7e4, -1e9, 2.0]), 16).value().tolist() == [65504.0, -65504.0, 2.0]


def test_menus_take_names_of_choices() -> None:
    by_name = qc.Menu(["quantize(bits=4)", "prune(sparsity=0.5)", Quantize(3)])
    assert by_name.names == qc.Menu([Quantize(4), Prune(0.5), Quantize(3)]).names
    for wrong, error in (
        (["quantise(bits=4)"], qc.errors.UnknownName), (["quantize(bits=1)"], qc.errors.InvalidMenu),
        ("quantize(bits=4)", qc.errors.InvalidMenu), ([4], qc.errors.InvalidMenu),
    ):  # fmt: skip
        with pytest.raises(error):
            qc.Menu(wrong)  # type: ignore[arg-type]
