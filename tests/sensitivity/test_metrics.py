"""Every metric, loss and weight against the same thing written out plainly."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.evaluation import score_examples
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.sensitivity.metric import make_metric
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.testing import check_metric
from tests.sensitivity.plain import (
    MENU,
    WHOLE_BATCHES,
    all_outputs,
    all_targets,
    applied,
    examples_of,
    measured,
    singles,
)


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


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (np.ones(3), "returned a ndarray; measure must return a MetricResult with [0-9]+ linear terms"),
        (qc.sensitivity.MetricResult(np.ones(3)), r"linear terms of shape \(3,\) in a ndarray"),
        (qc.sensitivity.MetricResult(torch.ones(3)), r"in a Tensor; the [0-9]+ choices need a numpy array"),
    ],
)
def test_what_is_no_result_is_refused(result: Any, said: str) -> None:
    class Odd(qc.sensitivity.Metric):
        metric_name = "odd"

        def measure(self, subject: Any) -> Any:
            return result

    net, batches = nn.Linear(4, 3), [(torch.randn(8, 4), torch.arange(8) % 3)]
    with pytest.raises(qc.QuboCompressError, match=said):
        qc.measure(net, batches, metric=Odd(), progress=False)


@pytest.mark.parametrize("metric", [type(make_metric("products")), None, 5, object()])
def test_what_is_no_metric_is_refused_and_left_as_it_was(metric: Any) -> None:
    before = dir(type(metric))
    with pytest.raises(qc.errors.InvalidMenu, match="a metric is a registered name or a Metric object; got"):
        qc.measure(nn.Linear(4, 3), [(torch.randn(8, 4), torch.arange(8) % 3)], metric=metric, progress=False)
    assert dir(type(metric)) == before and not isinstance(type(metric), qc.sensitivity.Metric)


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
