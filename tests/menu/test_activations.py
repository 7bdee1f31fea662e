"""Choices that round a layer's inputs: names, refusals, bytes, plans, files and recovery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.errors import CorruptArtifact, InvalidMenu, WrongModel
from qubo_compress.menu.operator import choice_name, parse, stored_as
from qubo_compress.network.rounding import InputRange, place_range, range_of

MENU = ["quantize(bits=8)", "quantize(bits=8,activations=8)", "compensate(bits=4,activations=4)"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("quantize(bits=8, activations=8)", "quantize(bits=8,activations=8)"),
        ("activations(of='quantize(bits=4)',bits=8)", "quantize(bits=4,activations=8)"),
        ("compensate(bits=4,sparsity=0.5,activations=6)", "compensate(bits=4,sparsity=0.5,activations=6)"),
        ("quantize(bits=8,activations=8,percentile=99.9)", "quantize(bits=8,activations=8,percentile=99.9)"),
        ("quantize(percentile=100,activations=8,bits=8)", "quantize(bits=8,activations=8,percentile=100.0)"),
        ("coded(of='quantize(bits=8)',activations=8)", "coded(of='quantize(bits=8)',activations=8)"),
    ],
)
def test_any_choice_of_whole_numbers_takes_activations(text: str, name: str) -> None:
    operator = parse(text)
    assert choice_name(operator) == name and parse(name) == operator and operator.activation_bits in (6, 8)


@pytest.mark.parametrize(
    "text",
    [
        "keep(activations=8)", "prune(sparsity=0.5,activations=8)", "svd(share=0.4,activations=8)",
        "quantize(bits=9,activations=8)", "quantize(bits=8,activations=1)", "quantize(bits=8,activations=9)",
        "quantize(bits=8,activations=True)", "quantize(bits=8,activations='8')", "cast(bits=16,activations=8)",
        "coded(of='quantize(bits=8,activations=8)')", "activations(of='quantize(bits=8,activations=8)',bits=8)",
        "frequency(bits=4,activations=8)", "quantize(bits=8,percentile=99)",
        "quantize(bits=8,activations=8,percentile=50)", "quantize(bits=8,activations=8,percentile=True)",
        "quantize(bits=8,activations=8,percentile=1e999)",
    ],
)  # fmt: skip
def test_choices_without_integer_kernels_take_none(text: str) -> None:
    with pytest.raises(InvalidMenu):
        parse(text)


def _measured(sample: Any, metric: Any = "gauss-newton", **options: Any) -> qc.SensitivityTable:
    return qc.measure(sample.model, sample.batches, menu=qc.Menu(MENU), metric=metric, progress=False, **options)


def test_bytes_and_bit_operations_are_those_of_the_choice(sample: Callable[[str], Any]) -> None:
    table = _measured(sample("grouped-view-inplace"))
    by_name = dict(zip(table.choices[0], range(len(table.choices[0])), strict=True))
    bytes_of, operations = (table.costs[name][: len(by_name)] for name in ("bytes", "bit_operations"))
    plain, rounded = by_name[MENU[0]], by_name[MENU[1]]
    assert bytes_of[rounded] == bytes_of[plain] + InputRange.NBYTES
    assert operations[plain] == 4 * operations[rounded] > 0


def test_plans_files_and_recovery_keep_the_rounding(sample: Callable[[str], Any], tmp_path: Path) -> None:
    given = sample("grouped-view-inplace")
    table = _measured(given)
    plan = table.plan({name: MENU[1] for name in table.group_names if name.endswith(("stem.weight", "head.weight"))})
    small = plan.apply(given.model)
    assert [name for name, module in small.named_modules() if range_of(module)] == ["stem", "head"]
    assert qc.save(small, tmp_path / "net") == plan.bytes
    back = qc.load(tmp_path / "net", given.model)
    x = given.batches[0][0]
    assert torch.equal(back(x), small(x)) and not torch.equal(small(x), given.model(x))
    again = qc.Plan.load(_saved(plan, tmp_path)).apply(given.model)
    assert torch.equal(again(x), small(x))
    tuned = qc.recover(small, given.batches, given.model, epochs=2, progress=False)
    assert range_of(tuned.stem) == range_of(small.stem) is not None
    assert not torch.equal(tuned.stem.weight, small.stem.weight)
    assert qc.save(tuned, tmp_path / "tuned") == plan.bytes
    assert all(range_of(module) is None for module in given.model.modules())


def _saved(plan: qc.Plan, folder: Path) -> Path:
    plan.save(folder / "plan.json")
    return folder / "plan.json"


@pytest.mark.parametrize("tail", [b"\0\0\0\0\0", b"\0\0\x80\x7f\0", b"\0\0\x80\xff\0"])
def test_damaged_ranges_in_a_file_are_refused(sample: Callable[[str], Any], tail: bytes) -> None:
    given = sample("perceptron")
    table = _measured(given)
    group = table.layout.groups[0]
    data = table.payloads[group.name, MENU[1]]
    parts = [given.model[0].weight.detach()]
    assert stored_as(MENU[1], group, parts, data).input_ranges
    for damaged in (data[:-5] + tail, data[:-1], data[:-5]):
        with pytest.raises(CorruptArtifact):
            stored_as(MENU[1], group, parts, damaged)


def test_layers_that_cannot_round_their_inputs_are_not_offered_it(sample: Callable[[str], Any]) -> None:
    offered = {
        name: {choice for choice in choices if "activations" in choice}
        for network in ("attention", "tied", "recurrent", "own-padding", "inputs-first", "twice", "mixing")
        for name, choices in _offered(sample(network)).items()
    }
    assert {name for name, choices in offered.items() if choices} >= {"head.weight", "stem.weight", "shared.weight"}
    for refused in ("embedding.weight", "attention.in_proj_weight", "attention.out_proj.weight"):
        assert not offered[refused]


def test_ranges_end_at_percentiles_and_one_huge_input_spoils_none(sample: Callable[[str], Any]) -> None:
    given = sample("perceptron")
    inputs, labels = given.batches[0]
    spoiled = inputs.clone()
    spoiled.view(-1)[3] = 1e6
    names = "quantize(bits=8,activations=8)", "quantize(bits=8,activations=8,percentile=90)"
    for name in names:
        found = []
        for given_inputs in (inputs, spoiled):
            data = [(given_inputs, labels)]
            table = qc.measure(given.model, data, menu=qc.Menu([name]), interactions=False, progress=False)
            choice = table.choices[0][-1]
            found.append(range_of(table.plan({table.group_names[0]: choice}).apply(given.model)[0]))
        assert 0.5 * found[0].scale <= found[1].scale <= 2 * found[0].scale


def _offered(given: Any) -> dict[str, tuple[str, ...]]:
    table = _measured(given, interactions=False)
    return dict(zip(table.group_names, table.choices, strict=True))


def test_filters_and_blind_metrics_are_refused(sample: Callable[[str], Any]) -> None:
    given = sample("perceptron")
    table = _measured(given, groups="filter", interactions=False)
    assert not any("activations" in choice for choices in table.choices for choice in choices)
    for metric in ("magnitude", "jacobian", "fisher"):
        with pytest.raises(InvalidMenu, match="rounds a layer's inputs"):
            _measured(given, metric)


def test_every_network_of_the_zoo_is_measured_and_applied(any_sample: Any, forward: Callable[..., Any]) -> None:
    if any_sample.name == "changeable":
        with pytest.raises(InvalidMenu, match="not seen on the calibration data"):
            _measured(any_sample, interactions=False)
        return
    table = _measured(any_sample, interactions=False)
    plan = table.plan(
        {
            name: next((choice for choice in choices if "activations=8" in choice), "keep")
            for name, choices in zip(table.group_names, table.choices, strict=True)
        }
    )
    small = plan.apply(any_sample.model)
    outputs = [forward(net, any_sample.batches[0][0]) for net in (small, any_sample.model)]
    apart, size = (float(t.detach().double().norm()) for t in (outputs[0] - outputs[1], outputs[1]))
    assert apart <= 0.1 * size
    loss = table.stitched_loss(any_sample.model, any_sample.batches, loss="kl")
    assert loss(table.assignment(plan.choices)) >= -1e-9


def test_compress_with_rounds_and_a_search_ends_within_bit_operations(sample: Callable[[str], Any]) -> None:
    given = sample("own-padding")
    table = _measured(given, interactions=False)
    costs = [table.costs["bit_operations"][start] // 16 for start in table.offsets[:-1]]  # 8 x 8 bits for 32 x 32
    budget = qc.Budget(ratio=1.4, bit_operations=sum(int(cost) for cost in costs))
    found = qc.compress(
        given.model, given.batches, budget, menu=qc.Menu(MENU), progress=False, rounds=1, evaluations=600, time_limit=1,
    )  # fmt: skip
    rounding = [name for name, choice in found.plan.choices.items() if "activations" in choice]
    hooked = [f"{name}.weight" for name, module in found.model.named_modules() if range_of(module)]
    assert rounding and sorted(rounding) == sorted(hooked)


def test_a_wrapped_layer_keeps_its_other_hooks() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    calls: list[int] = []
    net[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    data = [(torch.randn(8, 4), torch.arange(8) % 3)]
    table = qc.measure(net, data, menu=qc.Menu(MENU[:2]), progress=False)
    small = table.plan({"0.weight": MENU[1]}).apply(net)
    calls.clear()
    small(data[0][0])
    assert calls and range_of(small[0]) is not None


@pytest.mark.parametrize("kind", ["removed", "changed", "added"])
def test_networks_that_no_longer_round_as_planned_are_not_stored(
    sample: Callable[[str], Any], tmp_path: Path, kind: str
) -> None:
    given = sample("grouped-view-inplace")
    table = _measured(given, interactions=False)
    small = table.plan({"stem.weight": MENU[1]}).apply(given.model)
    qc.save(small, tmp_path / "net")
    if kind == "removed":
        small.stem._forward_pre_hooks.clear()
    else:
        place_range(small.stem if kind == "changed" else small.head, InputRange(1.0, 3, 8))
    name = "head" if kind == "added" else "stem"
    for use in (
        lambda: qc.save(small, tmp_path / "net"),
        lambda: qc.export(small, tmp_path / "net.onnx", given.batches[0][0]),
        lambda: qc.recover(small, given.batches, given.model, epochs=1, progress=False),
    ):
        with pytest.raises(WrongModel, match=rf"inputs of {name}\.weight are not rounded as in the plan"):
            use()
    assert not (tmp_path / "net.onnx").exists()
