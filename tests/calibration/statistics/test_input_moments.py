"""Input moments predict what an error of a layer's weights does to its outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.calibration.statistics import Calibration
from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import InvalidMenu
from qubo_compress.network.discovery import discover
from qubo_compress.network.inputs import call
from qubo_compress.network.losses.classification import make_loss

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (5,)),
    "linear over tokens": (nn.Linear(5, 4), (3, 2, 5)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (3, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 7, 6)),
    "conv3d": (nn.Conv3d(2, 3, (1, 2, 3), padding=1), (2, 4, 4, 5)),
    "1x1": (nn.Conv2d(3, 4, 1), (3, 4, 4)),
    "dilated": (nn.Conv2d(2, 3, 3, dilation=(2, 1), padding=2), (2, 8, 7)),
    "same": (nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 6, 6)),
    "same, dilated": (nn.Conv1d(2, 3, 2, padding="same", dilation=3), (2, 9)),
    "valid": (nn.Conv1d(2, 3, 2, padding="valid"), (2, 9)),
    "reflect": (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (2, 6, 6)),
    "replicate": (nn.Conv3d(1, 2, 3, padding=1, padding_mode="replicate"), (1, 4, 4, 4)),
    "circular": (nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 8)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "depthwise": (nn.Conv1d(4, 8, 3, groups=4, stride=2), (4, 9)),
}


def calibration(model: nn.Module, inputs: Any, weights: Tensor | None = None) -> Calibration:
    batch = (inputs, torch.zeros(len(inputs), dtype=torch.int64))
    examples: Examples = read_examples([batch if weights is None else (*batch, weights)], batch_size=4)
    rows = lambda x: call(model, x).float().flatten(1)  # noqa: E731
    return Calibration(model, examples, make_loss("cross-entropy"), rows, seed=0)


def collected(model: nn.Module, inputs: Tensor, name: str = "0.weight", **options: Any) -> Moments:
    group = next(g for g in discover(model).groups if g.name == name)
    return InputMoments().collect(calibration(model, inputs, **options), group)[0]


def changed_output(layer: nn.Module, error: Tensor, inputs: Tensor, weights: Tensor) -> Tensor:
    """(rows,) weighted squared change of every output row, by running the layer."""
    other = copy.deepcopy(layer).double()
    with torch.no_grad():
        other.weight.copy_(error)
        other.bias.zero_()
        out = other(inputs.double())
    out = out.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(2) if out.ndim > 2 else out.T[..., None]
    return (out.square().sum(2) * weights.double()).sum(1)


def predicted(moments: Moments, error: Tensor) -> Tensor:
    flat = error.double().flatten(1)
    return torch.stack([row @ moments.blocks[moments.block_of(r)] @ row for r, row in enumerate(flat)])


@pytest.mark.parametrize("name", LAYERS)
def test_they_predict_the_change_of_the_outputs(name: str) -> None:
    layer, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, *shape, generator=generator)
    weights = torch.rand(6, generator=generator)
    moments = collected(nn.Sequential(layer), inputs, weights=weights)
    for _ in range(3):
        error = torch.randn(layer.weight.shape, generator=generator)
        expected = changed_output(layer, error, inputs, weights / weights.sum())
        torch.testing.assert_close(predicted(moments, error), expected, rtol=1e-5, atol=1e-7)


def test_every_entry_is_the_sum_over_unfolded_inputs() -> None:
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    inputs = torch.randn(5, 2, 7, 7)
    columns = nn.functional.unfold(inputs.double(), 3, padding=1, stride=2)
    expected = torch.einsum("nip,njp->ij", columns, columns) / 5
    found = collected(nn.Sequential(layer), inputs).blocks[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found, found.T)


def test_parts_of_a_large_layer_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    inputs = torch.randn(7, 3, 6, 6)
    whole = collected(net, inputs).blocks[0]
    monkeypatch.setattr("qubo_compress.calibration.statistics.input_moments.PATCH_VALUES", 1)
    torch.testing.assert_close(collected(net, inputs).blocks[0], whole, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """One layer called twice, and a second module that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.relu(self.first(x)))
        return self.head(self.second(input=x.tanh()))


