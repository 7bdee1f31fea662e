"""What is wrapped around a network is looked into, or refused with the reason, before anything is measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import InvalidModel
from qubo_compress.network import unwrapped
from qubo_compress.network.discovery import discover
from qubo_compress.network.every_layer import every_layer_runs

WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
}


def table_of(model: nn.Module, sample: Any) -> qc.SensitivityTable:
    menu = qc.Menu(bits=(2, 4), sparsity=(0.0,))
    return qc.measure(model, sample.batches, menu=menu, progress=False)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_networks_give_plans_and_files_of_the_network_inside(
    name: str, sample: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = sample("perceptron")
    wrapped = WRAPPERS[name](found.model)
    with caplog.at_level(logging.INFO):
        table = table_of(wrapped, found)
    assert "the network inside" in caplog.text
    plain = table_of(found.model, found)
    assert table.group_names == plain.group_names == tuple(g.name for g in discover(wrapped).groups)
    assert (table.linear == plain.linear).all()
    plan = table.plan({"0.weight": "quantize(bits=4)"})
    small = plan.apply(wrapped)
    assert type(small) is type(found.model)
    path = tmp_path / "net.safetensors"
    assert qc.save(WRAPPERS[name](small), path) == plan.bytes
    for model in (wrapped, found.model):
        again = qc.load(path, model)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), small.parameters(), strict=True))
    repaired = qc.recover(WRAPPERS[name](small), found.batches, teacher=wrapped, progress=False)
    assert repaired.state_dict().keys() == found.model.state_dict().keys()


def test_scripted_networks_are_refused_before_they_are_measured(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    scripted = torch.jit.trace(found.model, found.batches[0][0])
    for attempt in (lambda: table_of(scripted, found), lambda: discover(scripted)):
        with pytest.raises(InvalidModel, match=r"torch\.jit.*give the Python network"):
            attempt()


def test_a_scripted_part_is_kept_with_the_reason(sample: Callable[[str], Any]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), torch.jit.trace(nn.Linear(6, 4), torch.zeros(2, 6)), nn.Linear(4, 3)).eval()
    kept = {item.name: item.reason for item in discover(net).kept}
    assert "torch.jit" in kept["1.weight"]
    table = table_of(net, sample("perceptron"))
    assert table.group_names == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_a_compiled_part_is_refused_with_its_name() -> None:
    net = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2), backend="eager"))
    with pytest.raises(InvalidModel, match=r"1 is compiled by torch\.compile inside"):
        discover(net)
    with pytest.raises(InvalidModel, match="must be a torch.nn.Module; got dict"):
        unwrapped({})  # type: ignore[arg-type]


def test_a_network_compiled_in_place_runs_uncompiled_while_it_is_measured(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    runs = []
    found.model.compile(backend=lambda graph, inputs: runs.append(1) or graph.forward)
    compiled = found.model._compiled_call_impl
    table_of(found.model, found)
    assert not runs and found.model._compiled_call_impl is compiled


def test_the_fast_path_of_attention_is_switched_back(sample: Callable[[str], Any], forward: Any) -> None:
    found, ran = sample("encoder"), []
    found.model.layer.linear1.register_forward_hook(lambda *_: ran.append(1))
    inputs = found.batches[0][0]
    with torch.no_grad():
        quick = forward(found.model, inputs)
        found.model.layer.linear1._forward_hooks.clear()
        quick = forward(found.model, inputs)
        with pytest.raises(ZeroDivisionError), every_layer_runs():
            slow = forward(found.model, inputs)
            raise ZeroDivisionError
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(quick, slow, rtol=1e-4, atol=1e-5)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        table_of(found.model, found)
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_tensors_that_a_parametrization_or_a_hook_computes_say_how_to_undo_it() -> None:
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    torch.nn.utils.parametrizations.weight_norm(net[0])
    torch.nn.utils.weight_norm(net[1])
    torch.nn.utils.spectral_norm(net[2])
    torch.nn.utils.prune.l1_unstructured(net[3], "weight", 0.5)
    layout = discover(net, lambda name, module: name)
    kept = {item.name: item.reason for item in layout.kept}
    assert [group.name for group in layout.groups] == ["0.bias", "1.bias", "2.bias", "3.bias"]
    expected = {
        "0.parametrizations.weight.original0": "remove_parametrizations(model.get_submodule('0'), 'weight')",
        "0.parametrizations.weight.original1": "remove_parametrizations(model.get_submodule('0'), 'weight')",
        "1.weight_g": "remove_weight_norm(model.get_submodule('1'), 'weight')",
        "1.weight_v": "remove_weight_norm(model.get_submodule('1'), 'weight')",
        "2.weight_orig": "remove_spectral_norm(model.get_submodule('2'), 'weight')",
        "3.weight_orig": "prune.remove(model.get_submodule('3'), 'weight')",
    }
    for name, said in expected.items():
        assert said in kept[name], name
        # What is said is what helps.
    for reason in {kept[name] for name in expected}:
        eval(reason.split("call ")[1].split(" first")[0], {"torch": torch, "model": net})  # noqa: S307
    assert {group.name for group in discover(net).groups if group.kind == "weight"} == {f"{i}.weight" for i in range(4)}


def test_networks_whose_hooks_compute_a_weight_are_measured_and_applied() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3))
    data = [(torch.randn(12, 5), torch.arange(12) % 3)]
    net(data[0][0])  # leaves a weight with a gradient behind, which torch does not copy
    table = qc.measure(net, data, menu=qc.Menu(bits=(2, 8), sparsity=(0.0,)), progress=False)
    net(data[0][0])
    small = table.plan({"2.weight": "quantize(bits=2)"}).apply(net)
    with torch.no_grad():
        assert small(data[0][0]).shape == (12, 3)
    assert small[2].weight.unique().numel() > 1 and not torch.equal(small[2].weight, net[2].weight)


def test_a_network_with_nothing_to_compress_says_what_it_keeps_before_it_runs() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it must not run")

    with pytest.raises(InvalidModel, match=r"nothing in this network can be compressed: matrix \(48 bytes: .*groups="):
        qc.measure(Plain(), [(torch.ones(4, 4), torch.zeros(4, dtype=torch.int64))], progress=False)
