"""What recovery minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.calibration.evaluation import outputs_of
from qubo_compress.calibration.examples import read_examples
from qubo_compress.network.losses.classification import SquaredError
from qubo_compress.recovery import Distillation, LabelPreserving, objectives
from qubo_compress.recovery.objectives import RecoveryObjective, SoftAdapt, make_objective, needs_labels

MENU = qc.Menu(bits=(2,), sparsity=(0.0,))


def rows(seed: int, count: int = 6, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found, goal = torch.randn(2, count, classes, generator=generator)
    return found, goal, torch.randint(classes, (count,), generator=generator)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(0, 3), st.floats(0.1, 3), st.sampled_from(["kl", "logits"]))
def test_the_parts_are_what_the_paper_says(seed: int, alpha: float, beta: float, gamma: float, distance: Any) -> None:
    found, goal, labels = rows(seed)
    values = LabelPreserving(alpha, beta, gamma, distance=distance).start()(found, goal, labels)
    own = functional.cross_entropy(found, labels, reduction="none")
    answer = functional.cross_entropy(found, goal.argmax(1), reduction="none")
    if distance == "kl":
        apart = (goal.softmax(1) * (goal.log_softmax(1) - found.log_softmax(1))).sum(1)
    else:
        change = found - goal
        apart = 0.5 * change.var(1, correction=0)
    assert torch.allclose(values, alpha * own + beta * apart + gamma * answer, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_has_a_gradient_row_by_row(name: str) -> None:
    found, goal, labels = rows(3)
    found.requires_grad_()
    loss = make_objective(name)
    values = loss(found, goal, labels)
    assert values.shape == (6,)
    (gradient,) = torch.autograd.grad(values[2], found)
    assert gradient[2].abs().sum() > 0 and gradient[[0, 1, 3, 4, 5]].abs().sum() == 0


def test_emphasis_is_for_close_decisions_that_the_original_gets_right() -> None:
    goal = torch.tensor([[1.0, 0.9, 0.0], [9.0, 0.0, 0.0], [1.0, 0.9, 0.0]])
    labels = torch.tensor([0, 0, 1])
    found = goal + torch.tensor([0.0, 0.3, 0.0])
    even = LabelPreserving(0.0, 1.0, 0.0).start()(found, goal, labels)
    raised = LabelPreserving(0.0, 1.0, 0.0, emphasis=4.0).start()(found, goal, labels) / even
    assert raised[0] == pytest.approx(1 + 4 * float(torch.tensor(-0.1).exp()), rel=1e-5)
    assert raised[1] == pytest.approx(1.0, abs=1e-3)
    assert raised[2] == 1.0
    unlabelled = LabelPreserving(0.0, 1.0, 0.0, emphasis=4.0).start()(found, goal, None)
    assert unlabelled[2] == unlabelled[0] > even[0]


def test_softadapt_favours_the_part_that_falls_least() -> None:
    adapt = SoftAdapt((1.0, 2.0, 0.0), softness=1.0, window=2)
    assert adapt.weights == (1.0, 2.0, 0.0)
    for first, second in ((1.0, 1.0), (1.0, 1.0), (0.5, 0.9), (0.5, 0.9)):
        adapt.seen(torch.tensor([first, second, 0.0]))
    one, two, none = adapt.weights
    assert sum(adapt.weights) == pytest.approx(3.0) and none == 0.0
    assert two / one > 2.0
    assert SoftAdapt((1.0, 1.0), 0.0, 1).weights == (1.0, 1.0)


def test_two_trainings_share_no_state() -> None:
    settings_ = LabelPreserving(1.0, 1.0, 1.0, adaptive=True, window=1, softness=2.0)
    first, second = settings_.start(), settings_.start()
    before = first(*rows(0)).clone()
    for seed in range(1, 5):
        first(*rows(seed))
    assert torch.equal(second(*rows(0)), before)
    assert not torch.equal(first(*rows(0)), before)


def small(found: Any) -> torch.nn.Module:
    table = qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False)
    weights = [g.name for g in table.layout.groups if g.kind == "weight"]
    return table.plan(dict.fromkeys(weights, "quantize(bits=2)")).apply(found.model)


def tuned(found: Any, start: torch.nn.Module, objective: Any, **options: Any) -> torch.nn.Module:
    options = {"epochs": 8, "learning_rate": 1e-2, "progress": False, **options}
    return qc.recover(start, found.batches, teacher=found.model, objective=objective, **options)


def test_label_preserving_stays_nearer_to_the_original_than_labels_alone(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qubo_compress.recovery.training.BATCH", 20)

    class Found:
        model, batches = digits.model, digits.calibration

    start = small(Found)
    reference = outputs_of(digits.model, read_examples(digits.test))

    def apart(net: torch.nn.Module) -> float:
        found = outputs_of(net, read_examples(digits.test))
        return float(torch.stack([(a - b).var(1).mean() for a, b in zip(found, reference, strict=True)]).mean())

    kept = tuned(Found, start, "label-preserving", epochs=6, learning_rate=3e-3)
    plain = tuned(Found, start, "plain", epochs=6, learning_rate=3e-3)
    assert apart(kept) < 0.8 * apart(plain)
    assert apart(kept) < apart(start)


def test_the_default_is_distillation_and_functions_are_taken(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    start = small(found)
    named = tuned(found, start, "distillation")
    default = qc.recover(start, found.batches, teacher=found.model, epochs=8, learning_rate=1e-2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), default.parameters(), strict=True))
    by_hand = tuned(found, start, lambda z, r, y: functional.cross_entropy(z, y, reduction="none"))
    plain = tuned(found, start, "plain")
    assert all(torch.equal(a, b) for a, b in zip(by_hand.parameters(), plain.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), default.parameters(), strict=True))


def test_without_labels(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    start = small(found)
    inputs = [x for x, _ in found.batches]
    net = qc.recover(start, inputs, teacher=found.model, epochs=1, objective="label-preserving", progress=False)
    assert not net.training
    with pytest.raises(errors.InvalidObjective, match="needs labels"):
        qc.recover(start, inputs, teacher=found.model, epochs=1, objective="plain", progress=False)
    with pytest.raises(errors.UnknownName, match="label-preserving"):
        qc.recover(start, inputs, teacher=found.model, objective="label-preservng", progress=False)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"labels": -1.0}, "labels must be"),
        ({"outputs": float("nan")}, "outputs must be"),
        ({"labels": 0.0, "outputs": 0.0, "answers": 0.0}, "nothing would be trained"),
        ({"distance": "cosine"}, "'logits' or 'kl'"),
        ({"window": 0}, "window"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InvalidObjective, match=said):
        LabelPreserving(**wrong)


def test_softadapt_leaves_absent_parts_out() -> None:
    absent, without = SoftAdapt((0.5, 1.0, 1.0), 1.0, 1), SoftAdapt((0.0, 1.0, 1.0), 1.0, 1)
    for second, third in ((1.0, 1.0), (0.99, 0.95)):
        absent.seen(torch.tensor([0.0, second, third]))
        without.seen(torch.tensor([0.0, second, third]))
    assert absent.weights[1:] == pytest.approx(without.weights[1:])
    assert absent.weights[1] / absent.weights[2] == pytest.approx(2.718281828**0.8, rel=1e-3)


@dataclass(frozen=True)
class NeverAsked(qc.sensitivity.Metric):
    """A metric that must not be reached."""

    metric_name: ClassVar[str] = "never asked"

    def evaluations(self, subject: Any) -> float:
        raise AssertionError("the measurement has begun")

    def measure(self, subject: Any) -> Any:
        raise AssertionError("the measurement has begun")


def test_labels_alone_without_labels_are_refused_before_anything_is_measured(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    inputs = [x for x, _ in found.batches]
    for objective in ("plain", LabelPreserving(labels=1.0, outputs=0.0)):
        with pytest.raises(errors.InvalidObjective, match="needs labels"):
            qc.recover(small(found), inputs, teacher=found.model, epochs=1, objective=objective, progress=False)
        with pytest.raises(errors.InvalidObjective, match="needs labels"):
            qc.compress(
                found.model, inputs, qc.Budget(ratio=4), loss="kl", epochs=1, objective=objective, progress=False,
                metric=NeverAsked(),
            )  # fmt: skip


def test_an_objective_of_0_4_that_names_no_base_class_works_and_warns() -> None:
    @dataclass(frozen=True)
    class Squared:
        needs_labels: ClassVar[bool] = False

        def start(self) -> Any:
            return lambda found, goal, labels: (found - goal).square().sum(-1)

    with pytest.warns(DeprecationWarning, match=r"write class Squared\(RecoveryObjective\)"):
        loss = make_objective(Squared())  # type: ignore[arg-type]
    assert loss(torch.ones(1, 2), torch.zeros(1, 2), None).tolist() == [2.0]
    assert not needs_labels(Squared()) and isinstance(Squared(), RecoveryObjective)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 8), st.floats(0, 3))
def test_softened_probabilities_are_those_of_divided_logits(seed: int, temperature: float, weight: float) -> None:
    found, goal, labels = rows(seed)
    loss = Distillation(temperature, weight).start()
    soft, own = (goal / temperature).softmax(1), functional.cross_entropy(found, labels, reduction="none")
    apart = (soft * (soft.log() - (found / temperature).log_softmax(1))).sum(1)
    assert torch.allclose(loss(found, goal, labels), temperature**2 * apart + weight * own, atol=1e-4, rtol=1e-4)
    assert torch.allclose(loss(found, goal, None), temperature**2 * apart, atol=1e-4, rtol=1e-4)
    usual = Distillation(1.0, 1.0 + 1e-9).start()(found, goal, labels)
    assert torch.allclose(usual, Distillation().start()(found, goal, labels), atol=1e-5)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": float("inf")}, {"labels": -1.0}])
def test_a_temperature_is_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(errors.InvalidObjective, match="must be a finite number"):
        Distillation(**wrong)
    with pytest.raises(errors.InvalidObjective, match="compares classes"):
        make_objective(Distillation(temperature=2.0), SquaredError())
