"""Every metric against the same thing written out plainly, over the whole zoo of networks."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.evaluation import score_examples
from qubo_compress.network.calls import WeightCalls
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.testing import same_snapshot, snapshot
from tests.sensitivity.plain import (
    WHOLE_BATCHES,
    all_outputs,
    applied,
    examples_of,
    measured,
    singles,
    tolerance,
)


def test_linear_terms_are_the_measured_loss_of_the_applied_choice(any_sample: Any) -> None:
    table = measured(any_sample)
    examples = examples_of(any_sample)
    before = score_examples(any_sample.model, examples).loss
    assert before == pytest.approx(table.provenance.baseline_loss, abs=tolerance(any_sample))
    assert len(table.group_names) >= 2
    for v, group, choice in singles(table):
        after = score_examples(applied(table, any_sample, (group, choice)), examples).loss
        assert table.linear[v] == pytest.approx(after - before, abs=tolerance(any_sample)), (group, choice)
    assert np.abs(table.linear).max() > 1e-3


def test_the_factor_has_the_gram_matrix_of_the_formula(any_sample: Any) -> None:
    table = measured(any_sample)
    examples = examples_of(any_sample)
    base = all_outputs(any_sample.model, examples)
    share = base.softmax(-1)
    rows = []
    for _, group, choice in singles(table):
        change = all_outputs(applied(table, any_sample, (group, choice)), examples) - base
        centred = change - (share * change).sum(-1, keepdim=True)
        rows.append((share.sqrt() * centred / len(base) ** 0.5).reshape(-1))
    wanted = torch.stack(rows) @ torch.stack(rows).T
    got = table.factor.astype(np.float64) @ table.factor.astype(np.float64).T
    assert np.allclose(got, wanted.numpy(), atol=tolerance(any_sample) * float(wanted.abs().max()) + 1e-7)
    assert float(wanted.abs().max()) > 1e-4


def test_replaying_gives_what_full_runs_give(any_sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = measured(any_sample)
    monkeypatch.setattr(sys.modules["qubo_compress.sensitivity.preparation"], "_trace", lambda model, examples: None)
    full = measured(any_sample)
    assert np.allclose(replayed.linear, full.linear, atol=tolerance(any_sample))
    assert np.allclose(replayed.factor @ replayed.factor.T, full.factor @ full.factor.T, atol=tolerance(any_sample))


def test_most_networks_are_replayed(sample: Any) -> None:
    from qubo_compress.network.replay import GroupSweep, trace_calls

    found = sample("perceptron")
    trace = trace_calls(found.model, found.batches[0][0])
    sweep = GroupSweep(NetworkTensors(found.model), ["3.weight"], trace)
    ran: list[nn.Module] = []
    handles = [module.register_forward_hook(lambda m, i, o: ran.append(m)) for module in found.model]
    weight = found.model[3].weight.detach()
    outputs = sweep.outputs(found.batches[0][0], [(weight,), (2 * weight,)], rows_per_pass=100)
    for handle in handles:
        handle.remove()
    assert sweep.replays and outputs.shape == (2, 10, 3)
    assert torch.allclose(outputs[0], found.model(found.batches[0][0]), atol=1e-6)


def test_a_check_takes_as_many_runs_for_many_choices_as_for_few(sample: Any) -> None:
    from qubo_compress.network.replay import GroupSweep, trace_calls

    found = sample("perceptron")
    inputs, layer = found.batches[0][0], found.model[3]
    trace, weight = trace_calls(found.model, inputs), layer.weight.detach()
    runs: list[int] = []
    layer.register_forward_hook(lambda module, given, out: runs.append(len(out)))
    counts = []
    for choices in (2, 30):
        runs.clear()
        sweep = GroupSweep(NetworkTensors(found.model), ["3.weight"], trace)
        assert sweep.check(inputs, [((1 + number) * weight,) for number in range(choices)], 1e-5)
        counts.append(sum(runs))
    assert counts[0] == counts[1] > 0


def test_layers_whose_inputs_have_no_batch_axis_are_replayed_choice_by_choice(caplog: Any) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(9, 4), nn.Embedding(6, 4)
            self.head = nn.Linear(24, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            found = self.tokens(tokens)
            return self.head((found + self.places(torch.arange(tokens.shape[1]))).flatten(1))

    from qubo_compress.network.replay import GroupSweep, trace_calls

    torch.manual_seed(0)
    net, tokens = Positions().eval(), torch.randint(9, (8, 6))
    sweep = GroupSweep(NetworkTensors(net), ["places.weight"], trace_calls(net, tokens))
    weight = net.places.weight.detach()
    variants = [(weight,), (2 * weight,), (0 * weight,)]
    with caplog.at_level("INFO", logger="qubo_compress"):
        assert sweep.check(tokens, variants, 1e-5) and sweep.replays
    assert not caplog.records, "there is nothing to complain about"
    used: list[str] = []
    with WeightCalls(dict(net.named_parameters()), lambda name, call: used.append(name)):
        outputs = sweep.outputs(tokens, variants, rows_per_pass=100)
    assert used == ["tokens.weight", *3 * ["head.weight"]], "what is before the layer runs once"
    with torch.no_grad():
        for got, (value,) in zip(outputs, variants, strict=True):
            net.places.weight.copy_(value)
            assert torch.allclose(got, net(tokens), atol=1e-6)
            net.places.weight.copy_(weight)


def test_a_network_that_takes_another_path_for_other_examples_is_measured_in_full(sample: Any) -> None:
    found = sample("changeable")
    means = [float(inputs.mean()) for inputs in (found.batches[0][0][:8], *(inputs for inputs, _ in found.batches))]
    found.model.threshold = (means[0] + max(means, key=lambda mean: abs(mean - means[0]))) / 2
    assert len({mean > found.model.threshold for mean in means[1:]}) == 2, "the slices do not take both paths"
    examples = examples_of(found)
    table = measured(found)
    before = score_examples(found.model, examples).loss
    for v, group, choice in singles(table):
        after = score_examples(applied(table, found, (group, choice)), examples).loss
        assert table.linear[v] == pytest.approx(after - before, abs=2e-5)
    for name in ("low.weight", "high.weight"):
        group = table.group_names.index(name)
        assert np.abs(table.linear[table.offsets[group] : table.offsets[group + 1]]).max() > 1e-4


def test_models_are_left_exactly_as_they_were_found(any_sample: Any) -> None:
    model = any_sample.model
    model.train()
    next(model.modules()).eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.ones_like(parameters[1])
    model.register_forward_hook(lambda module, inputs, output: None)
    before = snapshot(model)
    for metric in ("gauss-newton", "jacobian", "fisher"):
        if any_sample.name in WHOLE_BATCHES and metric != "gauss-newton":
            continue  # per-example gradients need a batch of one, which means something else to such a network
        measured(any_sample, metric)
        assert same_snapshot(before, snapshot(model)), metric


@pytest.mark.parametrize("where", ["first call", "half way", "interrupt"])
def test_models_are_left_as_they_were_found_after_an_exception(sample: Any, where: str) -> None:
    found = sample("grouped-view-inplace")
    found.model.train()
    calls = {"first call": 1, "half way": 40, "interrupt": 40}[where]
    cause: type[BaseException] = KeyboardInterrupt if where == "interrupt" else RuntimeError

    def fail(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls -= 1
        if calls <= 0:
            raise cause("out of luck")

    found.model.head.register_forward_pre_hook(fail)
    before = snapshot(found.model)
    with pytest.raises(KeyboardInterrupt if where == "interrupt" else qc.errors.ForwardFailed):
        measured(found, "gauss-newton" if where != "half way" else "pairwise")
    assert same_snapshot(before, snapshot(found.model))
