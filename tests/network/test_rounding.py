"""Rounded inputs: the range's arithmetic, the hook that applies it, and which layers can have one."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from qubo_compress.network.roundable import why_not_rounded
from qubo_compress.network.rounding import InputRange, place_range, range_of
from qubo_compress.network.tensors import NetworkTensors
from tests.zoo import Attention, OwnPadding, TiedLanguage, Twice

RANGES = st.builds(
    lambda bits, scale, share: InputRange(float(np.float32(scale)), round(share * ((1 << bits) - 1)), bits),
    st.integers(2, 8),
    st.floats(1e-3, 1e3),
    st.floats(0, 1),
)


@given(RANGES, st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20))
def test_rounding_gives_the_nearest_level_inside_the_range(given_range: InputRange, values: list[float]) -> None:
    x = torch.tensor(values)
    y = given_range.rounded(x)
    levels = (torch.arange(given_range.levels + 1) - given_range.zero_point) * given_range.scale
    nearest = (x[:, None] - levels[None]).abs().min(1).values
    assert torch.allclose((x - y).abs(), nearest, rtol=1e-4, atol=1e-4 * given_range.scale)
    assert torch.equal(given_range.rounded(y), y)
    assert torch.equal(given_range.rounded(torch.zeros(1)), torch.zeros(1))  # so that padding stays zero


@given(RANGES)
def test_a_range_takes_five_bytes_and_comes_back(given_range: InputRange) -> None:
    data = given_range.to_bytes()
    assert len(data) == InputRange.NBYTES == 5
    assert InputRange.of_bytes(data, given_range.bits) == given_range


@pytest.mark.parametrize(
    ("scale", "zero", "bits"),
    [(float("nan"), 0, 8), (0.0, 0, 8), (-1.0, 0, 8), (float("inf"), 0, 8), (1.0, 4, 2), (1.0, -1, 8), (1.0, 0, 9)],
)
def test_damaged_ranges_are_refused(scale: float, zero: int, bits: int) -> None:
    with pytest.raises(ValueError, match=r"range|bits"):
        InputRange(scale, zero, bits)


@given(RANGES, st.integers(1, 40), st.sampled_from([torch.float32, torch.float16]))
def test_nan_stays_and_infinities_are_cut_off(given_range: InputRange, count: int, dtype: torch.dtype) -> None:
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0], dtype=dtype).repeat(count)
    found = given_range.rounded(x).reshape(count, 4).float()
    ends = torch.tensor([given_range.high, given_range.low, 0.0]).to(dtype).float()
    assert found[:, 0].isnan().all() and torch.equal(found[:, 1:], ends.expand(count, 3))


def test_gradients_pass_inside_the_range_and_stop_outside() -> None:
    x = torch.tensor([-3.0, 0.2, 0.9, 7.0], requires_grad=True)
    InputRange(0.5, 2, 3).rounded(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_the_hook_survives_copies_and_pickles_and_is_no_part_of_the_state() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    names, x = list(net.state_dict()), torch.randn(5, 3)
    wanted = InputRange(0.1, 3, 4)
    assert place_range(net[2], wanted) is None
    expected = net[2](wanted.rounded(net[1](net[0](x))))
    for other in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301 - our own bytes
        assert range_of(other[2]) == wanted and list(other.state_dict()) == names
    assert place_range(net[2], None) == wanted and range_of(net[2]) is None
    assert not torch.equal(net(x), expected)


def test_ranges_are_swapped_and_restored_with_the_weights() -> None:
    net, first, second = nn.Sequential(nn.Linear(3, 4)), InputRange(0.1, 3, 4), InputRange(0.2, 0, 8)
    tensors = NetworkTensors(net)
    tensors.round_inputs({"0.weight": first})
    with pytest.raises(KeyError), tensors.swapped({"0.weight": torch.zeros(4, 3)}, {"0.weight": second}):
        assert tensors.range_of("0.weight") == second
        raise KeyError
    with tensors.swapped({}, {"0.weight": None}):
        assert tensors.range_of("0.weight") is None
    assert tensors.range_of("0.weight") == first


class Keywords(nn.Module):
    """Calls one layer by keyword, and uses the weight of another outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.named, self.borrowed, self.plain = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.scaled = Scaled(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.borrowed(self.named(input=x))
        return self.scaled(self.plain(functional.linear(hidden, self.borrowed.weight)))


class Scaled(nn.Linear):
    """A linear layer that multiplies with something else than its input."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input + 1.0, self.weight, self.bias)


def _reasons(net: nn.Module, inputs: Tensor) -> dict[str, str]:
    net = net.eval()
    tensors = NetworkTensors(net)
    names = [name for name, tensor in tensors.items() if tensor.ndim > 1]
    return why_not_rounded(tensors, names, lambda: net(inputs))


def test_layers_are_told_apart_by_trying() -> None:
    found = _reasons(Keywords(), torch.randn(6, 4))
    assert sorted(found) == ["borrowed.weight", "named.weight", "scaled.weight"]
    assert "keywords" in found["named.weight"] and "outside" in found["borrowed.weight"]
    assert "own input" in found["scaled.weight"]


def test_fused_attention_and_tied_embeddings_are_refused_and_own_padding_is_not() -> None:
    torch.manual_seed(0)
    assert _reasons(OwnPadding(), torch.randn(4, 2, 6, 6)) == {}
    assert _reasons(Twice(), torch.randn(4, 5)) == {}
    tied = _reasons(TiedLanguage(), torch.randint(7, (4, 5)))
    assert list(tied) == ["embedding.weight"] and "Embedding" in tied["embedding.weight"]
    fused = _reasons(Attention(), torch.randint(7, (4, 5)))
    assert {"attention.in_proj_weight", "attention.out_proj.weight"} <= set(fused)


def test_a_hooked_network_can_be_exported_by_torch() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()
    place_range(net[0], InputRange(0.1, 3, 4))
    x = torch.randn(5, 3)
    program = torch.export.export(net, (x,))
    assert torch.allclose(program.module()(x), net(x)) and "qubo_compress" in str(program.graph)
