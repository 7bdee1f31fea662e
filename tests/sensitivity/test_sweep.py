"""Every metric against the same thing written out plainly, over the whole zoo of networks."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.evaluation import outputs_of, score_examples
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.network.calls import WeightCalls
from qubo_compress.network.discovery import discover
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.measure import measure_specimen
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.specimen import Around, Specimen
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.testing import check_metric, same_snapshot, snapshot

WHOLE_BATCHES = ("batch-dependent", "changeable")  # examples of these influence each other
SLICE = 10
MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))


def tolerance(sample: Any) -> float:
    return 3e-2 if sample.name == "bfloat16" else 2e-5


def examples_of(sample: Any) -> Examples:
    return read_examples(sample.batches, batch_size=SLICE)


def measured(
    sample: Any, metric: Any = "gauss-newton", loss: Any = "cross-entropy", menu: qc.Menu = MENU,
    base: nn.Module | None = None, groups: Any = "layer", **options: Any,
) -> SensitivityTable:  # fmt: skip
    """Measured in slices of 10, 10 and 4, so that several choices share a pass; nothing is shrunk unless asked."""
    settings = Measurement(
        menu, metric, loss, groups, progress=False, **{"shrinkage": 0.0, "interactions": 1.0, **options}
    )
    specimen = Specimen(sample.model, discover(sample.model, groups), examples_of(sample), settings)
    return measure_specimen(specimen, None if base is None else Around(base))


def singles(table: SensitivityTable) -> list[tuple[int, str, str]]:
    pairs = zip(table.group_names, table.choices, strict=True)
    return list(enumerate_flat([(group, choice) for group, names in pairs for choice in names]))


def enumerate_flat(pairs: list[tuple[str, str]]) -> list[tuple[int, str, str]]:
    return [(v, group, choice) for v, (group, choice) in enumerate(pairs)]


def applied(table: SensitivityTable, sample: Any, *chosen: tuple[str, str]) -> nn.Module:
    return table.plan(dict(chosen)).apply(sample.model)


def all_outputs(model: nn.Module, examples: Examples) -> Tensor:
    return torch.cat(outputs_of(model, examples)).double()


def all_targets(examples: Examples) -> Tensor:
    return torch.cat([part.targets.reshape(-1) for part in examples.slices])


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


@pytest.mark.parametrize("metric", qc.sensitivity.names())
def test_registered_metrics_conform(metric: str) -> None:
    check_metric(metric)


def test_a_metric_that_ignores_its_seed_or_keep_is_caught() -> None:
    class Wrong(qc.sensitivity.Metric):
        metric_name = "wrong"

        def measure(self, subject: Any) -> qc.sensitivity.MetricResult:
            return qc.sensitivity.MetricResult(np.ones(int(subject.offsets[-1])))

        def __repr__(self) -> str:
            return "Wrong()"

    with pytest.raises(AssertionError, match="keep has linear terms"):
        check_metric(Wrong())


PER_EXAMPLE = [
    "perceptron",
    "grouped-view-inplace",
    "positions",
    "tied",
    "encoder",
    "recurrent",
    "twice",
    "dict-inputs",
    "float64",
]


def loss_rows(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


def gradients_of_rows(model: nn.Module, sample: Any) -> list[dict[str, Tensor]]:
    """One gradient of the cross-entropy per output row, by one backward pass each, at the folded network."""
    from qubo_compress.network.inputs import call
    from qubo_compress.network.losses.classification import rows_of

    found = []
    for inputs, targets in sample.batches:
        rows = loss_rows(rows_of(call(model, inputs)), targets.reshape(-1))
        for value in rows:
            model.zero_grad()
            value.backward(retain_graph=True)
            found.append({n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None})
    return found


def reference_network(table: SensitivityTable, sample: Any) -> nn.Module:
    """The network with its normalisations folded at full precision: the point displacements are taken from."""
    from qubo_compress.menu.fold import Fold

    model = copy.deepcopy(sample.model)
    tensors = NetworkTensors(model)
    for group in table.layout.groups:
        if group.epsilon is not None:
            folded = Fold(32).reference(group, tensors.parts(group))
            tensors.fill(tensors.assembled(zip(group.members, folded, strict=True)))
    return model


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_fisher_is_the_explicit_gradient_of_every_output_row(sample: Any, name: str) -> None:
    found = sample(name)
    table = measured(found, "fisher")
    model = reference_network(table, found)
    start = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    gradients = gradients_of_rows(model, found)
    for v, group, choice in singles(table)[:: 1 if name == "perceptron" else 3]:
        small = applied(table, found, (group, choice)) if choice != "keep" else model
        member_names = [m.name for g in table.layout.groups if g.name == group for m in g.members]
        after = {n: p.detach().double() for n, p in small.named_parameters()}
        along = torch.tensor([
            sum(float((g[n] * (after[n] - start[n])).sum()) for n in member_names if n in g) for g in gradients
        ])  # fmt: skip
        features = table.factor[v].astype(np.float64)
        assert float((features**2).sum()) == pytest.approx(float((along**2).mean()), rel=2e-3, abs=1e-8), (
            group,
            choice,
        )
        wanted = float(along.mean()) + 0.5 * float((along**2).mean())
        assert table.linear[v] == pytest.approx(wanted, rel=2e-3, abs=1e-6), (group, choice)


@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_jacobian_agrees_with_gauss_newton_for_small_displacements(sample: Any, name: str) -> None:
    found = sample(name)
    menu = qc.Menu(bits=(12,), sparsity=(0.0,), vector_bits=(16,))
    first, second = measured(found, "gauss-newton", menu=menu), measured(found, "jacobian", menu=menu)
    grams = [t.factor.astype(np.float64) @ t.factor.astype(np.float64).T for t in (first, second)]
    scale = np.abs(grams[0]).max()
    assert np.allclose(grams[0], grams[1], atol=0.05 * scale)
    assert np.allclose(first.linear, second.linear, atol=0.05 * np.abs(first.linear).max())


@pytest.mark.parametrize("name", ["perceptron", "positions", "tied", "tuple-inputs", "twice"])
@pytest.mark.parametrize("groups", ["layer", "filter"])
def test_pairwise_is_the_measured_loss_of_pairs(sample: Any, name: str, groups: str) -> None:
    found = sample(name)
    menu = qc.Menu(bits=(2,), sparsity=(0.0,), vector_bits=(8,))
    table = measured(found, "pairwise", menu=menu, groups=groups)
    examples = examples_of(found)
    before = score_examples(found.model, examples).loss
    flat, dense = singles(table), table.pairs.toarray()
    loss = {v: score_examples(applied(table, found, (g, c)), examples).loss - before for v, g, c in flat}
    tried = [(a, b) for a in flat for b in flat if a[1] < b[1]]
    for one, other in tried[:: max(1, len(tried) // 60)]:
        joint = score_examples(applied(table, found, one[1:], other[1:]), examples).loss - before
        assert dense[one[0], other[0]] == pytest.approx(joint - loss[one[0]] - loss[other[0]], abs=2e-5)
    assert np.abs(dense).max() > 1e-4


def test_pairs_of_two_choices_predict_the_loss_better_than_their_sum(sample: Any) -> None:
    found = sample("perceptron")
    table = measured(found)
    examples = examples_of(found)
    before = score_examples(found.model, examples).loss
    names = dict.fromkeys(("0.weight", "3.weight"), "quantize(bits=2)")
    truth = score_examples(table.plan(names).apply(found.model), examples).loss - before
    assert abs(table.predict(names) - truth) < abs(table.predict(names, interactions=False) - truth)


def squared(outputs: Tensor, targets: Tensor | None) -> Tensor:
    goal = torch.nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    return ((outputs - goal) ** 2).sum(-1)


def test_a_callable_loss_is_measured_and_its_hessian_taken(sample: Any) -> None:
    found = sample("perceptron")
    table = measured(found, loss=squared)
    examples = examples_of(found)
    base = all_outputs(found.model, examples)
    before = float(squared(base, all_targets(examples)).mean())
    for v, group, choice in singles(table):
        outputs = all_outputs(applied(table, found, (group, choice)), examples)
        assert table.linear[v] == pytest.approx(
            float(squared(outputs, all_targets(examples)).mean()) - before, abs=2e-4
        )
        # The Hessian of the squared error is twice the identity.
        wanted = 2 * float(((outputs - base) ** 2).sum(-1).mean())
        assert float((table.factor[v].astype(np.float64) ** 2).sum()) == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_the_hessian_of_a_callable_loss_is_taken_once_for_all_groups(
    sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qubo_compress.network.losses.custom import CallableLoss

    taken: list[Tensor] = []
    real = CallableLoss._computed_root

    def counted(self: CallableLoss, outputs: Tensor, targets: Tensor | None) -> Tensor:
        taken.append(outputs)
        return real(self, outputs, targets)

    monkeypatch.setattr(CallableLoss, "_computed_root", counted)
    found = sample("grouped-view-inplace")
    table = measured(found, loss=squared)
    assert len(table.group_names) > 5
    assert [len(rows) for rows in taken] == [10, 10, 4], "one for every slice of the examples"


def test_a_callable_loss_of_too_many_outputs_for_its_hessian_is_measured_by_products(
    sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qubo_compress.network.losses import custom as custom_loss

    found = sample("perceptron")
    assert measured(found, "auto", loss=squared).provenance.metric == "gauss-newton"
    monkeypatch.setattr(custom_loss, "ROOT_MEMORY", 4 * 4 * 3**2 - 1)  # of the last slice: 4 examples, 3 classes
    monkeypatch.setattr(custom_loss.CallableLoss, "_computed_root", lambda *_: pytest.fail("a Hessian was formed"))
    table = measured(found, "auto", loss=squared, shrinkage=None)
    assert table.provenance.metric == "products" and table.linear.max() > 0


def test_kl_needs_no_targets_and_has_no_slope(sample: Any) -> None:
    found = sample("perceptron")
    unlabelled = [inputs for inputs, _ in found.batches]
    table = qc.measure(found.model, unlabelled, menu=MENU, loss="kl", progress=False)
    assert table.linear.min() >= -1e-7 and table.linear.max() > 1e-3
    assert np.allclose(table.linear, table.divergence, atol=1e-7)
    slopes = qc.measure(found.model, unlabelled, menu=MENU, loss="kl", metric="jacobian", progress=False)
    norms = 0.5 * (slopes.factor.astype(np.float64) ** 2).sum(1)
    assert np.allclose(slopes.linear, norms, atol=1e-5)


def test_example_weights_weigh(sample: Any) -> None:
    """Weight 2 is the same as the example twice, weight 0 as without it."""
    found = sample("perceptron")
    inputs, targets = (torch.cat(parts) for parts in zip(*found.batches, strict=True))
    weights = torch.tensor([0.0, 1.0, 2.0] * 8)
    order = [i for i, w in enumerate(weights) for _ in range(int(w))]
    # The halves that pair energies are shrunk by are others for other batches.
    options: dict[str, Any] = {"menu": MENU, "shrinkage": 0.0, "interactions": 1.0, "progress": False}
    for metric in ("gauss-newton", "jacobian", "fisher"):
        weighted = qc.measure(found.model, [(inputs, targets, weights)], metric=metric, **options)
        repeated = qc.measure(found.model, [(inputs[order], targets[order])], metric=metric, **options)
        assert np.allclose(weighted.linear, repeated.linear, atol=1e-5), metric
        grams = [t.factor @ t.factor.T for t in (weighted, repeated)]
        assert np.allclose(grams[0], grams[1], atol=1e-5), metric


@pytest.mark.parametrize("metric", ["gauss-newton", "jacobian", "fisher", "pairwise"])
def test_around_a_plan_every_swap_is_measured_from_that_plan(sample: Any, metric: str) -> None:
    found = sample("perceptron")
    table = measured(found)
    chosen = {group: names[1] for group, names in zip(table.group_names, table.choices, strict=True)}
    base = table.plan(chosen).apply(found.model)
    around = measured(found, metric, base=base)
    examples = examples_of(found)
    original = score_examples(found.model, examples).loss
    here = score_examples(base, examples).loss
    assert around.predict(chosen) == pytest.approx(here - original, abs=1e-5)
    exact, guessed = [], []
    for v, group, choice in singles(around):
        after = score_examples(table.plan({**chosen, group: choice}).apply(found.model), examples).loss
        exact.append(after - here)
        guessed.append(around.linear[v])
    if metric in ("gauss-newton", "pairwise"):
        assert np.allclose(guessed, exact, atol=1e-5)
    else:
        assert np.corrcoef(guessed, exact)[0, 1] > 0.6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("metric", ["gauss-newton", "jacobian", "fisher", "products"])
def test_a_gpu_gives_the_table_of_the_cpu(any_sample: Any, metric: str) -> None:
    if any_sample.name in WHOLE_BATCHES and metric != "gauss-newton":
        pytest.skip("per-example gradients need a batch of one")
    here = measured(any_sample, metric)
    any_sample.model.cuda()
    there = measured(any_sample, metric)
    close = 5e-2 if any_sample.name == "bfloat16" else 2e-3
    assert np.allclose(here.linear, there.linear, atol=close)
    small = there.plan({there.group_names[0]: there.choices[0][1]}).apply(any_sample.model)
    assert next(small.parameters()).device.type == "cuda"