def test_every_call_of_every_owner_counts() -> None:
    torch.manual_seed(0)
    net, inputs = Twice().eval(), torch.randn(9, 4)
    with torch.no_grad():
        one = torch.relu(net.first(inputs))
        seen = [inputs, one, net.first(one).tanh()]
    expected = sum(x.double().T @ x.double() for x in seen) / 9
    torch.testing.assert_close(collected(net, inputs, "first.weight").blocks[0], expected, rtol=1e-5, atol=1e-6)
    last = net.second(seen[2]).detach().double()
    torch.testing.assert_close(collected(net, inputs, "head.weight").blocks[0], last.T @ last / 9, rtol=1e-5, atol=1e-6)


class Folded(nn.Module):
    """Time in the first axis, a layer without a batch axis, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv2d(1, 2, 3)
        self.shared = nn.Linear(3, 2, bias=False)
        self.image = nn.Conv2d(1, 2, 3)
        self.unused = nn.Linear(3, 3)
        self.register_buffer("code", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        frames = self.frames(x.reshape(-1, 1, 5, 5))
        one = self.image(x[0, 0][None]).mean()
        return frames.reshape(len(x), -1) + self.shared(self.code).sum() + one


def test_rows_that_are_no_examples() -> None:
    torch.manual_seed(0)
    net, inputs, weights = Folded().eval(), torch.randn(4, 3, 5, 5), torch.tensor([1.0, 2.0, 0.0, 5.0])
    share = (weights / weights.sum()).double()
    columns = nn.functional.unfold(inputs.reshape(-1, 1, 5, 5).double(), 3)
    expected = torch.einsum("n,nip,njp->ij", share.repeat_interleave(3), columns, columns)
    found = collected(net, inputs, "frames.weight", weights=weights).blocks[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    code = net.code.double()
    shared = collected(net, inputs, "shared.weight", weights=weights).blocks[0]
    torch.testing.assert_close(shared, torch.outer(code, code), rtol=1e-5, atol=1e-6)
    image = nn.functional.unfold(inputs[:1, :1].double(), 3)[0]
    found = collected(net, inputs, "image.weight", weights=weights).blocks[0]
    torch.testing.assert_close(found, image @ image.T, rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidMenu, match=r"what unused\.weight multiplies was not seen"):
        collected(net, inputs, "unused.weight")


def test_entries_of_a_weight_that_an_embedding_shares_count_alike() -> None:
    linear, embedding = nn.Linear(4, 6, bias=False), nn.Embedding(6, 4)
    linear.weight = embedding.weight
    found = collected(nn.Sequential(embedding, linear), torch.randint(6, (3,)))
    assert len(found.blocks) == 1 and torch.equal(found.blocks[0], torch.eye(4, dtype=torch.float64))


def test_filters_share_moments_and_factors() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2)).eval()
    data = calibration(net, torch.randn(5, 4, 8))
    filters = [g for g in discover(net, "filter").groups if g.kind == "weight"]
    found = [InputMoments().collect(data, group)[0] for group in filters]
    assert [m.block_of(0) for m in found] == [0, 0, 0, 1, 1, 1]
    assert [m.spans(1) for m in found] == [[(m.block_of(0), 0, 1)] for m in found]
    assert found[1].inverse_factor(0, 0.01) is found[2].inverse_factor(0, 0.01)
    whole = InputMoments().collect(data, next(g for g in discover(net).groups if g.kind == "weight"))[0]
    assert whole.spans(6) == [(0, 0, 3), (1, 3, 6)]
    assert all(torch.equal(a, b) for a, b in zip(whole.blocks, found[0].blocks, strict=True))


def test_the_inverse_factor_is_that_of_the_damped_moments() -> None:
    raw = torch.randn(30, 6, dtype=torch.float64)
    raw[:, 2] = 0.0
    moments = Moments((raw.T @ raw,), 0, 4)
    upper = moments.inverse_factor(0, 0.1)
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper @ moments.damped(0, 0.1), torch.eye(6, dtype=torch.float64))
    dead = Moments((torch.zeros(3, 3, dtype=torch.float64),), 0, 2)
    assert torch.equal(dead.inverse_factor(0, 0.1), torch.eye(3, dtype=torch.float64))
    with pytest.raises(InvalidMenu, match="cannot be inverted"):
        Moments((torch.full((2, 2), torch.nan, dtype=torch.float64),), 0, 2).inverse_factor(0, 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, inputs = (
        nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).to(dtype).eval(),
        torch.randn(5, 2, 6),
    )
    columns = inputs.to(dtype).double().unfold(2, 3, 1).permute(1, 3, 0, 2).reshape(6, -1)
    expected = columns @ columns.T / 5
    found = collected(net, inputs.to(dtype)).blocks[0]
    torch.testing.assert_close(found, expected, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Flatten(), nn.Linear(12, 2))
    net.eval()
    net[2].train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    for name in ("0.weight", "4.weight"):
        collected(net, torch.randn(6, 2, 6), name)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight)) and net[4].weight.grad is None
    assert not any(m._forward_hooks for m in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_forward_that_fails_leaves_no_hooks() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 2))
    with pytest.raises(RuntimeError):
        collected(net, torch.randn(3, 4), "1.weight")
    assert not any(m._forward_hooks for m in net.modules())


def test_measuring_gathers_them_once_for_all_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    gathered: list[str] = []
    from qubo_compress.calibration.statistics import input_moments

    original = input_moments._gathered
    monkeypatch.setattr(input_moments, "_gathered", lambda c, name: gathered.append(name) or original(c, name))
    menu = qc.Menu([qc.menu.parse("compensate(bits=2)"), qc.menu.parse("coded(of='lattice(step=1.0)')")])
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).eval()
    qc.measure(net, [(torch.randn(8, 2, 6), torch.arange(8) % 2)], menu=menu, groups="filter", progress=False)
    assert gathered == ["0.weight"], "the second layer's are gathered on the way"


class Deep(nn.Module):
    """Eight layers, of which one is left out, one is used twice and one shares its weight with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for number, layer in enumerate(self.layers):
            x = x if number == 2 else torch.tanh(layer(x))
        return self.out(torch.tanh(self.layers[5](x)))


