"""Layers stored again for the inputs that the compressed network gives them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.calibration.evaluation import outputs_of, score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.statistics.input_moments import Moments
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import compression_of
from qubo_compress.recovery import layer_inputs, reconstruction
from qubo_compress.report.comparisons import basis
from qubo_compress.testing import same_snapshot, snapshot
from tests.conftest import make_sample

TRELLIS = "coded(of='trellis(step=1.5)')"
NETWORKS = (
    "aliasing", "attention", "bfloat16", "cross-attention", "encoder-time-first", "float64", "gated",
    "grouped-view-inplace", "inputs-first", "perceptron", "tied", "twice", "volume",
)  # fmt: skip
"""Of the zoo: those whose weights are held, called or stored in unusual ways."""


def compressed(model: nn.Module, batches: Any, wanted: str = TRELLIS) -> nn.Module:
    """Every group as the wanted choice, or as the last one on its menu."""
    menu = qc.Menu([wanted, "fold(bits=16)", "cast(bits=16)"])
    table = qc.measure(model, batches, menu=menu, metric="magnitude", progress=False)
    choices = {
        group.name: wanted if wanted in names else names[-1]
        for group, names in zip(table.layout.groups, table.choices, strict=True)
    }
    return table.plan(choices).apply(model)


def examples_of(sample: Any) -> Any:
    """Some examples that both networks run on."""
    return read_examples(sample.batches)


def same_values(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same numbers."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def divergence(model: nn.Module, sample: Any) -> float:
    """Mean divergence from the original on the calibration examples."""
    examples = examples_of(sample)
    return score_examples(model, examples, "kl", outputs_of(sample.model, examples)).loss


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_their_choices_and_bytes(name: str, tmp_path: Path) -> None:
    any_sample = make_sample(name)
    small = compressed(any_sample.model, any_sample.batches)
    before, given = snapshot(small), snapshot(any_sample.model)
    size = qc.save(small, tmp_path / "before.qc")
    again = [
        qc.recover(small, any_sample.batches, any_sample.model, reconstruct=True, progress=False) for _ in range(2)
    ]
    assert same_snapshot(before, snapshot(small)) and same_snapshot(given, snapshot(any_sample.model))
    assert same_values(*again), "no chance has a part in it"
    assert compression_of(again[0]).plan == compression_of(small).plan
    assert qc.save(again[0], tmp_path / "after.qc") == size
    assert same_values(qc.load(tmp_path / "after.qc", any_sample.model), again[0])
    assert divergence(again[0], any_sample) <= divergence(small, any_sample) + 1e-6


class Chain(nn.Module):
    """Layers one after another, each followed by a normalisation or a bias."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.wide = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.rest = nn.ModuleList(nn.Linear(12, 12) for _ in range(depth))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Convolutions, a mean over positions, and linear layers."""
        values = self.wide(self.norm(self.first(inputs)).relu()).relu().mean((2, 3))
        for layer in self.rest:
            values = values + layer(values.relu())
        return values


def made_chain(seed: int) -> tuple[nn.Module, list[torch.Tensor]]:
    """A network and its calibration batches."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Chain().eval()
    model.norm.running_mean.normal_(generator=generator)
    model.norm.running_var.uniform_(0.5, 2.0, generator=generator)
    return model, [torch.randn(64, 3, 6, 6, generator=generator) for _ in range(4)]


@pytest.fixture
def chain() -> tuple[nn.Module, list[torch.Tensor]]:
    return made_chain(5)


@pytest.mark.parametrize("wanted", [TRELLIS, "coded(of='lattice(step=1.5,rate=1.0)')", "compensate(bits=2)"])
def test_outputs_come_nearer_by_what_a_repair_cannot_do(wanted: str) -> None:
    """On the average of several networks: codes of one network may be lucky before."""
    inputs = torch.randn(500, 3, 6, 6, generator=torch.Generator().manual_seed(6))
    shares = []
    for seed in range(10):
        model, batches = made_chain(seed)
        small = compressed(model, batches, wanted)
        repaired = qc.recover(small, batches, model, progress=False)
        again = qc.recover(small, batches, model, reconstruct=True, progress=False)
        with torch.no_grad():
            errors = [float((net(inputs) - model(inputs)).square().mean()) for net in (repaired, again)]
        shares.append(errors[1] / errors[0])
        sizes = [{name: stored.nbytes for name, stored in compression_of(net).stored.items()} for net in (small, again)]
        assert sizes[0] == sizes[1]
    assert sum(shares) / len(shares) < 0.95


def test_the_work_does_not_grow_with_the_square_of_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks run a fixed number of times, and every layer is stored again."""
    model = Chain(depth=26).eval()
    batches = [torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(1))]
    small = compressed(model, batches)
    runs = []
    gathered = reconstruction.gathered
    monkeypatch.setattr(
        reconstruction, "gathered", lambda *given, **named: runs.append(given[2]) or gathered(*given, **named)
    )
    found = reconstruction.reconstructed(small, compression_of(small), model, read_examples(batches))
    assert len(runs) == reconstruction.SEGMENTS and sum(map(len, runs)) == 28
    weights = [name for name in found if name.endswith("weight") and "norm" not in name]
    assert len(weights) >= 20


