"""Coded choices: the same values in fewer bytes, and within these bytes when the values change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.statistics.input_moments import InputMoments
from qubo_compress.menu.coding.coded import Coded, CodedGroup, can_be_coded, coded_group, coded_name
from qubo_compress.menu.coding.contexts import shapes_of
from qubo_compress.menu.coding.lattice import Lattice
from qubo_compress.menu.coding.rate import rate_aware
from qubo_compress.menu.operator import ALREADY_STORED, choice_name, looks_at_data, parse
from qubo_compress.menu.quantize import Quantize, QuantizedTensors
from qubo_compress.network.groups import Group, Member
from qubo_compress.testing import check_operator

NAMES = [
    "quantize(bits=2)", "quantize(bits=3)", "quantize(bits=4)", "quantize(bits=8)", "quantize(bits=2,sparsity=0.5)",
    "quantize(bits=3,sparsity=0.5)", "prune(sparsity=0.7)",
]  # fmt: skip


def _group(*shape: int, dtype: torch.dtype = torch.float32) -> Group:
    return Group("w", "weight", (Member("w", shape, dtype),), "Conv2d")


def _weight(*shape: int, seed: int = 0) -> Tensor:
    """Rows and channels of different strength, as trained weights have."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    channels = torch.randn(1, shape[1], *[1] * (len(shape) - 2), generator=generator).mul(0.4).exp()
    return weight * channels


GROUP, WEIGHT = _group(48, 32, 3, 3), _weight(48, 32, 3, 3)


