"""Coupled channels: found in every network of the zoo, removed at random, and compared with torch-pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.networks.architectures import DigitsNet, ResNet20
from benchmarks.networks.attention import ByteGPT, VisionTransformer
from qubo_compress.errors import InvalidModel, WrongModel
from qubo_compress.network.channels import Channels, find_channels
from qubo_compress.network.channels.adapters import FewerHeads
from qubo_compress.network.channels.cutting import apart_at_most, removal_of_sets, unread
from qubo_compress.network.channels.removal import removals_of
from tests.conftest import Sample


def lively(net: nn.Module) -> nn.Module:
    """A network whose normalisations do something."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return net.eval()


class Separable(nn.Module):
    """Depthwise convolutions with a gate per channel, a mask per pixel and parts that are concatenated."""

    def __init__(self, stem: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, stem, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        self.depthwise = nn.Conv2d(stem, 12, 3, padding=1, groups=stem)
        self.squeeze = nn.Linear(12, 3)
        self.excite = nn.Linear(3, 12)
        self.mask = nn.Conv2d(12, 1, 1)
        self.left, self.right = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 5, 1)
        self.head = nn.Linear(9 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.depthwise(functional.silu(self.norm(self.stem(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(hidden.mean((2, 3))))))
        hidden = hidden * gate[:, :, None, None] * torch.sigmoid(self.mask(hidden))
        joined = torch.cat([self.left(hidden), torch.tanh(self.right(hidden))], dim=1)
        return self.head(functional.avg_pool2d(joined, 3).reshape(len(x), -1))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: (ResNet20(blocks=1), torch.randn(3, 3, 16, 16)),
    "digits": lambda: (DigitsNet(6), torch.randn(3, 1, 8, 8)),
    "separable": lambda: (Separable(), torch.randn(3, 2, 6, 6)),
    "gpt": lambda: (ByteGPT(24, 2, 4, 12), torch.randint(0, 256, (3, 12))),
    "vit": lambda: (VisionTransformer(24, 2, 4, 14), torch.randn(3, 1, 28, 28)),
}


@pytest.fixture(params=sorted(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    net, inputs = NETWORKS[request.param]()
    return lively(net), inputs


def drawn(channels: Channels, seed: int) -> list[int]:
    """Some sets, never all of a family."""
    rng = np.random.default_rng(seed)
    found = []
    for family in sorted({item.family for item in channels.sets}):
        members = [number for number, item in enumerate(channels.sets) if item.family == family]
        found += rng.choice(members, rng.integers(0, len(members)), replace=False).tolist()
    return found


def refuse_difference(net: nn.Module, inputs: Tensor, channels: Channels, seed: int) -> nn.Module:
    gone = drawn(channels, seed)
    small = removal_of_sets(channels, gone, net).applied(net)
    silenced = unread(net, [channels.sets[number] for number in gone])
    assert apart_at_most(silenced, small, inputs) < 1e-4
    lost = {part.tensor for number in gone for part in channels.sets[number].slices}
    assert [*small.state_dict()] == [*net.state_dict()]
    for name, tensor in net.state_dict().items():
        assert (small.state_dict()[name].numel() < tensor.numel()) == (name in lost), name
    for one, other in zip(net.modules(), small.modules(), strict=True):
        assert isinstance(other, type(one))
    return small


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_sets_can_leave(case: tuple[nn.Module, Tensor], seed: int) -> None:
    net, inputs = case
    before = copy.deepcopy(net.state_dict())
    channels = find_channels(net, inputs)
    assert channels.sets
    small = refuse_difference(net, inputs, channels, seed)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    # A smaller network is a network: its channels are found again, and the rest of them can leave, too.
    again = find_channels(small, inputs)
    assert len(again.sets) <= len(channels.sets)
    smallest = refuse_difference(small, inputs, again, seed)
    assert len(removals_of(smallest)) == 2 and not removals_of(net)


def test_channels_of_the_zoo(any_sample: Sample) -> None:
    inputs = any_sample.batches[0][0]
    net = any_sample.model.float()
    few = inputs if not isinstance(inputs, Tensor) or not inputs.is_floating_point() else inputs.float()
    channels = find_channels(net, few)
    assert len({item.name for item in channels.sets}) == len(channels.sets)
    assert all(pinned.count > 0 and pinned.reason for pinned in channels.pinned)
    if channels.sets:
        refuse_difference(net, few, channels, 0)


def test_streams_with_padded_shortcuts_are_tied_by_their_offset() -> None:
    net, inputs = NETWORKS["residual"]()
    found = {item.name: item for item in find_channels(net, inputs).sets}
    stream = {(part.tensor, part.indices) for part in found["conv1.weight[3]"].slices if part.role == "makes"}
    assert ("layer1.0.conv2.weight", (3,)) in stream
    assert ("layer2.0.conv2.weight", (11,)) in stream
    assert ("layer3.0.conv2.weight", (27,)) in stream
    assert {part.tensor for part in found["layer3.0.conv2.weight[0]"].slices} == {
        "layer3.0.conv2.weight", "layer3.0.bn2.weight", "layer3.0.bn2.bias", "layer3.0.bn2.running_mean",
        "layer3.0.bn2.running_var", "linear.weight",
    }  # fmt: skip


def test_whole_heads_leave() -> None:
    for name in ("gpt", "vit"):
        net, inputs = NETWORKS[name]()
        heads = [s for s in find_channels(net.eval(), inputs).sets if "attention" in s.name or "self_attn" in s.name]
        assert len(heads) == 2 * 4
        widths = {len(part.indices) for item in heads for part in item.slices}
        assert widths <= {6, 18}  # three times six, where the projections are packed


def test_what_has_no_rule_stays_with_its_reason() -> None:
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.third(torch.relu(self.second(self.first(x).sort(-1).values)))

    found = find_channels(Sorting(), torch.randn(2, 4))
    assert {item.name.partition(".")[0] for item in found.sets} == {"second"}
    reasons = {pinned.name: pinned.reason for pinned in found.pinned}
    assert reasons["first.weight"] == "sort in the network has no rule"
    assert reasons["third.weight"] == "the network returns them"


def test_writing_into_an_activation_keeps_its_channels() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            hidden[:, :4] = x
            return self.second(hidden)

    assert not find_channels(Writing(), torch.randn(2, 4)).sets


def test_code_that_counts_channels_is_tried_and_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).reshape(len(x), 2, 3).transpose(1, 2).reshape(len(x), 6))

    found = find_channels(Counting(), torch.randn(2, 4))
    assert not found.sets and any("does not run" in pinned.reason for pinned in found.pinned)


@pytest.mark.parametrize("batch_first", [False, True])
def test_fewer_heads_compute_what_the_others_did(batch_first: bool) -> None:
    whole = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    inputs = torch.randn(2, 5, 12) if batch_first else torch.randn(5, 2, 12)
    nn.init.normal_(whole.in_proj_bias)
    same = copy.deepcopy(whole)
    FewerHeads.adopt(same)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for given in (
        {}, {"need_weights": False}, {"key_padding_mask": padding}, {"attn_mask": causal, "key_padding_mask": padding},
        {"attn_mask": torch.randn(6, 5, 5), "average_attn_weights": False},
    ):  # fmt: skip
        with torch.no_grad():
            wanted, found = (net(inputs, inputs, inputs, **given) for net in (whole, same))
        torch.testing.assert_close(found[0], wanted[0], atol=1e-5, rtol=1e-4)
        if wanted[1] is None:
            assert found[1] is None
        else:
            torch.testing.assert_close(found[1], wanted[1], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        alone = inputs[0] if batch_first else inputs[:, 0]
        torch.testing.assert_close(same(alone, alone, alone)[0], whole(alone, alone, alone)[0], atol=1e-5, rtol=1e-4)


def test_another_network_is_refused() -> None:
    net, inputs = NETWORKS["separable"]()
    channels = find_channels(net, inputs)
    removal = removal_of_sets(channels, [0], net)
    with pytest.raises(WrongModel, match=r"stem\.weight"):
        removal.applied(nn.Linear(2, 2))
    everything = [n for n, item in enumerate(channels.sets) if item.family == channels.sets[0].family]
    with pytest.raises(InvalidModel, match="nothing of"):
        removal_of_sets(channels, everything, net)


def separable_in_a_row() -> nn.Module:
    """Without a mask per pixel and without concatenation, where torch-pruning ties more than it must."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6),
        nn.ReLU6(), nn.Conv2d(6, 8, 1), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


@pytest.mark.parametrize("make", [lambda: DigitsNet(6), separable_in_a_row], ids=["residual", "depthwise"])
def test_torch_pruning_couples_the_same(make: Callable[[], nn.Module]) -> None:
    pruning = pytest.importorskip("torch_pruning")
    net, inputs = make(), torch.randn(3, 1, 8, 8)
    found = find_channels(net, inputs)
    graph = pruning.DependencyGraph().build_dependency(net, inputs)
    names = {module: layer for layer, module in net.named_modules()}
    compared = 0
    for item in found.sets:
        first = item.slices[0]
        layer = net.get_submodule(first.tensor.rpartition(".")[0])
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
            continue
        theirs: set[tuple[str, bool, int]] = set()
        for dependency, indices in graph.get_pruning_group(layer, pruning.prune_conv_out_channels, [first.indices[0]]):
            module = dependency.target.module
            if module in names and isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                outputs = not graph.is_in_channel_pruning_fn(dependency.handler) or isinstance(module, nn.BatchNorm2d)
                theirs |= {(names[module], outputs, index) for index in indices}
        ours = {
            (part.tensor.rpartition(".")[0], part.role != "reads", index)
            for part in item.slices
            if part.tensor.endswith(".weight")
            for index in part.indices
        }
        theirs = {(module, outputs or _depthwise(net, module), index) for module, outputs, index in theirs}
        assert ours == theirs, item.name
        compared += 1
    assert compared > 5


def _depthwise(net: nn.Module, name: str) -> bool:
    return getattr(net.get_submodule(name), "groups", 1) > 1


class Returning(nn.Module):
    """Two linear layers whose result is returned in something."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.wrap, self.first, self.last = wrap, nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.last(torch.relu(self.first(x))))


@pytest.mark.parametrize("wrap", [lambda y: {"out": {"logits": y}}, lambda y: ([y], 3), lambda y: {"a": (y, None)}])
def test_outputs_stay_however_they_are_wrapped(wrap: Callable[[Tensor], object]) -> None:
    found = find_channels(Returning(wrap), torch.randn(3, 3))
    assert {part.tensor for item in found.sets for part in item.slices if part.role == "makes"} == {
        "first.weight",
        "first.bias",
    }


def test_outputs_that_cannot_be_seen_are_refused() -> None:
    with pytest.raises(InvalidModel, match="returned a SimpleNamespace"):
        find_channels(Returning(lambda y: SimpleNamespace(logits=y)), torch.randn(3, 3))


class Split(nn.Module):
    """Channels that code tells apart by their position; the parts are wide alike."""

    def __init__(self, parts: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.parts, self.stem = parts, nn.Linear(3, 12)
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.parts(torch.relu(self.stem(x)))
        return self.left(left) + self.right(right)


@pytest.mark.parametrize(
    "parts",
    [
        lambda y: y.chunk(2, 1),
        lambda y: (y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]),
        lambda y: (y[:, ::2], y[:, 1::2]),
    ],
    ids=["chunk", "halves", "strided"],
)
def test_parts_that_must_lose_equally_many_channels_stay(parts: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    found = find_channels(Split(parts), torch.randn(3, 3))
    assert not found.sets
    assert any("the network without them" in pinned.reason for pinned in found.pinned)


class Attending(nn.Module):
    """Attention in the network's own forward, beside a layer that can be narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.middle, self.last = nn.Linear(4, 12), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.three(x).chunk(3, -1)
        mixed = (query @ key.transpose(1, 2)).softmax(-1) @ value
        return self.last(torch.relu(self.middle(mixed.mean(1))))


def test_attention_in_the_network_itself() -> None:
    net, inputs = Attending(), torch.randn(3, 5, 4)
    found = find_channels(net, inputs)
    assert [item.name for item in found.sets] == [f"middle.weight[{index}]" for index in range(6)]
    small = removal_of_sets(found, [1, 4], net).applied(net)
    assert apart_at_most(unread(net, [found.sets[1], found.sets[4]]), small, inputs) < 1e-5
