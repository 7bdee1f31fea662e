"""Networks that return other things than one tensor (N, classes), and losses of other things than classes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qubo_compress as qc
from qubo_compress.audits.section import audit_sections
from qubo_compress.calibration.evaluation import outputs_of, score, settle
from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import InvalidBatches, InvalidModel, InvalidObjective
from qubo_compress.network.scores import OutputReading

MENU = qc.Menu(bits=(2, 4, 8), sparsity=(0.0,))
VOCABULARY, LENGTH = 9, 6


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class Returning(nn.Module):
    """A perceptron whose answer is packed by a function."""

    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last, self.pack = nn.Linear(5, 8), nn.Linear(8, 3), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.last(self.first(x).relu()))


class Language(nn.Module):
    """(N, T) tokens to (N, T, V) logits in a dict, as transformers answer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(VOCABULARY, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, VOCABULARY)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.mix(self.embedding(tokens))).cumsum(1)
        return {"logits": self.head(hidden), "hidden": hidden}


def packed(pack: Callable[[Tensor], Any]) -> Returning:
    torch.manual_seed(0)
    return Returning(pack).eval()


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(20, 5, generator=generator), torch.randint(3, (20,), generator=generator))]


def measured(model: nn.Module, data: Any, **options: Any) -> qc.SensitivityTable:
    return qc.measure(model, data, menu=MENU, progress=False, **options)


PACKINGS = [
    pytest.param(lambda z: {"logits": z, "loss": z.sum()}, None, id="dict"),
    pytest.param(lambda z: Answer(z, z[:, :1]), None, id="dataclass"),
    pytest.param(lambda z: (z, [z]), None, id="tuple"),
    pytest.param(lambda z: {"scores": z}, "scores", id="named"),
    pytest.param(lambda z: (z.sum(), z), 1, id="index"),
    pytest.param(lambda z: {"a": [z]}, lambda answer: answer["a"][0], id="function"),
]


@pytest.mark.parametrize(("pack", "output"), PACKINGS)
@pytest.mark.parametrize("metric", ["gauss-newton", "jacobian", "fisher", "products"])
def test_what_a_network_returns_does_not_change_what_is_measured(pack: Any, output: Any, metric: str) -> None:
    plain = measured(packed(lambda z: z), batches(), metric=metric)
    found = measured(packed(pack), batches(), metric=metric, output=output)
    torch.testing.assert_close(torch.tensor(found.linear), torch.tensor(plain.linear))


@pytest.mark.parametrize(("pack", "output"), PACKINGS[:4])
def test_whole_compressions_read_the_same_output(pack: Any, output: Any) -> None:
    model = packed(pack)
    options: dict[str, Any] = {"validation": batches(2), "menu": MENU, "progress": False, "time_limit": 1.0}
    plain = qc.compress(packed(lambda z: z), batches(), qc.Budget(bytes=420), epochs=1, **options)
    result = qc.compress(model, batches(), qc.Budget(bytes=420), epochs=1, output=output, **options)
    assert result.plan.choices == plain.plan.choices
    assert result.recovered is not None and plain.recovered is not None
    assert result.recovered.loss == pytest.approx(plain.recovered.loss)
    report = qc.audit(model, result.model, batches(2), output=output)
    assert report.accuracy_after == result.recovered.accuracy
    assert type(result.model(batches()[0][0])) is type(model(batches()[0][0]))
    stitched = qc.StitchedLoss(model, result.table, batches(), output=output)
    assert stitched([0] * len(result.table.group_names)) > 0


@pytest.mark.parametrize(("pack", "output", "said"), [
    (lambda z: {"scores": z, "extra": z}, None, "'scores', 'extra'.*output="),
    (lambda z: (z.sum(), z), None, "tuple of 2.*output="),
    (lambda z: {"scores": z}, "score", "output='score' is not in.*'scores'"),
    (lambda z: (z.argmax(1), z), 0, "floating-point"),
    (lambda z: "yes", None, "str.*output="),
])  # fmt: skip
def test_what_cannot_be_read_is_refused_with_what_was_returned(pack: Any, output: Any, said: str) -> None:
    with pytest.raises(InvalidModel, match=said):
        measured(packed(pack), batches(), output=output)


@functools.cache
def language() -> Language:
    torch.manual_seed(0)
    model = Language()
    tokens, labels = sentences(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(tokens)["logits"].transpose(1, 2), labels).backward()
        optimizer.step()
    return model.eval()


