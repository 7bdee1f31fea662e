"""A network as named tensors: names, parts, other tensors in place of them, and back."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qubo_compress.network.discovery import discover
from qubo_compress.network.groups import Member, outputs_first
from qubo_compress.network.tensors import NetworkTensors


class Tied(nn.Module):
    """Shared weights, a persistent and a passing buffer, a turned weight and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.turned = nn.ConvTranspose1d(4, 6, 3, groups=2)
        self.memory = nn.GRU(6, 4, batch_first=True)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.BatchNorm1d(6)
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.scale(self.turned(self.embedding(tokens).transpose(1, 2)))
        return self.head(self.memory(found.transpose(1, 2))[0][:, -1])


TOKENS = torch.arange(14).reshape(2, 7) % 7


def test_names_are_those_of_the_state_dict_and_shared_tensors_stand_once() -> None:
    net = Tied()
    tensors = NetworkTensors(net)
    assert list(tensors) == [name for name in net.state_dict() if name != "head.weight"]
    assert tensors.aliases["head.weight"] == "embedding.weight"
    assert set(tensors.aliases) == set(net.state_dict())
    assert tensors.owners("embedding.weight") == [(net.embedding, "weight"), (net.head, "weight")]
    assert all(tensors[name] is dict(net.named_parameters())[name] for name in tensors.parameters())
    assert set(tensors) - set(tensors.parameters()) == {f"scale.{name}" for name in dict(net.scale.named_buffers())}


def test_the_network_is_walked_once_and_its_tensors_are_seen_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    net, walks = Tied(), []
    layout, walk = discover(net, "filter"), net.named_modules
    monkeypatch.setattr(net, "named_modules", lambda *a, **k: walks.append(1) or walk(*a, **k))
    tensors = NetworkTensors(net)
    for group in layout.groups:
        parts = tensors.parts(group)
        assert [tuple(part.shape) for part in parts] == [member.part_shape for member in group.members]
        assert not any(part.requires_grad for part in parts)
    assert len(walks) == 1
    other = nn.Parameter(torch.zeros(4, 7))
    net.memory.weight_ih_l0 = other
    assert tensors["memory.weight_ih_l0"] is other


def test_a_network_without_tensors_is_empty_and_on_the_cpu() -> None:
    tensors = NetworkTensors(nn.ReLU())
    assert not tensors and tensors.device == torch.device("cpu") and tensors.parameters() == {}
    assert NetworkTensors(nn.Linear(2, 2, device="meta")).device == torch.device("meta")


@pytest.mark.parametrize("rule", ["layer", "filter"])
def test_all_parts_of_all_groups_make_the_network_again(rule: str) -> None:
    net = Tied()
    tensors, layout = NetworkTensors(net), discover(net, rule)
    pairs = [pair for group in layout.groups for pair in zip(group.members, tensors.parts(group), strict=True)]
    whole = tensors.assembled(reversed(pairs))
    assert set(whole) == {member.name for member, _ in pairs}
    assert all(torch.equal(value, tensors[name]) for name, value in whole.items())


@settings(max_examples=40, deadline=None)
@given(blocks=st.integers(1, 3), outputs=st.integers(1, 3), inputs=st.integers(1, 3), data=st.data())
def test_rows_that_no_member_owns_stay_and_gradients_reach_the_parts(
    blocks: int, outputs: int, inputs: int, data: st.DataObject
) -> None:
    net = nn.ConvTranspose1d(blocks * inputs, blocks * outputs, 2, groups=blocks, bias=False)
    turned = outputs_first(net.weight.detach(), blocks)
    rows = data.draw(st.sets(st.integers(0, blocks * outputs - 1), min_size=1))
    members = [Member("weight", tuple(turned.shape), torch.float32, (row, row + 1), blocks) for row in rows]
    parts = [torch.full(member.part_shape, 9.0, requires_grad=True) for member in members]
    before = net.weight.detach().clone()
    whole = NetworkTensors(net).assembled(zip(members, parts, strict=True))["weight"]
    expected = turned.clone()
    expected[sorted(rows)] = 9.0
    assert torch.equal(outputs_first(whole, blocks), expected) and torch.equal(net.weight, before)
    whole.sum().backward()
    assert all(torch.equal(part.grad, torch.ones_like(part)) for part in parts if part.grad is not None)
    assert all(part.grad is not None for part in parts)


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_tensors_are_seen_everywhere_and_put_back_whatever_happens(fails: bool) -> None:
    net = Tied().eval()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            parameter.mul_(0.5 + number / 10)
    tensors, flat = NetworkTensors(net), net.memory._flat_weights
    held, before, wanted = dict(tensors), net(TOKENS), other(TOKENS)
    assert not torch.allclose(before, wanted)
    with contextlib.suppress(ZeroDivisionError), tensors.swapped(dict(NetworkTensors(other))):
        assert torch.equal(net(TOKENS), wanted) and tensors["embedding.weight"] is other.head.weight
        if fails:
            raise ZeroDivisionError
    assert all(tensors[name] is tensor for name, tensor in held.items())
    assert net.memory._flat_weights is flat and torch.equal(net(TOKENS), before)


def test_filling_writes_to_the_tensors_themselves_and_keeps_their_type() -> None:
    net = nn.Linear(3, 2).half()
    weight, tensors = net.weight, NetworkTensors(net)
    tensors.fill({"weight": torch.ones(2, 3, dtype=torch.float64)})
    assert net.weight is weight and weight.dtype == torch.float16 and bool((weight == 1).all())


def test_the_signature_follows_every_value_and_name() -> None:
    net = Tied()
    signature = NetworkTensors(net).signature()
    assert NetworkTensors(copy.deepcopy(net)).signature() == signature
    assert NetworkTensors(nn.Sequential(net)).signature() != signature
    net.scale.running_mean[2] += 1e-3
    assert NetworkTensors(net).signature() != signature
