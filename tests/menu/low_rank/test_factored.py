"""Running in factors: the same outputs, the multiplications that were priced, and nothing that is saved wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.menu.low_rank.factored import FactoredLayer
from qubo_compress.menu.operator import parse
from qubo_compress.network.discovery import discover

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NAMES = {
    1: ("svd(rank=3)", "tucker(ranks=(3,2))", "cp(rank=3)"),
    2: (
        "cp(rank=4,iterations=5)",
        "tensor_train(share=0.5)",
        "svd(rank=3)",
        "tucker(ranks=(3,2))",
        "coded(of='tucker(ranks=(4,3),bits=None)')",
    ),
    3: ("cp(rank=4,iterations=5)", "tensor_train(share=0.5)", "svd(share=0.3)", "tucker(share=0.5,bits=5)"),
}


def _layer_as(layer: nn.Module, name: str) -> FactoredLayer:
    """The layer holds the choice's values afterwards."""
    group = discover(layer).groups[0]
    part = layer.weight.detach()
    operator = parse(name)
    reason = operator.refusal(group, [part])
    if reason is not None:
        raise LookupError(reason)
    packed = operator.encode(group, [part])
    with torch.no_grad():
        layer.weight.copy_(packed.tensors()[0])
    assert packed.stages(0)
    return FactoredLayer(layer, packed.stages(0))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_a_factored_convolution_computes_what_the_whole_one_does(data: st.DataObject, seed: int) -> None:
    dimensions = data.draw(st.integers(1, 3))
    each = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(dimensions))  # noqa: E731
    kernel, stride, dilation = each(1, 3), each(1, 2), each(1, 2)
    if max(kernel) == 1:
        kernel = (3, *kernel[1:])
    padding = data.draw(st.sampled_from(["valid", "same", "numbers"]))
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    torch.manual_seed(seed)
    layer = CONVOLUTIONS[dimensions](
        6, 7, kernel, stride=1 if padding == "same" else stride, dilation=dilation, bias=data.draw(st.booleans()),
        padding=each(0, 2) if padding == "numbers" else padding, padding_mode=mode,
    )  # fmt: skip
    try:
        quick = _layer_as(layer, data.draw(st.sampled_from(NAMES[dimensions])))
    except LookupError:
        reject()
    inputs = torch.randn(2, 6, *[5 + n for n in range(dimensions)])
    with torch.no_grad():
        assert torch.allclose(quick(inputs), layer(inputs), atol=1e-5, rtol=1e-4)
        assert torch.allclose(quick(inputs[0]), layer(inputs[0]), atol=1e-5, rtol=1e-4)
        assert torch.allclose(quick.weight, layer.weight, atol=1e-5)
    assert quick.bias is layer.bias and quick.stride == layer.stride and quick.out_channels == 7


@pytest.mark.parametrize("name", ["svd(rank=3)", "coded(of='svd(rank=2,bits=4)')"])
def test_a_factored_linear_layer_computes_what_the_whole_one_does(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 8)
    quick = _layer_as(layer, name)
    inputs = torch.randn(4, 2, 9)
    assert torch.allclose(quick(inputs), layer(inputs), atol=1e-5)
    assert torch.allclose(quick.weight, layer.weight, atol=1e-6)


