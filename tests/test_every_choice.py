"""Every registered operator, from the menu to the file and back, in networks of many shapes."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.menu.operator import choice_name, operators
from qubo_compress.testing import registered_samples

SAMPLES = registered_samples()
# "magnitude", which prices without running the network, does not see rounded inputs.
OFFERED = [operator for operator in SAMPLES if operator.operator_name != "keep" and not operator.activation_bits]
MENU = qc.Menu(OFFERED)
SOME = 10
"""Choices that each random network is offered: few are picked, and all that are offered must be priced."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A small convolutional network."""

    dimensions: int
    channels: int
    kernel: int
    stride: int
    padding: int
    grouped: bool
    bias: bool
    dtype: torch.dtype
    groups: str


SHAPES = st.builds(
    Shape,
    dimensions=st.sampled_from([1, 2]),
    channels=st.integers(2, 5),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    grouped=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]),
    groups=st.sampled_from(["layer", "layer", "filter"]),
)


class Net(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        convolution = nn.Conv1d if shape.dimensions == 1 else nn.Conv2d
        normalisation = nn.BatchNorm1d if shape.dimensions == 1 else nn.BatchNorm2d
        wide = 2 * shape.channels
        self.first = convolution(2, wide, shape.kernel, shape.stride, shape.padding, bias=shape.bias)
        self.norm = normalisation(wide)
        self.second = convolution(wide, wide, shape.kernel, groups=2 if shape.grouped else 1, bias=shape.bias)
        self.head = nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(hidden.flatten(2).mean(-1))


def made(shape: Shape, seed: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(seed)
    net = Net(shape).to(shape.dtype).eval()
    images = torch.randn(12, 2, *[9] * shape.dimensions).to(shape.dtype)
    return net, [(images, torch.arange(12) % 3)]


@settings(max_examples=16, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(shape=SHAPES, seed=st.integers(0, 1000))
def test_files_are_as_large_as_planned_and_load_what_was_applied(shape: Shape, seed: int) -> None:
    net, batches = made(shape, seed)
    rng = np.random.default_rng(zlib.crc32(repr((shape, seed)).encode()))  # seeds alone are often 0
    menu = qc.Menu([OFFERED[n] for n in rng.choice(len(OFFERED), SOME, replace=False)])
    table = qc.measure(net, batches, menu=menu, metric="magnitude", groups=shape.groups, progress=False)
    for _ in range(4):
        picked = {name: str(rng.choice(names)) for name, names in zip(table.group_names, table.choices, strict=True)}
        plan = table.plan(picked)
        small = plan.apply(net)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "net.safetensors"
            assert qc.save(small, path) == path.stat().st_size
            assert abs(path.stat().st_size - plan.bytes) <= 0.01 * plan.bytes
            assert path.stat().st_size <= plan.bytes
            loaded = qc.load(path, net)
        for (name, tensor), (_, again) in zip(small.state_dict().items(), loaded.state_dict().items(), strict=True):
            assert torch.equal(tensor, again), f"{name} after {picked}"
        with torch.no_grad():
            assert torch.equal(small(batches[0][0]), loaded(batches[0][0]))


@pytest.mark.parametrize("name", sorted(set(qc.menu.names()) - {"keep", "cast"}))
def test_every_operator_is_offered_in_some_network(name: str) -> None:
    net, batches = made(Shape(2, 5, 3, 1, 1, False, False, torch.float32, "layer"), 0)
    tried = [choice_name(o) for o in SAMPLES if isinstance(o, operators.get(name))]
    menu = qc.Menu([o for o in SAMPLES if isinstance(o, operators.get(name))])
    table = qc.measure(net, batches, menu=menu, progress=False)
    offered = {choice for names in table.choices for choice in names}
    assert offered & set(tried), f"none of {tried} suits any group of a convolutional network"
    assert np.isfinite(table.linear).all()


def test_tables_with_data_driven_choices_are_the_same_twice() -> None:
    net, batches = made(Shape(2, 3, 3, 2, 1, False, True, torch.float32, "layer"), 3)
    first = qc.measure(net, batches, menu=MENU, progress=False)
    again = qc.measure(net, batches, menu=MENU, progress=False)
    assert first.payloads == again.payloads
    assert np.array_equal(first.costs["bytes"], again.costs["bytes"])
    assert first.linear == pytest.approx(again.linear, abs=1e-9)
