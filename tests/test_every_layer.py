"""Every kind of layer, from the menu to the file and back; what no example reaches, and what is out of reach."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import InfeasibleBudget
from qubo_compress.menu.quantize import Quantize
from qubo_compress.network.discovery import discover
from qubo_compress.network.groups import Group, Member, outputs_first
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.report import write_report
from qubo_compress.testing import registered_samples
from tests.conftest import make_sample, run

KINDS = ("encoder", "cross-attention", "gated", "recurrent", "upsampling", "inputs-first", "own-padding", "mixing")
SAMPLES = {operator.operator_name: operator for operator in registered_samples()}
MENU = qc.Menu([o for name, o in SAMPLES.items() if name != "keep" and not o.activation_bits])
"""One choice of every operator; "magnitude", which these tests measure by, does not see rounded inputs."""


def everything(name: str, module: nn.Module) -> str:
    """A grouping that asks for plain parameters too."""
    return name


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(KINDS), rule=st.sampled_from(["layer", "filter", everything]), seed=st.integers(0, 1000))
def test_files_are_as_large_as_planned_and_load_what_was_applied(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rule: Any, seed: int
) -> None:
    found = make_sample(kind)
    menu = MENU if rule != "filter" else qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))
    table = qc.measure(found.model, found.batches, menu=menu, metric="magnitude", groups=rule, progress=False)
    rng = np.random.default_rng(seed)
    picked = {name: str(rng.choice(names)) for name, names in zip(table.group_names, table.choices, strict=True)}
    plan = table.plan(picked)
    small = plan.apply(found.model)
    path = tmp_path_factory.mktemp(kind) / "net.safetensors"
    assert qc.save(small, path) == path.stat().st_size == plan.bytes
    loaded = qc.load(path, found.model)
    for (name, tensor), (_, again) in zip(small.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(tensor, again), f"{name} after {picked}"
    inputs = found.batches[0][0]
    with torch.no_grad():
        assert torch.equal(run(small, inputs), run(loaded, inputs))
        assert not torch.equal(run(small, inputs), run(found.model, inputs))


@given(
    blocks=st.integers(1, 3), inputs=st.integers(1, 3), outputs=st.integers(1, 3),
    kernel=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 99),
)  # fmt: skip
def test_turning_weights_round_loses_nothing(
    blocks: int, inputs: int, outputs: int, kernel: list[int], seed: int
) -> None:
    held = torch.randn(blocks * inputs, outputs, *kernel, generator=torch.Generator().manual_seed(seed))
    whole = outputs_first(held, blocks)
    member = Member("w", tuple(whole.shape), held.dtype, None, blocks)
    assert torch.equal(member.in_network_order(whole), held) and torch.equal(member.part(held), whole)
    stacked = torch.stack([held, 2 * held])
    assert torch.equal(member.part(stacked, leading=1)[1], 2 * whole)
    rows = [Member("w", member.shape, held.dtype, (r, r + 1), blocks) for r in range(len(whole))]
    assert torch.equal(torch.cat([row.part(held) for row in rows]), whole)
    rows[-1].write(changed := held.clone(), torch.zeros(1, *whole.shape[1:]))
    assert not bool(rows[-1].part(changed).any()) and torch.equal(member.part(changed)[:-1], whole[:-1])


def test_a_row_of_a_transposed_convolution_is_an_output_channel() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    member = discover(layer).groups[0].members[0]
    weight = member.part(layer.weight.detach()).clone()
    weight[4] = 0
    with torch.no_grad():
        layer.weight.copy_(member.in_network_order(weight))
        layer.bias.zero_()
        out = layer(torch.randn(2, 4, 5, 5))
    assert [bool(out[:, c].any()) for c in range(6)] == [True, True, True, True, False, True]


@pytest.mark.parametrize("kind, name", [("inputs-first", "wide.weight"), ("upsampling", "grouped.weight")])
def test_weights_with_inputs_first_have_a_scale_per_output(kind: str, name: str, sample: Callable[[str], Any]) -> None:
    model = sample(kind).model
    group = next(group for group in discover(model).groups if group.name == name)
    weight = dict(model.named_parameters())[name]
    sizes = 0.01 * 4.0 ** torch.arange(group.members[0].shape[0])
    part = group.members[0].part(weight.detach())
    uneven = part / part.flatten(1).abs().amax(1).reshape(-1, *[1] * (part.ndim - 1))
    uneven = uneven * sizes.reshape(-1, *[1] * (part.ndim - 1))
    packed = Quantize(8).encode(group, [uneven])
    apart = (packed.tensors()[0] - uneven).flatten(1).norm(dim=1) / uneven.flatten(1).norm(dim=1)
    assert float(apart.max()) < 0.01  # one scale for all of them would lose the small ones
    assert packed.parts[0].scale.shape == (len(sizes), 1)


def test_plain_parameters_are_groups_on_request(sample: Callable[[str], Any]) -> None:
    model = sample("mixing").model
    kept = {item.name: item.reason for item in discover(model).kept}
    assert "groups= a function that returns a label for 'mix'" in kept["mix"] and "vector" in kept["scale"]
    asked: list[str] = []
    layout = discover(model, lambda name, module: asked.append(name) or ("own" if name == "mix" else name))
    assert asked == ["head.weight", "mix", "shift"]
    assert [group.name for group in layout.groups] == ["mix", "shift", "head.weight", "head.bias"]
    assert [item.name for item in layout.kept] == ["scale"]
    assert discover(model, layout.rule) == layout
    left = discover(model, lambda name, module: None)
    assert {item.name for item in left.kept} == {"mix", "shift", "scale", "head.weight"}


def test_an_encoder_becomes_smaller_than_its_projections_once_were(sample: Callable[[str], Any]) -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 32)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.head = nn.Linear(32, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.layer(self.words(tokens)).mean(1))

    data = [(torch.randint(20, (24, 6)), torch.arange(24) % 3)]
    net = Net().eval()
    kept_before = net.layer.self_attn.in_proj_weight.numel() * 4
    original = discover(net).original_bytes
    menu = qc.Menu(bits=(2, 4, 8), sparsity=(0.0,))
    found = qc.compress(
        net, data, qc.Budget(ratio=6), menu=menu, metric="magnitude", loss="kl", recover=False, progress=False,
        time_limit=2.0,
    )  # fmt: skip
    assert found.plan.bytes <= original / 6
    assert found.plan.bytes < kept_before + original / 8  # out of reach when these stayed in float32
    assert found.plan.choices["layer.self_attn.in_proj_weight"] != "keep"


def test_what_no_example_reaches_is_kept_and_listed(sample: Callable[[str], Any], tmp_path: Path) -> None:
    found = sample("unreached")
    menu = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.75))
    result = qc.compress(
        found.model, found.batches, qc.Budget(ratio=0.85), menu=menu, time_limit=0.5, progress=False, recover=False
    )
    lost = {"dropped.weight", "dropped.bias", "other.0.weight", "other.0.bias", "other.1.weight"}
    table = result.table
    assert set(table.kept_because) == lost
    assert {n for n, c in zip(table.group_names, table.choices, strict=True) if c == ("keep",)} >= lost
    x = found.batches[0][0]
    with torch.no_grad():
        for name in ("dropped.weight", "other.0.weight"):
            assert torch.equal(result.model.state_dict()[name], found.model.state_dict()[name])
        assert result.model.embed(x).shape == (len(x), 4)
    path = write_report(result, tmp_path / "report.html", seconds_per_point=0)
    assert "no calibration example reaches it" in path.read_text()


def test_branches_that_some_example_takes_are_reached(sample: Callable[[str], Any]) -> None:
    for kind in ("changeable", "functional"):
        found = sample(kind)
        if kind == "changeable":  # the last examples take the other path
            inputs = torch.cat([inputs for inputs, _ in found.batches])
            found.model.threshold = float(inputs[:16].mean() + inputs[16:].mean()) / 2
        assert not qc.measure(found.model, found.batches, metric="magnitude", progress=False).kept_because


class WithoutGradients(nn.Module):
    """Its forward switches gradients off, and never runs one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(7, 5), nn.LSTM(5, 6, batch_first=True)
        self.norm, self.head, self.other = nn.LayerNorm(6), nn.Linear(6, 3), nn.Linear(6, 4)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(self.words(tokens))[0][:, -1]))