def told_of(original: torch.Tensor, compressed: torch.Tensor) -> layer_inputs.LayerInputs:
    """The means over (D, P) inputs."""
    count = compressed.shape[1]
    own, between = compressed @ compressed.T / count, original @ compressed.T / count
    return layer_inputs.LayerInputs(own[None], between[None], compressed.mean(1)[None], original.mean(1)[None])


def test_weights_that_undo_a_change_of_their_inputs_are_found() -> None:
    """If inputs arrive turned and stretched, the goal turns them back."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(6, 500, generator=generator, dtype=torch.float64)
    mixing = torch.eye(6, dtype=torch.float64) + 0.2 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    other, weights = mixing @ inputs, torch.randn(4, 6, generator=generator)
    told = told_of(inputs, other)
    goal = reconstruction._goal(weights, Moments(tuple(told.own), 0, 4), told)
    wanted = weights.double() @ torch.linalg.inv(mixing)
    assert float((goal.double() - wanted).norm()) < 0.1 * float((weights.double() - wanted).norm())
    unchanged = told_of(inputs, inputs)
    same = reconstruction._goal(weights, Moments(tuple(unchanged.own), 0, 4), unchanged)
    assert torch.allclose(same, weights, atol=1e-5)


def test_dead_channels_and_missing_halves_do_not_end_the_damping() -> None:
    """Of few examples: a dead block beside others, and inputs of which nobody knows whose they are."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    other = inputs + torch.randn(6, 8, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, 6, generator=generator)

    def goal(part: slice | None, dead: bool, fallback: float) -> torch.Tensor:
        told = told_of(inputs, other)
        told.half = told_of(inputs[:, part], other[:, part])._over(2.0) if part is not None else None
        both = (told,) if told.half is None else (told, told.half)
        for sums in both if dead else ():
            for name in ("own", "between", "own_mean", "original_mean"):
                setattr(sums, name, torch.cat([getattr(sums, name), torch.zeros_like(getattr(sums, name))]))
        moments = Moments(tuple(told.own), 0, 8 if dead else 4)
        found = reconstruction._goal(weights.repeat(2, 1) if dead else weights, moments, told, fallback)
        return found[:4]

    half = slice(0, None, 2)
    assert torch.allclose(goal(half, True, 0.01), goal(half, False, 0.01), atol=1e-6)
    nearer = float((goal(None, False, 2.5) - weights).norm())
    assert nearer < float((goal(None, False, 0.01) - weights).norm())


def test_means_are_those_of_the_inputs_of_both_networks(chain: Any) -> None:
    model, batches = chain
    small = compressed(model, batches)
    seen: dict[str, list[torch.Tensor]] = {"original": [], "small": []}
    for name, net in (("original", model), ("small", small)):
        handle = net.rest[1].register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].double()))
        with torch.no_grad():
            for batch in batches:
                net(batch)
        handle.remove()
    found = layer_inputs.gathered(model, small, ["rest.1.weight", "wide.weight"], read_examples(batches), once=True)
    x, y = torch.cat(seen["original"]).T, torch.cat(seen["small"]).T
    told = found["rest.1.weight"]
    assert torch.allclose(told.own[0], y @ y.T / 256, rtol=1e-4) and torch.allclose(
        told.between[0], x @ y.T / 256, rtol=1e-4
    )
    assert torch.allclose(told.own_mean[0], y.mean(1), rtol=1e-4) and told.columns == 256
    assert len(found["wide.weight"].own) == 4 and found["wide.weight"].columns == 256 * 36


