"""Coded choices: the bytes are those of the coder, and stay so whatever values come later."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import CorruptArtifact, InvalidMenu, MissingDependency
from qubo_compress.menu.coding.coded import Coded, CodedGroup, coded_name
from qubo_compress.menu.coding.writer import coded_bytes
from qubo_compress.menu.operator import parse, stored_as
from qubo_compress.network.groups import Group, Member
from qubo_compress.testing import registered_samples
from qubo_compress.testing.operators import stored_by

pytest.importorskip("constriction")

INNER = (
    "quantize(bits=2)", "quantize(bits=4)", "quantize(bits=8)", "quantize(bits=2,sparsity=0.5)",
    "quantize(bits=3,sparsity=0.7)", "prune(sparsity=0.9)", "compensate(bits=3)", "compensate(bits=2,sparsity=0.5)",
    "lattice(step=0.8,rate=1.0)", "lattice(step=2.2)",
)  # fmt: skip


def group_of(weight: Tensor) -> Group:
    return Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype),), "Linear")


def encoded(name: str, weight: Tensor, seed: int = 0) -> CodedGroup:
    packed = stored_by(parse(coded_name(name)), group_of(weight), [weight], seed)
    assert isinstance(packed, CodedGroup)
    return packed


@pytest.mark.parametrize("name", INNER)
def test_the_bytes_are_those_of_the_coder(name: str) -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    packed = encoded(name, weight)
    plain = stored_by(parse(name), group_of(weight), [weight])
    assert all(torch.equal(a, b) for a, b in zip(packed.tensors(), plain.tensors(), strict=True))
    assert packed.nbytes == len(packed.to_bytes())
    assert packed.nbytes <= plain.nbytes + 20
    assert (packed.nonzeros, packed.weight_bits) == (plain.nonzeros, plain.weight_bits)
    if name in ("quantize(bits=4)", "quantize(bits=3,sparsity=0.7)", "lattice(step=2.2)"):
        assert packed.nbytes < 0.97 * plain.nbytes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(INNER), seed=st.integers(0, 1000), refit=st.booleans(),
    kind=st.sampled_from(["near", "wide", "uniform", "far", "signs", "zero", "spike"]),
)  # fmt: skip
def test_whatever_comes_fits(name: str, seed: int, refit: bool, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(12, 17, generator=generator)
    packed = encoded(name, weight, seed)
    noise = torch.randn(12, 17, generator=generator)
    other = {
        "near": weight + 0.1 * noise,
        "wide": 3 * noise,
        "uniform": 8 * torch.rand(12, 17, generator=generator) - 4,
        "far": 1e20 * noise,
        "signs": 1e6 * noise.sign(),
        "zero": 0 * noise,
        "spike": torch.where(torch.arange(17) == 3, 1e4, 0.0).expand(12, 17),
    }[kind]
    moved = packed.project([other], refit)
    assert moved.nbytes == packed.nbytes == len(moved.to_bytes())
    assert bool(torch.isfinite(moved.tensors()[0]).all())
    decoded, used = parse(coded_name(name)).decode(group_of(weight), memoryview(moved.to_bytes()))
    assert used == moved.nbytes and torch.equal(decoded.tensors()[0], moved.tensors()[0])
    again = moved.project(moved.tensors())
    assert torch.equal(again.tensors()[0], moved.tensors()[0])
    if kind in ("near", "zero"):
        before, after = (float((p.tensors()[0] - other).norm()) for p in (packed, moved))
        assert after <= before * 1.05 + 1e-6


def test_moving_few_codes_loses_little() -> None:
    """Values that need more bytes than there are come nearer than by going a part of the way."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 50, generator=generator)
    packed = encoded("quantize(bits=4)", weight)
    wider = weight * (1 + 0.15 * torch.rand(60, 50, generator=generator))
    free = packed.inner.project([wider])
    assert len(coded_bytes(free, packed.shapes, packed.codings)) > packed.capacity  # type: ignore[arg-type]
    fitted = float((packed.project([wider]).tensors()[0] - wider).norm())
    best, stayed = (float((p.tensors()[0] - wider).norm()) for p in (free, packed))
    assert best < fitted < min(stayed, 1.3 * best)


@pytest.mark.parametrize(
    "operator", [o for o in registered_samples() if type(o).__name__ not in ("Coded", "Keep")], ids=repr
)
def test_every_operator_is_coded_or_refused(operator: Any) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    group = Group("w", "weight", (Member("w", tuple(weight.shape), weight.dtype),), "Conv2d")
    if operator.refusal(group, [weight]) is not None:
        return
    name = qc.menu.choice_name(operator)
    try:
        coded = Coded(of=name)
    except InvalidMenu:
        return
    packed = stored_by(coded, group, [weight])
    numbers = packed.parameters()
    assert len(numbers) == len(packed.inner.parameters())  # type: ignore[attr-defined]
    if numbers:
        for size in (0.3, 1e3):
            far = packed.store([n + size * torch.randn_like(n) for n in numbers], refit=True)
            assert far.nbytes == packed.nbytes == len(far.to_bytes())