def test_without_gradients_what_a_function_is_given_is_reached(sample: Callable[[str], Any]) -> None:
    net = WithoutGradients()
    table = qc.measure(net, sample("recurrent").batches, metric="magnitude", progress=False)
    assert set(table.kept_because) == {"other.weight", "other.bias"}
    for name, choices in zip(table.group_names, table.choices, strict=True):
        assert (len(choices) > 1) is not name.startswith("other")
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_without_gradients_the_branch_of_the_last_example_is_reached_too() -> None:
    class Branching(WithoutGradients):
        @torch.no_grad()
        def forward(self, tokens: Tensor) -> Tensor:
            found = super().forward(tokens)
            return found + self.other(self.words.weight[:1, :1].expand(1, 6)).mean() if bool(tokens.any()) else found

    tokens = torch.zeros(60, 4, dtype=torch.int64)
    data = [(tokens, torch.arange(60) % 3)]
    assert "other.weight" in qc.measure(Branching(), data, metric="magnitude", progress=False).kept_because
    tokens[-1] = 1
    assert not qc.measure(Branching(), data, metric="magnitude", progress=False).kept_because


def test_a_size_out_of_reach_names_what_is_kept_its_share_and_why(sample: Callable[[str], Any]) -> None:
    found = sample("unreached")
    with pytest.raises(InfeasibleBudget, match=r"smallest reachable") as caught:
        qc.compress(found.model, found.batches, qc.Budget(ratio=100), progress=False)
    said = str(caught.value)
    assert "dropped.weight (48 bytes: no calibration example reaches it)" in said and "% are" not in said
    assert "other.0.weight (96 bytes: no calibration example reaches it)" in said and "%) are tensors kept" in said
    assert caught.value.smallest is not None and str(f"{caught.value.smallest:,}") in said
    assert "another exception" not in "".join(traceback.format_exception(caught.value))
    table = qc.measure(found.model, found.batches, metric="magnitude", progress=False)
    with pytest.raises(InfeasibleBudget, match="other.0.weight") as again:
        qc.pareto(table, ratios=(100,))
    assert again.value.smallest == caught.value.smallest
    mixing = sample("mixing")
    with pytest.raises(InfeasibleBudget, match=r"mix \(120 bytes: it is a parameter of a Mixing"):
        qc.compress(mixing.model, mixing.batches, qc.Budget(ratio=100), progress=False)