@pytest.mark.parametrize("name", NAMES)
def test_coded_choices_hold_the_same_values_in_fewer_bytes(name: str) -> None:
    plain = parse(name).encode(GROUP, [WEIGHT])
    coded = Coded(name).encode(GROUP, [WEIGHT])
    assert torch.equal(plain.tensors()[0], coded.tensors()[0])
    assert (coded.nonzeros, coded.weight_bits) == (plain.nonzeros, plain.weight_bits)
    assert coded.nbytes < 0.98 * plain.nbytes
    assert coded.nbytes == len(coded.to_bytes())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("noise", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("refit", [False, True])
def test_changed_values_keep_to_their_bytes_with_little_more_error(name: str, noise: float, refit: bool) -> None:
    operator = Coded(name)
    packed = operator.encode(GROUP, [WEIGHT])
    generator = torch.Generator().manual_seed(1)
    moved = packed.tensors()[0] + noise * WEIGHT.std() * torch.randn(WEIGHT.shape, generator=generator)
    found = packed.project([moved], refit)
    data = found.to_bytes()
    assert len(data) == found.nbytes == packed.nbytes
    again, used = operator.decode(GROUP, memoryview(data))
    assert used == len(data) and torch.equal(again.tensors()[0], found.tensors()[0])
    error = float((found.tensors()[0] - moved).norm())
    assert error <= float((packed.tensors()[0] - moved).norm())
    if noise <= 0.2 and refit:
        nearest = float((packed.inner.project([moved], refit).tensors()[0] - moved).norm())
        assert error <= 1.35 * nearest + 0.02 * float(moved.norm())


def test_codes_that_have_to_move_are_those_of_least_error_per_bit() -> None:
    torch.manual_seed(0)
    packed = Coded("quantize(bits=3)").encode(GROUP, [WEIGHT])
    moved = packed.tensors()[0] + 0.25 * WEIGHT.std() * torch.randn(WEIGHT.shape)
    found, nearest = packed.project([moved]), packed.inner.project([moved])
    changed = found.tensors()[0] != nearest.tensors()[0]
    assert 0 < int(changed.sum()) < 0.4 * changed.numel()
    # Moving as many at random towards zero would cost a step squared each.
    steps = packed.inner.parts[0].steps().reshape(-1, 1, 1, 1).expand(WEIGHT.shape)[changed]
    rise = float((found.tensors()[0] - moved).square().sum() - (nearest.tensors()[0] - moved).square().sum())
    assert rise < 0.8 * float(steps.square().sum())


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(NAMES), st.sampled_from([(3, 2, 3, 3), (20, 9), (1, 5), (70, 40), (8, 3, 5)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.floats(0.001, 30.0), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_any_values_keep_to_the_bytes(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, scale: float, refit: bool, seed: int
) -> None:
    group, weight = _group(*shape, dtype=dtype), _weight(*shape, seed=seed).to(dtype)
    operator = Coded(name)
    packed = operator.encode(group, [weight])
    values = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))
    found = packed.project([values], refit)
    data = found.to_bytes()
    assert len(data) == packed.nbytes
    decoded, _ = operator.decode(group, memoryview(data))
    assert torch.equal(decoded.tensors()[0], found.tensors()[0])
    assert decoded.to_bytes() == data
    assert torch.isfinite(found.tensors()[0]).all()


@pytest.mark.parametrize(
    "name", ["lattice(step=0.7)", "compensate(bits=3)", "svd(rank=2,bits=4)", "frequency(sparsity=0.5,bits=4)"]
)
def test_choices_of_other_families_conform_when_they_are_coded(name: str) -> None:
    check_operator(Coded(name))


def test_choices_made_of_factors_stay_so() -> None:
    packed = Coded("frequency(sparsity=0.5,bits=4)").encode(GROUP, [WEIGHT])
    assert packed.parameters()
    numbers = [n + 0.3 * n.std() * torch.randn(n.shape) for n in packed.parameters()]
    for refit in (False, True):
        moved = packed.store(numbers, refit)
        assert len(moved.to_bytes()) == packed.nbytes
        assert torch.equal(packed.store(packed.parameters(), refit).tensors()[0], packed.tensors()[0])


def test_needs_are_those_of_the_inner_choice() -> None:
    driven, free = Coded("lattice(step=1.0)"), Coded("quantize(bits=4)")
    assert looks_at_data(driven) and driven.needs == parse(driven.of).needs
    assert not looks_at_data(free) and free.needs == ()
    with pytest.raises(qc.errors.InvalidMenu, match="looks at calibration data"):
        driven.encode(GROUP, [WEIGHT])
    assert free.encode_with(GROUP, [WEIGHT], {}).to_bytes() == free.encode(GROUP, [WEIGHT]).to_bytes()


def test_what_is_stored_already_is_not_made_again() -> None:
    stored = Quantize(5).encode(GROUP, [WEIGHT])
    coded = Coded("lattice(step=1.0)").encode_with(GROUP, [WEIGHT], {ALREADY_STORED: {"lattice(step=1.0)": stored}})
    assert coded.inner is stored


def test_choices_that_cannot_be_coded_are_refused_with_the_reason() -> None:
    for name in ("keep", "cast(bits=8)", "coded(of='quantize(bits=4)')", "digital(bits=4)", "analog(cells=2)"):
        assert not can_be_coded(parse(name))
        with pytest.raises(qc.errors.InvalidMenu, match="cannot be coded"):
            Coded(name)
    for of, rate in (("prune(sparsity=0.5)", 0.5), ("quantize(bits=2,sparsity=0.5)", 0.5), ("quantize(bits=4)", -1)):
        with pytest.raises(qc.errors.InvalidMenu, match="rate"):
            Coded(of, rate)
    with pytest.raises(qc.errors.UnknownName):
        Coded("quantise(bits=4)")
    unreliable = parse("digital(bits=4)").encode(GROUP, [WEIGHT])
    with pytest.raises(qc.errors.InvalidMenu, match="unreliable"):
        coded_group(unreliable, GROUP, "digital(bits=4)")


def test_names_read_back() -> None:
    for operator in (*Coded.samples(), Coded("frequency(bands=2,bits=4)"), Coded("quantize(bits=4)", rate=1)):
        assert parse(choice_name(operator)) == operator
    assert parse(coded_name("quantize(bits=4,sparsity=0.5)")) == Coded("quantize(bits=4,sparsity=0.5)")


def test_rates_buy_bytes_at_less_error_than_fewer_levels_do() -> None:
    def measured(operator: Coded) -> tuple[int, float]:
        packed = operator.encode(GROUP, [WEIGHT])
        return packed.nbytes, float((packed.tensors()[0] - WEIGHT).square().sum())

    points = [measured(Coded("quantize(bits=5)", rate)) for rate in (0.0, 0.5, 1.0, 2.0)]
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in zip(points, points[1:], strict=False))
    coarse, fine = measured(Coded("quantize(bits=4)")), points[0]
    size, error = points[1]
    # On the straight line between four and five bits, in the logarithm of the error.
    share = (size - coarse[0]) / (fine[0] - coarse[0])
    assert np.log(error) < share * np.log(fine[1]) + (1 - share) * np.log(coarse[1])