@pytest.mark.parametrize("name", ["analog", "digital(bits=4)", "coded(of='quantize(bits=4)')", "keep", "cast(bits=16)"])
def test_what_cannot_be_coded_is_refused(name: str) -> None:
    with pytest.raises(InvalidMenu):
        Coded(of=name)


def test_a_choice_has_one_name() -> None:
    assert Coded(of="quantize(bits=4,sparsity=0)") == Coded(of="quantize(bits=4)")
    assert parse(coded_name("lattice(step=1)")) == Coded(of="lattice(step=1.0)")
    assert Coded(of="compensate(bits=3)").needs and not Coded(of="quantize(bits=3)").needs
    with pytest.raises(InvalidMenu, match="looks at calibration data"):
        Coded(of="compensate(bits=3)").encode(group_of(torch.ones(2, 2)), [torch.ones(2, 2)])


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)).eval()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    inputs = torch.randn(90, 12, generator=torch.Generator().manual_seed(1))
    return [(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())]


def plan_of(net: nn.Module, batches: Any, *choices: str) -> qc.Plan:
    menu = qc.Menu([parse(name) for name in choices])
    table = qc.measure(net, batches, menu=menu, metric="magnitude", progress=False)
    weights = ("0.weight", "2.weight", "4.weight")
    return table.plan(
        {g: choices[weights.index(g) % len(choices)] if g in weights else "keep" for g in table.group_names}
    )


CHOICES = ("coded(of='lattice(step=0.8,rate=1.0)')", "coded(of='compensate(bits=3)')", "coded(of='quantize(bits=4)')")


def test_plans_and_files_carry_the_payloads(net: nn.Module, batches: Any, tmp_path: Path) -> None:
    plan = plan_of(net, batches, *CHOICES)
    assert set(plan.payloads) == {"0.weight", "2.weight"}
    plan.save(tmp_path / "plan.json")
    again = qc.Plan.load(tmp_path / "plan.json")
    small, other = plan.apply(net), again.apply(net)
    assert qc.save(small, tmp_path / "net.safetensors") == plan.bytes
    loaded = qc.load(tmp_path / "net.safetensors", net)
    for key, value in small.state_dict().items():
        assert torch.equal(other.state_dict()[key], value) and torch.equal(loaded.state_dict()[key], value)


def test_fine_tuning_keeps_the_size_of_the_file(net: nn.Module, batches: Any, tmp_path: Path) -> None:
    plan = plan_of(net, batches, *CHOICES)
    small = plan.apply(net)
    tuned = qc.recover(small, batches, net, epochs=1, learning_rate=0.05, progress=False)
    assert qc.save(tuned, tmp_path / "net.safetensors") == plan.bytes
    moved = [k for k, v in tuned.state_dict().items() if not torch.equal(v, small.state_dict()[k])]
    assert any(key.endswith("weight") for key in moved)
    loaded = qc.load(tmp_path / "net.safetensors", net)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in tuned.state_dict().items())


def test_altered_payloads_are_refused() -> None:
    weight = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    name = coded_name("quantize(bits=3,sparsity=0.5)")
    data = encoded("quantize(bits=3,sparsity=0.5)", weight).to_bytes()
    group = group_of(weight)
    assert stored_as(name, group, [weight], data).to_bytes() == data
    for place in range(len(data)):
        for value in (0, 255, data[place] ^ 0x10):
            altered = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                found = stored_as(name, group, [weight], altered).tensors()[0]
            except CorruptArtifact:
                continue
            assert found.shape == weight.shape
        with pytest.raises(CorruptArtifact):
            stored_as(name, group, [weight], data[:place])


def test_only_older_files_need_another_coder(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def refuse(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] == "constriction":
            raise ImportError(f"No module named {name!r}")
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)
    weight = torch.randn(3, 4)
    packed = parse(CHOICES[2]).encode(group_of(weight), [weight])
    found, _ = parse(CHOICES[2]).decode(group_of(weight), memoryview(packed.to_bytes()))
    assert torch.equal(found.tensors()[0], packed.tensors()[0])
    with pytest.raises(MissingDependency, match=r"constriction.*qubo_compress\[entropy\]"):
        parse(CHOICES[2]).decode(group_of(weight), memoryview(b"\x05\x00abcdef"))