class Net(nn.Module):
    """Strided and grouped convolutions, and one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 10, (3, 5), stride=(2, 1), padding=(1, 0))
        self.grouped = nn.Conv2d(10, 10, 3, padding=1, groups=2)
        self.separable = nn.Conv2d(10, 12, 3, stride=(1, 2))
        self.carried = nn.Conv2d(12, 10, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(10, 10, 3, padding=1)
        self.head = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(torch.relu(self.strided(torch.relu(self.wide(x)))))
        x = self.carried(self.separable(x))
        return self.head(self.twice(torch.relu(self.twice(x))).mean((2, 3)))


WANTED = {
    "wide.weight": "svd(rank=4)",
    "strided.weight": "tucker(ranks=(5, 4))",
    "grouped.weight": "svd(rank=3)",
    "separable.weight": "cp(rank=7)",
    "carried.weight": "tensor_train(ranks=(5, 6, 7))",
    "twice.weight": "coded(of='svd(rank=4)')",
    "head.weight": "svd(rank=3)",
}


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(1)
    return Net().eval(), [(torch.randn(6, 3, 12, 13), torch.arange(6))]


@pytest.fixture(scope="module")
def table(net: tuple[nn.Module, list[Any]]) -> qc.SensitivityTable:
    menu = qc.Menu([parse(name) for name in sorted(set(WANTED.values()))])
    return qc.measure(net[0], net[1], menu=menu, metric="magnitude", progress=False)


def _chosen(table: qc.SensitivityTable) -> qc.Plan:
    return table.plan({name: WANTED.get(name, "keep") for name in table.group_names})


def _multiplications(model: nn.Module, inputs: Tensor) -> int:
    """Nonzero weights times output positions, counted by running the network."""
    total = 0

    def count(module: Any, _: Any, made: Tensor) -> None:
        nonlocal total
        total += int(torch.count_nonzero(module.weight)) * made.numel() // module.weight.shape[0]

    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, layers)]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return total // inputs.shape[0]


def test_a_plan_runs_in_factors_at_the_price_that_was_paid(
    net: tuple[nn.Module, list[Any]], table: qc.SensitivityTable, caplog: pytest.LogCaptureFixture
) -> None:
    plan, inputs = _chosen(table), net[1][0][0]
    whole = plan.apply(net[0])
    with caplog.at_level("INFO", logger="qubo_compress.menu.low_rank.factored"):
        quick = plan.apply(net[0], factored=True)
    with torch.no_grad():
        assert torch.allclose(whole(inputs), quick(inputs), atol=1e-5)
    assert "grouped" in caplog.text and isinstance(quick.grouped, nn.Conv2d)
    kinds = {name: type(module) for name, module in quick.named_children()}
    assert all(kinds[name] is FactoredLayer for name in ("wide", "strided", "separable", "carried", "twice", "head"))
    priced = sum(
        int(table.costs["macs"][start + names.index(plan.choices[group])])
        for group, names, start in zip(table.group_names, table.choices, table.offsets[:-1], strict=True)
    )
    assert priced == _multiplications(quick, inputs)
    assert priced < _multiplications(whole, inputs)


def test_a_network_that_runs_in_factors_is_not_saved(
    net: tuple[nn.Module, list[Any]], table: qc.SensitivityTable, tmp_path: Path
) -> None:
    plan = _chosen(table)
    with pytest.raises(errors.WrongModel, match="without factored"):
        qc.save(plan.apply(net[0], factored=True), tmp_path / "net.qc")
    assert qc.save(plan.apply(net[0]), tmp_path / "net.qc") == plan.bytes


def test_replacing_draws_no_random_numbers(net: tuple[nn.Module, list[Any]], table: qc.SensitivityTable) -> None:
    before = torch.get_rng_state()
    _chosen(table).apply(net[0], factored=True)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["tied", "twice", "functional", "attention", "encoder", "single-linear", "bfloat16"])
def test_networks_of_many_kinds_run_in_factors(
    name: str, sample: Callable[[str], Any], forward: Callable[[nn.Module, Any], Tensor]
) -> None:
    found = sample(name)
    menu = qc.Menu([parse("svd(rank=1)")])
    table = qc.measure(found.model, found.batches, menu=menu, metric="magnitude", progress=False)
    choices = {g: names[-1] for g, names in zip(table.group_names, table.choices, strict=True)}
    plan = table.plan(choices)
    inputs = found.batches[0][0]
    with torch.no_grad():
        whole = forward(plan.apply(found.model), inputs)
        quick = plan.apply(found.model, factored=True)
        apart = float((forward(quick, inputs).float() - whole.float()).abs().max())
    assert any(isinstance(module, FactoredLayer) for module in quick.modules())
    assert apart <= (0.1 if name == "bfloat16" else 1e-4) * float(whole.float().abs().max())