def test_rates_leave_pruned_weights_pruned() -> None:
    stored = Quantize(4, 0.5).encode(GROUP, [WEIGHT])
    rated = rate_aware(stored, [WEIGHT], 1.0, shapes_of(GROUP))
    assert torch.equal(rated.parts[0].mask, stored.parts[0].mask)
    assert not rated.parts[0].codes[~stored.parts[0].mask].any()
    check_operator(Coded("quantize(bits=4,sparsity=0.5)", 1.0))


def test_grids_are_found_in_stored_forms_and_put_back() -> None:
    two = Group("w", "weight", (Member("a", (4, 3), torch.float32), Member("b", (2, 5), torch.float32)), "Linear")
    parts = [_weight(4, 3), _weight(2, 5)]
    stored = Quantize(3).encode(two, parts)
    grids = stored.grids()
    assert [g.codes.shape for g in grids] == [(4, 3), (2, 5)]
    doubled = stored.with_grids(iter([g.with_steps(2 * g.steps()) for g in grids]))
    assert isinstance(doubled, QuantizedTensors)
    for new, old in zip(doubled.tensors(), stored.tensors(), strict=True):
        assert torch.equal(new, 2 * old)


def test_menus_offer_coded_choices_beside_plain_ones_or_instead() -> None:
    menu = qc.Menu(bits=(4, None), sparsity=(0.0, 0.5), vector_bits=(8,))
    both, only = menu.coded(), menu.coded(instead=True)
    inner = ["quantize(bits=4)", "quantize(bits=4,sparsity=0.5)", "prune(sparsity=0.5)"]
    assert set(both.names) == {*menu.names, *map(coded_name, inner)}
    assert set(only.names) == {"keep", "fold(bits=8)", "cast(bits=8)", *map(coded_name, inner)}
    assert both.coded().names == both.names


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, 3)
        self.second = nn.Conv2d(12, 12, 3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def test_files_of_recovered_networks_are_as_large_as_planned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    batches = [(torch.randn(60, 1, 8, 8), torch.randint(0, 4, (60,)))]
    menu = qc.Menu(bits=(3, 6), sparsity=(0.0, 0.5), vector_bits=()).coded(instead=True)
    table = qc.measure(net, batches, menu=menu, progress=False)
    pairs = enumerate(zip(table.group_names, table.choices, strict=True))
    plan = table.plan({name: names[-1 - i % 4 % len(names)] for i, (name, names) in pairs})
    small = plan.apply(net)
    assert qc.save(small, tmp_path / "before") <= plan.bytes
    better = qc.recover(small, batches, net, epochs=2, learning_rate=3e-3, progress=False)
    assert qc.save(better, tmp_path / "after") <= plan.bytes
    loaded = qc.load(tmp_path / "after", net)
    stored = qc.plan.compression_of(loaded).stored
    assert any(isinstance(packed, CodedGroup) for packed in stored.values())
    for key, value in better.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("refit", [False, True])
def test_codes_of_one_sign_keep_to_their_range(sign: float, refit: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (sign * (2 + 0.3 * torch.rand(20, 20, generator=generator) ** power) for power in (0.2, 1.0))
    group = _group(20, 20)
    moments = Lattice(step=0.02).needs[0].imagined(group, [before], generator)
    stored = Coded("lattice(step=0.02)").encode_with(group, [before], {InputMoments(): moments})
    moved = stored.project([after], refit)
    assert moved.nbytes == stored.nbytes == len(moved.to_bytes())
    assert float((moved.tensors()[0] - after).norm()) <= float((stored.tensors()[0] - after).norm())


def test_menus_of_all_families_offer_what_can_be_coded() -> None:
    names = qc.Menu.of(coded=True).names
    assert all(can_be_coded(parse(parse(name).of)) for name in names if name.startswith("coded("))  # type: ignore[attr-defined]