def sentences(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(VOCABULARY, (32, 1), generator=generator)
    tokens = (start + 2 * torch.arange(LENGTH)) % VOCABULARY
    return tokens, (tokens + 2) % VOCABULARY


def test_language_models_work_by_their_labels_alone() -> None:
    tokens, labels = sentences(0)
    held_out = sentences(1)
    result = qc.compress(language(), [(tokens, labels)], qc.Budget(ratio=3), menu=MENU, validation=[held_out],
                         progress=False, time_limit=1.0)  # fmt: skip
    torch_loss = functional.cross_entropy(language()(held_out[0])["logits"].flatten(0, 1), held_out[1].flatten())
    assert result.before.loss == pytest.approx(torch_loss.item(), rel=1e-5)
    assert result.before.accuracy > 0.9
    assert result.recovered is not None and result.recovered.accuracy > 0.8
    assert result.table.provenance.loss == "cross-entropy"
    assert qc.audit(language(), result.model, [held_out]).rows == 32 * LENGTH


def test_ignored_labels_weigh_nothing_and_scores_are_those_of_torch() -> None:
    tokens, labels = sentences(0)
    labels = labels.clone()
    labels[:, -2:] = -100
    labels[3] = -100
    labels[5, 1:] = -100
    logits = language()(tokens)["logits"].detach()
    wanted = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert score(language(), [(tokens, labels)]).loss == pytest.approx(float(wanted), rel=1e-5)
    assert measured(language(), [(tokens, labels)]).provenance.baseline_loss == pytest.approx(float(wanted), rel=1e-5)


def test_what_is_behind_ignored_labels_changes_no_measurement() -> None:
    tokens, labels = sentences(0)
    labels = labels.clone()
    labels[:, 4:] = -100
    other = tokens.clone()
    other[:, 4:] = 0  # seen at ignored positions only: hidden states are sums over earlier tokens
    for metric in ("gauss-newton", "jacobian", "products"):
        first, second = (measured(language(), [(x, labels)], metric=metric) for x in (tokens, other))
        torch.testing.assert_close(torch.tensor(first.linear), torch.tensor(second.linear), rtol=1e-4, atol=1e-7)
        assert first.factor is not None and second.factor is not None
        grams = [torch.tensor(table.factor @ table.factor.T) for table in (first, second)]
        torch.testing.assert_close(*grams, rtol=1e-3, atol=1e-5)


def test_labels_that_are_all_ignored_are_refused() -> None:
    x, y = batches()[0]
    ignored = [(x, torch.full_like(y, -100))]
    for call in (lambda m: measured(m, ignored), lambda m: score(m, ignored), lambda m: qc.audit(m, m, ignored)):
        with pytest.raises(InvalidBatches, match="every label is -100"):
            call(packed(lambda z: z))


def reading_of(shape: tuple[int, ...], targets: Tensor | None = None, tokens: Tensor | None = None) -> OutputReading:
    inputs = () if tokens is None else (tokens,)
    return OutputReading().settled_on(torch.zeros(shape), shape[0], inputs, targets)


def test_class_axes_are_found_where_they_can_be_shown() -> None:
    assert reading_of((2, 4)).class_axis == 1
    assert reading_of((2, 5, 7), torch.zeros(2, 5, dtype=torch.long)).class_axis == 2
    assert reading_of((2, 5, 7), torch.zeros(2, 7, dtype=torch.long)).class_axis == 1
    assert reading_of((2, 5, 7), tokens=torch.zeros(2, 5, dtype=torch.long)).class_axis == 2
    assert reading_of((2, 5, 7), torch.full((2, 5, 7), 1 / 7)).class_axis == 2
    assert reading_of((2, 3, 8, 8)).class_axis == 1
    assert reading_of((2, 8, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)).class_axis == 1


@pytest.mark.parametrize(("shape", "targets", "tokens"), [
    ((2, 5, 5), torch.zeros(2, 5, dtype=torch.long), None),
    ((2, 5, 7), torch.zeros(2, dtype=torch.long), None),
    ((2, 5, 7), None, None),
    ((2, 5, 5), None, torch.zeros(2, 5, dtype=torch.long)),
])  # fmt: skip
def test_class_axes_are_asked_for_elsewhere(shape: Any, targets: Any, tokens: Any) -> None:
    with pytest.raises(InvalidModel, match="class_axis="):
        reading_of(shape, targets, tokens)
    given = OutputReading(class_axis=-1).settled_on(torch.zeros(shape), 2, (), targets)
    assert given.rows(torch.zeros(shape)).shape == (
        shape[0] * shape[1], shape[2],
    )  # fmt: skip


def test_shares_along_the_last_axis_are_aligned_with_the_rows() -> None:
    tokens, labels = sentences(0)
    shares = functional.one_hot(labels, VOCABULARY).float()
    assert score(language(), [(tokens, shares)]).loss == pytest.approx(score(language(), [(tokens, labels)]).loss)


class Numbers(nn.Module):
    """One number per example, behind a normalisation that can be repaired."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 24), nn.BatchNorm1d(24)
        self.second, self.last = nn.Linear(24, 24), nn.Linear(24, 1)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        found = self.last(self.second(self.norm(self.first(x)).relu()).relu())
        return found[:, 0] if self.flat else found


def surface(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, 0] * x[:, 1] + x[:, 2].sin() + 2.0


@functools.cache
def trained(binary: bool, flat: bool = False) -> Numbers:
    torch.manual_seed(0)
    model, (x, y) = Numbers(flat), surface(0)
    goal = (y > 2.0).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        found = model(x).reshape(-1)
        loss = functional.binary_cross_entropy_with_logits(found, goal) if binary else functional.mse_loss(found, y)
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_regressions_are_compressed_and_repaired_by_their_squared_error(flat: bool, labelled: bool) -> None:
    model, (x, y), (test_x, test_y) = trained(False, flat), surface(0), surface(1)
    data = [(x, y)] if labelled else [x]
    table = measured(model, data)
    assert table.provenance.loss == "squared-error"
    plan = table.plan(qc.solve(table.problem(qc.Budget(ratio=4)), time_limit=1.0))
    small = plan.apply(model)
    repaired = qc.recover(small, data, model, progress=False)
    tuned = qc.recover(small, data, model, epochs=15, progress=False)
    errors = [score(net, [(test_x, test_y)]).loss for net in (model, small, repaired, tuned)]
    assert errors[0] == pytest.approx(functional.mse_loss(model(test_x).reshape(-1), test_y).item(), rel=1e-5)
    assert errors[3] < errors[1] < 1.1 * errors[0]
    away = [(net(x) - model(x)).square().mean().item() for net in (small, repaired, tuned)]
    assert 0 < away[1] < away[0]
    assert away[2] < 0.7 * away[0]


@pytest.mark.parametrize("form", ["float", "long", "column"])
def test_a_binary_network_keeps_its_accuracy(form: str) -> None:
    model, held = trained(True), surface(2)

    def labels(y: Tensor) -> Tensor:
        found = y > 2.0
        return {"float": found.float(), "long": found.long(), "column": found.float()[:, None]}[form]

    (x, y), test = surface(0), [(held[0], labels(held[1]))]
    result = qc.compress(model, [(x, labels(y))], qc.Budget(ratio=4), menu=MENU, progress=False, time_limit=1.0)
    assert result.table.provenance.loss == "binary-cross-entropy"
    report = qc.audit(model, result.model, test)
    truth = [float(((net(held[0])[:, 0] > 0) == (held[1] > 2.0)).double().mean()) for net in (model, result.model)]
    assert [report.accuracy_before, report.accuracy_after] == pytest.approx(truth)
    assert truth[1] > truth[0] - 0.02
    assert result.plan.ratio < 5  # it is not crushed, as it was when every choice seemed to cost nothing


@pytest.mark.parametrize("loss", ["cross-entropy", "kl"])
def test_losses_between_classes_are_refused_for_one_output(loss: str) -> None:
    with pytest.raises(InvalidModel, match="squared-error"):
        measured(trained(False), [surface(0)], loss=loss)


@pytest.mark.parametrize("loss", [
    nn.CrossEntropyLoss(reduction="none"), lambda outputs, targets: 1 - outputs.softmax(-1)[:, 0],
])  # fmt: skip
def test_a_callers_loss_that_no_output_changes_is_refused(loss: Any) -> None:
    x, y = surface(0)
    with pytest.raises(InvalidModel, match="same whatever the network's one output is.*binary-cross-entropy"):
        measured(trained(True), [(x, torch.zeros(len(y)).long())], loss=loss)


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_a_callers_loss_is_asked_for_no_more_than_it_may_be(at: float) -> None:
    """The loss accepts probabilities only, and the network is sure of its answer."""

    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return at + 0 * self.layer(x)

    def binary(outputs: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        return functional.binary_cross_entropy(outputs[:, 0], targets, reduction="none")

    table = measured(Sure(), [(surface(0)[0], torch.ones(300))], loss=binary, metric="magnitude")
    assert table.group_names == ("layer.weight", "layer.bias")


def test_numbers_are_no_probabilities() -> None:
    x, _ = batches()[0]
    data = [(x, torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))]
    with pytest.raises(InvalidBatches, match="squared-error"):
        measured(packed(lambda z: z), data, loss="cross-entropy")
    table = measured(packed(lambda z: z), data)
    assert table.provenance.loss == "squared-error"
    assert table.provenance.baseline_loss == pytest.approx(
        float(functional.mse_loss(packed(lambda z: z)(x), data[0][1])), rel=1e-5
    )


@pytest.mark.parametrize(("targets", "columns", "wanted"), [
    (None, 1, "squared-error"), (None, 3, "kl"),
    (torch.tensor([0, 1, 1]), 1, "binary-cross-entropy"), (torch.tensor([0, 1, -100]), 1, "binary-cross-entropy"),
    (torch.tensor([True, False, True]), 1, "binary-cross-entropy"), (torch.tensor([0, 4, 1]), 1, "squared-error"),
    (torch.tensor([0.0, 0.5, 1.0]), 1, "squared-error"), (torch.tensor([0, 1, 2]), 3, "cross-entropy"),
    (torch.eye(3), 3, "cross-entropy"), (torch.eye(3).long(), 3, "cross-entropy"),
    (torch.tensor([[1.0, 1.0, 0.0]] * 3), 3, "binary-cross-entropy"), (torch.full((3, 3), 0.4), 3, "squared-error"),
])  # fmt: skip
def test_the_loss_that_fits_is_chosen(targets: Tensor | None, columns: int, wanted: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, columns)
    data = [torch.ones(3, 4) if targets is None else (torch.ones(3, 4), targets)]
    examples, loss = settle(model, read_examples(data))
    assert loss == wanted
    assert settle(model, examples, loss) == (examples, loss)


def test_the_chosen_loss_and_output_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="qubo_compress"):
        measured(language(), [sentences(0)])
    text = caplog.text
    assert "'logits' is taken" in text
    assert "classes along axis 2" in text
    assert "cross-entropy" in text


def test_an_audit_of_numbers_says_how_far_they_moved() -> None:
    model, data = trained(False), [surface(1)]
    table = measured(model, data)
    small = table.plan(qc.solve(table.problem(qc.Budget(ratio=5)), time_limit=1.0)).apply(model)
    report = qc.audit(model, small, data, most_forgotten=3)
    before, after = (net(data[0][0])[:, 0].detach().double() for net in (model, small))
    goal, found = data[0][1].double(), report.regression
    assert found is not None and report.agreement is None
    assert found.mean_change == pytest.approx(float((after - before).abs().mean()))
    assert found.error_after == pytest.approx(float((after - goal).square().mean()))
    assert found.explained_before == pytest.approx(
        float(1 - (before - goal).square().mean() / goal.var(unbiased=False))
    )
    assert found.largest[0].row == int((after - before).abs().argmax())
    assert len(found.largest) == 3
    assert "mean squared error" in audit_sections(report)
    assert report.to_dict()["regression"]["error_after"] == found.error_after
    with pytest.raises(InvalidBatches, match="numbers"):
        qc.audit(model, small, data, others=[small])


def test_objectives_between_classes_are_refused_for_numbers() -> None:
    model, data = trained(False), [surface(0)]
    small = measured(model, data).plan({}).apply(model)
    with pytest.raises(InvalidObjective, match="distillation"):
        qc.recover(small, data, model, epochs=1, objective="label-preserving", progress=False)


def test_a_callers_loss_recovers_too() -> None:
    def robust(outputs: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        return functional.huber_loss(outputs[:, 0], targets, reduction="none")

    model, data = trained(False), [surface(0)]
    table = measured(model, data, loss=robust)
    small = table.plan(qc.solve(table.problem(qc.Budget(ratio=5)), time_limit=1.0)).apply(model)
    tuned = qc.recover(small, data, model, epochs=5, loss=robust, progress=False)
    test = [surface(1)]
    assert score(tuned, test, robust).loss < score(small, test, robust).loss


def test_outputs_are_read_alike_without_settling_first() -> None:
    tokens, labels = sentences(0)
    examples = read_examples([(tokens, labels)])
    settled, _ = settle(language(), examples)
    assert torch.equal(outputs_of(language(), examples)[0], outputs_of(language(), settled)[0])
