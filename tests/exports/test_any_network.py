"""Exports of networks without a plan, pairs with labels, axes of any length, and what is refused before work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress import layers
from qubo_compress.errors import ExportRefused, InvalidBatches, InvalidModel, InvalidOption
from qubo_compress.exports.formats import checked_batches
from qubo_compress.exports.uncompressed import carried_or_kept
from tests.exports.networks import Convolutions, Tied, pictures, rows, texts, unusual

LABELS = torch.arange(5)


@pytest.mark.parametrize(("build", "inputs"), [(lambda: Convolutions(4), pictures(2)), (Tied, texts())])
def test_networks_without_a_plan_are_written_as_they_are(
    build: Callable[[], nn.Module], inputs: Tensor, tmp_path: Path
) -> None:
    net = unusual(build())
    before = copy.deepcopy(net.state_dict())
    found = qc.export(net, tmp_path / "net.onnx", [(inputs, LABELS)])
    assert found.largest_difference < 1e-5 and {one.choice for one in found.tensors} <= {"keep", "not in a group"}
    qc.export(net, tmp_path / "net.safetensors", inputs, format="torch")
    with torch.no_grad():
        assert torch.equal(layers.load(tmp_path / "net.safetensors", build())(inputs), net(inputs))
    assert qc.export(net, tmp_path / "net", inputs, format="compressed-tensors").largest_difference == 0
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())


def test_their_size_is_that_of_our_own_file(tmp_path: Path) -> None:
    net = unusual(Convolutions(4))
    plan = qc.measure(net, [pictures(2)], menu=qc.Menu([]), metric="magnitude", progress=False).plan({})
    qc.save(plan.apply(net), tmp_path / "net.safetensors")
    size = (tmp_path / "net.safetensors").stat().st_size
    assert abs(carried_or_kept(net).plan.bytes - size) < 0.02 * size


def test_networks_without_a_plan_are_timed() -> None:
    ticks = iter(range(1000))
    taken = qc.measured_latency(
        nn.Linear(3, 2), (rows(4, 3), torch.arange(4)), "torch", runs=3, clock=lambda: float(next(ticks))
    )
    assert taken == 1000.0


def test_pairs_with_labels_are_told_from_two_inputs() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask

    x, mask = torch.randn(5, 3), torch.ones(5, 3)
    one, both = nn.Linear(3, 2), Both()
    for given, wanted in (
        ((x, LABELS), [x]),
        ([(x, LABELS)] * 2, [x, x]),
        (((x,), LABELS), [(x,)]),
        (({"input": x}, LABELS), [{"input": x}]),
    ):
        found = checked_batches(given, one)
        assert [str(inputs) for inputs in found] == [str(inputs) for inputs in wanted]
    assert checked_batches((x, mask), both)[0] == (x, mask)
    assert checked_batches(((x, mask), LABELS), both)[0] == (x, mask)
    with pytest.raises(InvalidBatches, match=r"a tuple \(inputs, labels\)"):
        checked_batches([x, LABELS], one)  # what a loader gives is a list


@pytest.mark.parametrize(
    "run",
    [
        lambda net, path: qc.export(net, path, pictures(2)),
        lambda net, path: qc.export(net, path, pictures(2), format="torch"),
        lambda net, path: qc.shrink(net, [pictures(2)]),
        lambda net, path: qc.measured_latency(net, pictures(2)),
        lambda net, path: qc.latency_table(net, pictures(2)),
    ],
    ids=["onnx", "torch", "shrink", "latency", "table"],
)
def test_networks_without_values_are_refused(run: Callable[[nn.Module, Path], Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="on the meta device: first.weight"):
        run(Convolutions(4).to("meta"), tmp_path / "net")
    assert not [*tmp_path.iterdir()]


class Positions(nn.Module):
    """A text of six tokens, whatever is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(37, 8), nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.tokens(tokens) + self.positions)


@pytest.mark.parametrize(
    ("net", "inputs", "dynamic", "error", "reason"),
    [
        (Positions(), texts(), (0, 1), ExportRefused, "dynamic lists axis 1, .* fixes its length in tokens to 6"),
        (nn.Linear(4, 3), rows(5, 4), (0, 2), InvalidOption, "axis 2, and the inputs have the axes 0 to 1"),
        (Convolutions(4).double(), pictures(2).double(), (0,), ExportRefused, "first is a convolution in float64"),
    ],
    ids=["fixed", "missing", "float64"],
)
def test_what_no_file_can_do_is_refused(
    net: nn.Module, inputs: Tensor, dynamic: tuple[int, ...], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason):
        qc.export(net.eval(), tmp_path / "net.onnx", inputs, dynamic=dynamic)
    assert not [*tmp_path.iterdir()]
