"""The calls that are given a weight itself, whatever module it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration import read_examples
from qubo_compress.calibration.statistics import Calibration
from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.network.calls import WeightCalls, weight_calls, why_unseen
from qubo_compress.network.discovery import discover
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.losses.classification import make_loss, rows_of
from qubo_compress.network.replay import run_model, trace_calls
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.costs import multiplications_per_value

EXAMPLES = 10


def moments_of(sample: Any, name: str) -> Moments:
    examples = read_examples([sample.batches[0]])
    run = lambda x: rows_of(run_model(sample.model, x))  # noqa: E731
    loss = make_loss("kl")
    group = next(g for g in discover(sample.model).groups if g.name == name)
    return InputMoments().collect(Calibration(sample.model, examples, loss, run, 0), group)[0]


def change_behind(sample: Any, name: str, of: Callable[[Any], None], error: Tensor) -> Tensor:
    """Change of what a hook sees behind the layer, per output row, when the error is added to its weight."""
    seen: list[Tensor] = []
    handle = of(sample.model).register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    tensor = dict(sample.model.named_parameters())[name]
    with torch.no_grad():
        run_model(sample.model, sample.batches[0][0])
        tensor += error
        run_model(sample.model, sample.batches[0][0])
        tensor -= error
    handle.remove()
    return (seen[1] - seen[0]).double()


def predicted(moments: Moments, error: Tensor) -> float:
    flat = error.double().flatten(1)
    return float(sum(row @ moments.blocks[moments.block_of(r)] @ row for r, row in enumerate(flat)))


@pytest.mark.parametrize("name", ["stem", "depthwise"])
def test_convolutions_that_pad_themselves_have_moments_of_their_real_inputs(
    name: str, sample: Callable[[str], Any]
) -> None:
    found = sample("own-padding")
    layer = getattr(found.model, name)
    error = 0.1 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    behind = change_behind(found, f"{name}.weight", lambda net: getattr(net, name), error)
    real = float(behind.square().sum()) / EXAMPLES
    assert predicted(moments_of(found, f"{name}.weight"), error) == pytest.approx(real, rel=1e-4)


@pytest.mark.parametrize("kind", ["attention", "encoder", "cross-attention"])
def test_the_last_projection_of_attention_has_moments_though_it_never_runs(
    kind: str, sample: Callable[[str], Any]
) -> None:
    found = sample(kind)
    inner = found.model.layer.self_attn if kind == "encoder" else found.model.attention
    name = "layer.self_attn.out_proj.weight" if kind == "encoder" else "attention.out_proj.weight"
    error = 0.1 * torch.randn(inner.out_proj.weight.shape, generator=torch.Generator().manual_seed(1))
    torch.backends.mha.set_fastpath_enabled(False)  # its hook would not be called
    try:
        behind = change_behind(found, name, lambda _: inner, error)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    real = float(behind.square().sum()) / EXAMPLES
    assert predicted(moments_of(found, name), error) == pytest.approx(real, rel=1e-3)


def test_packed_projections_between_two_sequences_have_moments_of_each() -> None:
    torch.manual_seed(0)

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x[:, :2], x[:, 2:], x[:, 2:])[0].mean(1)

    from types import SimpleNamespace

    x = torch.randn(EXAMPLES, 7, 4)
    made = SimpleNamespace(model=Cross().eval(), batches=[(x, torch.zeros(EXAMPLES, dtype=torch.int64))])
    found = moments_of(made, "attention.in_proj_weight")
    first, rest = (part.double().reshape(-1, 4) for part in (x[:, :2], x[:, 2:]))
    for block, inputs in zip(found.blocks, (first, rest, rest), strict=True):
        torch.testing.assert_close(block, inputs.T @ inputs / EXAMPLES)
    assert found.spans(12) == [(0, 0, 4), (1, 4, 8), (2, 8, 12)]


def test_self_attention_needs_one_block_only(sample: Callable[[str], Any]) -> None:
    assert len(moments_of(sample("attention"), "attention.in_proj_weight").blocks) == 1


EXPECTED = {
    "attention": {"attention.in_proj_weight": 6, "attention.out_proj.weight": 6},
    "cross-attention": {"attention.q_proj_weight": 4, "attention.k_proj_weight": 6, "attention.out_proj.weight": 4},
    "gated": {"gru.weight_ih_l0": 5, "gru.weight_hh_l0_reverse": 5, "cell.weight_ih": 5, "cell.weight_hh": 5},
    "upsampling": {"stem.weight": 5, "up.weight": 5, "grouped.weight": 11},
    "inputs-first": {"wide.weight": 6, "narrow.weight": 6, "embedding.weight": 0},
    "own-padding": {"stem.weight": 12, "depthwise.weight": 12},
    "functional": {"uncalled.weight": 1, "called.weight": 1},
    "recurrent": {"lstm.weight_ih_l0": 6},
    "unreached": {"body.weight": 1, "other.0.weight": 0},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_multiplications_are_those_of_the_real_calls(kind: str, sample: Callable[[str], Any]) -> None:
    found = sample(kind)
    with every_layer_runs():
        trace = trace_calls(found.model, found.batches[0][0])
    groups = {group.name: group for group in discover(found.model).groups}
    tensors = NetworkTensors(found.model)
    got = {name: multiplications_per_value(tensors, groups[name], trace)[0] for name in EXPECTED[kind]}
    assert got == EXPECTED[kind]


def test_what_is_not_seen_is_refused_with_the_reason() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    x = torch.randn(3, 4)

    def reason(run: Callable[[], Any], inputs_first: bool = False) -> str | None:
        return why_unseen(weight_calls(run, {"w": weight}).get("w", []), inputs_first)

    linear = torch.nn.functional.linear
    assert reason(lambda: linear(x, weight)) is None
    assert reason(lambda: x @ weight, inputs_first=True) is None
    assert "sums over its rows" in str(reason(lambda: x @ weight))
    assert "no known function" in str(reason(lambda: linear(x, weight * 2)))
    assert "embedding" in str(reason(lambda: (torch.embedding(weight, torch.tensor([1])), linear(x, weight))))


def test_a_report_may_end_the_run_and_the_mode_ends_with_it() -> None:
    layer = nn.Linear(3, 2)

    def stop(name: str, call: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), WeightCalls({"w": layer.weight}, stop):
        layer(torch.zeros(1, 3))
    assert layer(torch.zeros(1, 3)).shape == (1, 2)


def test_compensation_is_offered_where_inputs_are_seen(sample: Callable[[str], Any]) -> None:
    menu = qc.Menu(["compensate(bits=3)"])
    offered = {}
    for kind in ("encoder", "cross-attention", "gated", "upsampling", "inputs-first", "own-padding"):
        found = sample(kind)
        table = qc.measure(found.model, found.batches, menu=menu, metric="magnitude", progress=False)
        offered[kind] = {n for n, names in zip(table.group_names, table.choices, strict=True) if len(names) > 1}
    layer = "layer.self_attn.in_proj_weight", "layer.self_attn.out_proj.weight", "layer.linear1.weight"
    assert offered["encoder"] == {*layer, "layer.linear2.weight", "head.weight"}
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    assert offered["cross-attention"] == {*(f"attention.{name}" for name in names), "head.weight"}
    assert offered["gated"] == {"head.weight"}
    assert offered["upsampling"] == {"stem.weight", "head.weight"}
    assert offered["inputs-first"] == {"wide.weight", "narrow.weight", "head.weight"}
    assert offered["own-padding"] == {"stem.weight", "depthwise.weight", "head.weight"}