def test_misspelt_groupings_are_refused_with_the_nearest() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    for given_rule, near in (("filters", "'filter'"), ("layers", "'layer'"), ("0.wieght", "'0.weight'")):
        with pytest.raises(qc.errors.InvalidMenu, match=f"matches the name of no weight; did you mean {near}"):
            discover(net, given_rule)


@pytest.mark.parametrize("kind", ["recurrent", "gated"])
def test_recurrent_modules_see_what_is_swapped_in_and_are_left_as_they_were(
    kind: str, sample: Callable[[str], Any]
) -> None:
    found = sample(kind)
    layer = found.model.lstm if kind == "recurrent" else found.model.gru
    inputs = found.batches[0][0]
    flat, held = layer._flat_weights, list(map(id, layer._flat_weights))
    name = "lstm.weight_hh_l0" if kind == "recurrent" else "gru.weight_hh_l0_reverse"
    value = 0.5 * dict(found.model.named_parameters())[name].detach()
    with torch.no_grad():
        before = run(found.model, inputs)
        other = copy.deepcopy(found.model)
        dict(other.named_parameters())[name].copy_(value)
        with NetworkTensors(found.model).swapped({name: value}):
            inside = run(found.model, inputs)
        assert torch.equal(inside, run(other, inputs)) and not torch.equal(inside, before)
        assert layer._flat_weights is flat and list(map(id, flat)) == held
        assert torch.equal(run(found.model, inputs), before)
        # A value written in place must reach the list too.
        layer_of_other = other.lstm if kind == "recurrent" else other.gru
        assert {w.data_ptr() for w in layer_of_other._flat_weights} <= {p.data_ptr() for p in other.parameters()}


def test_a_group_holds_members_of_both_orders(sample: Callable[[str], Any]) -> None:
    model = sample("inputs-first").model
    layout = discover(model, lambda name, module: "one")
    weights: Group = next(group for group in layout.groups if group.kind == "weight")
    assert {member.inputs_first for member in weights.members} == {0, 1}
    data = sample("inputs-first").batches
    table = qc.measure(model, data, menu=qc.Menu(["quantize(bits=8)"]), groups=lambda n, m: "one", progress=False)
    small = table.plan({weights.name: "quantize(bits=8)"}).apply(model)
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0.02)