@pytest.mark.parametrize(("bytes_ahead", "runs"), [(1 << 20, 1), (6 * 8 * 16, 2), (0, 7)])
def test_layers_share_runs_as_memory_allows(monkeypatch: pytest.MonkeyPatch, bytes_ahead: int, runs: int) -> None:
    from qubo_compress.calibration.statistics import input_moments

    torch.manual_seed(0)
    net, tokens = Deep().eval(), torch.randint(6, (10,))
    groups = [g for g in discover(net).groups if g.kind == "weight" and g.name.startswith("layers")]
    reached = [group for group in groups if not group.name.startswith("layers.2")]
    alone = [InputMoments().collect(calibration(net, tokens), group)[0] for group in reached]
    monkeypatch.setattr(input_moments, "AHEAD_BYTES", bytes_ahead)
    data, seen = calibration(net, tokens), []
    run = data.run
    data.run = lambda inputs: seen.append(len(inputs)) or run(inputs)
    shared = [InputMoments().collect(data, group)[0] for group in reached]
    assert all(torch.equal(a.blocks[0], b.blocks[0]) for a, b in zip(alone, shared, strict=True))
    assert sum(seen) == runs * len(tokens)
    held = sum(8 * block.numel() for kept in data.ahead["input-moments"].values() for block in kept)
    assert held <= bytes_ahead
    with pytest.raises(InvalidMenu, match=r"what layers.2.weight multiplies was not seen"):
        InputMoments().collect(data, groups[2])


def test_a_run_ends_behind_the_last_layer_that_it_looks_at() -> None:
    reached: list[int] = []
    tail = nn.Sequential(nn.Tanh())
    tail.register_forward_hook(lambda *_: reached.append(1))
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), tail)
    collected(net, torch.randn(12, 3))  # three slices
    assert len(reached) == 1