def test_normalisations_are_matched_by_least_squares(chain: Any) -> None:
    """Of the outputs behind a normalisation, no scale and shift of a channel is nearer to the original's."""
    model, batches = chain
    small = compressed(model, batches)
    reconstruction.reconstructed(small, compression_of(small), model, read_examples(batches))
    with torch.no_grad():
        wanted, found = (
            net.norm(net.first(torch.cat(batches))).permute(1, 0, 2, 3).flatten(1).double() for net in (model, small)
        )
    apart = found - wanted
    spread = wanted.std(1)
    assert bool((apart.mean(1).abs() < 0.02 * spread).all())
    slope = (apart * (found - found.mean(1, keepdim=True))).mean(1) / found.var(1)
    assert bool((slope.abs() < 0.02).all())


def test_rows_with_other_choices_stay_as_they_are(chain: Any) -> None:
    model, batches = chain
    menu = qc.Menu([TRELLIS, "quantize(bits=4)", "fold(bits=16)", "cast(bits=16)"])
    table = qc.measure(model, batches, menu=menu, metric="magnitude", groups="filter", progress=False)
    choices = {
        group.name: names[-1] if TRELLIS not in names else TRELLIS if number % 2 else "quantize(bits=4)"
        for number, (group, names) in enumerate(zip(table.layout.groups, table.choices, strict=True))
    }
    small = table.plan(choices).apply(model)
    before = NetworkTensors(small)["rest.2.weight"].clone()
    found = reconstruction.reconstructed(small, compression_of(small), model, read_examples(batches))
    after, moved = NetworkTensors(small)["rest.2.weight"], 0
    for group in table.layout.groups:
        member = group.members[0]
        if member.name == "rest.2.weight" and member.rows is not None:
            same = torch.equal(member.part(before), member.part(after))
            assert same or group.name in found
            assert choices[group.name] == TRELLIS or same
            moved += not same
    assert moved


def test_frozen_groups_stay_as_they_are(chain: Any) -> None:
    model, batches = chain
    small = compressed(model, batches)
    kept = qc.recover(small, batches, model, reconstruct=True, frozen=["rest.*", "norm.*"], progress=False)
    before, after = NetworkTensors(small), NetworkTensors(kept)
    for name in before:
        if name.startswith(("rest", "norm")):
            assert torch.equal(before[name], after[name])
    assert not torch.equal(before["wide.weight"], after["wide.weight"])


def test_compress_keeps_it_only_where_held_out_examples_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = made_chain(0)  # of few seeds where they agree
    menu = qc.Menu(
        [f"coded(of='trellis(step={step})')" for step in (0.5, 1.0, 2.0)] + ["fold(bits=16)", "cast(bits=16)"]
    )

    def measured(**options: Any) -> qc.CompressionResult:
        return qc.compress(
            model, [(batch, model(batch).detach()) for batch in batches], qc.Budget(bytes=1_000), menu=menu,
            loss="squared-error", progress=False, **options,
        )  # fmt: skip

    plain, again = measured(reconstruct=False), measured()
    assert again.plan == plain.plan and again.recovery_kept
    assert again.recovered_comparison.measure < plain.recovered_comparison.measure
    monkeypatch.setattr(
        importlib.import_module("qubo_compress.recovery.recover"),
        "reconstructed",
        lambda small, carried, *rest: {
            name: stored.project([torch.zeros_like(value) for value in stored.tensors()])
            for name, stored in carried.stored.items()
        },
    )
    refused = measured()
    assert refused.recovered_comparison.measure <= plain.recovered_comparison.measure + 1e-12


def test_alternatives_are_compared_after_the_same_repair() -> None:
    model, batches = made_chain(0)
    menu = qc.Menu(
        [f"coded(of='trellis(step={step})')" for step in (0.5, 1.0, 2.0)] + ["fold(bits=16)", "cast(bits=16)"]
    )
    found = qc.compress(
        model, [(batch, model(batch).detach()) for batch in batches], qc.Budget(bytes=1_000), menu=menu,
        loss="squared-error", progress=False,
    )  # fmt: skip
    assert found.reconstructed
    chosen = found.taken.chosen
    assert chosen.repaired is not None and found.recovered_comparison.measure < chosen.repaired.measure
    assert "the best after reconstruction, which these figures lack" in basis(found)
    assert found.recovered_comparison.loss == pytest.approx(found.recovered.loss)
