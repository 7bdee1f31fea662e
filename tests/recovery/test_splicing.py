"""Splicing: masks move while a network is fine-tuned, bytes do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.artifact.writing import payload_of
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.private import CARRIED
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import compression_of
from qubo_compress.recovery.latent import Latent
from qubo_compress.recovery.splicing import FROZEN_FROM, HIGH, LOW, Splicing, exchange
from qubo_compress.testing import same_snapshot, snapshot

CHOICES = ["quantize(bits=4,sparsity=0.5)", "quantize(bits=2,sparsity=0.9)", "frequency(sparsity=0.6,bits=4)"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 3)
    ).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(250, 2, 7, 7, generator=generator), torch.randint(0, 3, (250,), generator=generator))]


def compressed(choice: str, groups: Any = "layer") -> tuple[nn.Module, nn.Module]:
    """A network, and the network with the choice for every weight that it suits."""
    net = network()
    menu = qc.Menu([qc.menu.parse(choice)])
    table = qc.measure(net, [(batches()[0][0][:6], batches()[0][1][:6])], menu=menu, metric="magnitude", groups=groups,
                       progress=False)  # fmt: skip
    chosen = {name: choice for name, names in zip(table.group_names, table.choices, strict=True) if choice in names}
    return net, table.plan(chosen).apply(net)


def survivors(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    found = {name: list(stored.movable_masks()) for name, stored in compression_of(model).stored.items()}
    return {name: masks for name, masks in found.items() if masks}


@pytest.mark.parametrize("groups", ["layer", "filter", r"^[03](\.weight)"])
@pytest.mark.parametrize("choice", CHOICES)
def test_masks_move_and_bytes_stay(choice: str, groups: str, tmp_path: Path) -> None:
    net, small = compressed(choice, groups)
    before, untouched = snapshot(net), snapshot(small)
    tuned = qc.recover(small, batches(), net, epochs=6, learning_rate=2e-2, splicing=True, progress=False)
    assert same_snapshot(before, snapshot(net)) and same_snapshot(untouched, snapshot(small))
    old, new = survivors(small), survivors(tuned)
    assert old.keys() == new.keys() and old
    assert any(not torch.equal(a, b) for name in old for a, b in zip(old[name], new[name], strict=True))
    for name in old:
        assert [int(m.sum()) for m in old[name]] == [int(m.sum()) for m in new[name]]
        stored = compression_of(tuned).stored[name]
        assert stored.nbytes <= compression_of(small).stored[name].nbytes
    plan = compression_of(tuned).plan
    assert qc.save(tuned, tmp_path / "net") == plan.bytes == (tmp_path / "net").stat().st_size
    loaded = qc.load(tmp_path / "net", net)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), tuned.parameters(), strict=True))
    qc.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()


def test_a_mask_that_takes_fewer_bytes_leaves_the_file_as_long(tmp_path: Path) -> None:
    net, small = compressed("quantize(bits=2,sparsity=0.9)")
    compression = compression_of(small)
    packed = compression.stored["5.weight"]
    (mask,) = packed.movable_masks()
    front = torch.zeros_like(mask).reshape(-1)
    front[: int(mask.sum())] = True
    shorter = packed.remasked([front.reshape(mask.shape)], packed.tensors())
    assert shorter.nbytes < packed.nbytes
    moved = compression.with_stored({"5.weight": shorter})
    made = network()
    made.load_state_dict(small.state_dict())
    setattr(made, CARRIED, moved)
    with torch.no_grad():
        made[5].weight.copy_(shorter.tensors()[0])  # type: ignore[union-attr, operator]
    assert len(payload_of(moved, made)) < len(payload_of(compression, small))
    assert qc.save(made, tmp_path / "net") == moved.plan.bytes == (tmp_path / "net").stat().st_size
    assert torch.equal(qc.load(tmp_path / "net", net)[5].weight, made[5].weight)  # type: ignore[index]


def test_masks_that_would_cost_more_are_not_taken() -> None:
    net, small = compressed("quantize(bits=2,sparsity=0.9)")
    compression = compression_of(small)
    packed = compression.stored["5.weight"]
    (mask,) = packed.movable_masks()
    # All survivors side by side: any exchange splits a run and takes more bytes.
    front = torch.zeros_like(mask).reshape(-1)
    front[: int(mask.sum())] = True
    dense = packed.remasked([front.reshape(mask.shape)], packed.tensors())
    latent = Latent(compression.with_stored({"5.weight": dense}), NetworkTensors(small))
    paid = latent.stored["5.weight"].nbytes
    splicing = Splicing(net, seed=0)
    splicing(latent, 0, 100)
    generator = torch.Generator().manual_seed(3)
    for step in range(1, 60):
        with torch.no_grad():
            for number in latent.values("5.weight"):
                number.copy_(torch.randn(number.shape, generator=generator))
        splicing(latent, step, 100)
        stored: Stored = latent.stored["5.weight"]
        assert stored.nbytes <= paid and len(stored.to_bytes()) == stored.nbytes


def test_masks_are_frozen_at_the_end_and_updated_ever_more_rarely() -> None:
    net, small = compressed("frequency(sparsity=0.6,bits=4)")
    latent = Latent(compression_of(small), NetworkTensors(small))
    splicing = Splicing(net, seed=0)
    splicing(latent, 0, 300)
    generator = torch.Generator().manual_seed(0)
    changed = []
    for step in range(1, 301):
        former = latent.stored["3.weight"]
        with torch.no_grad():
            for number in latent.values("3.weight"):
                number.copy_(torch.randn(number.shape, generator=generator))
        splicing(latent, step, 300)
        if latent.stored["3.weight"] is not former:
            changed.append(step)
    assert changed and max(changed) < 300 * FROZEN_FROM
    half = 150 * FROZEN_FROM
    assert sum(step <= half for step in changed) > 3 * sum(step > half for step in changed)
    assert splicing.returned > len(changed)


def test_pruned_numbers_wake_with_the_values_of_the_teacher() -> None:
    net, small = compressed("frequency(sparsity=0.6,bits=4)")
    latent = Latent(compression_of(small), NetworkTensors(small))
    packed = latent.stored["3.weight"]
    before = latent.values("3.weight")[0].detach().clone()
    Splicing(net, seed=0)(latent, 0, 10)
    after, mask = latent.values("3.weight")[0].detach(), packed.movable_masks()[0]
    wanted = packed.numbers([net.state_dict()["3.weight"]])[0]
    limit = before[mask].abs().min()
    assert torch.equal(after[mask], before[mask])
    assert torch.equal(after[~mask], wanted[~mask].clamp(-limit, limit)) and after[~mask].any()


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_exchanges_are_even_and_respect_the_hysteresis(count: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(count, generator=generator)
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=generator)[: max(1, int(share * count))]] = True
    leaving, returning = exchange(numbers, mask)
    assert leaving.numel() == returning.numel()
    threshold = torch.topk(numbers.abs(), int(mask.sum())).values[-1]
    assert mask[leaving].all() and bool((numbers[leaving].abs() < LOW * threshold).all())
    assert not mask[returning].any() and bool((numbers[returning].abs() > HIGH * threshold).all())
    assert len(set(leaving.tolist())) == leaving.numel() and len(set(returning.tolist())) == returning.numel()
    best = torch.zeros_like(mask)
    best[torch.topk(numbers.abs(), int(mask.sum())).indices] = True
    assert exchange(numbers, best)[0].numel() == 0


def test_the_same_seed_gives_the_same_masks() -> None:
    net, small = compressed(CHOICES[2])
    tuned = [
        qc.recover(small, batches(), net, epochs=3, seed=4, learning_rate=2e-2, splicing=True, progress=False)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(tuned[0].parameters(), tuned[1].parameters(), strict=True))


def test_plans_without_masks_are_tuned_as_without_splicing(caplog: pytest.LogCaptureFixture) -> None:
    net, small = compressed("quantize(bits=4)")
    tuned = [qc.recover(small, batches(), net, epochs=1, splicing=moving, progress=False) for moving in (False, True)]
    assert all(torch.equal(a, b) for a, b in zip(tuned[0].parameters(), tuned[1].parameters(), strict=True))
    assert "nothing will be spliced" in caplog.text


def test_splicing_needs_epochs() -> None:
    net, small = compressed("quantize(bits=4)")
    with pytest.raises(errors.InvalidBudget, match="epochs"):
        qc.recover(small, batches(), net, splicing=True, progress=False)


def test_numbers_wake_although_a_survivor_is_stored_as_zero() -> None:
    net, small = compressed("quantize(bits=4,sparsity=0.5)")
    latent = Latent(compression_of(small), NetworkTensors(small))
    number, mask = latent.values("3.weight")[0], latent.stored["3.weight"].movable_masks()[0]
    with torch.no_grad():
        number.reshape(-1)[mask.reshape(-1).nonzero()[0]] = 0.0
    Splicing(net, seed=0)(latent, 0, 10)
    assert bool((number.detach()[~mask] != 0).all())
