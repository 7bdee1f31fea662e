"""Mismatches by kind, margin and class; exemplars, churn, memorization; tail weights and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.audits import (
    TailWeights,
    audit,
    churn,
    find_exemplars,
    influence,
    mcnemar,
    memorization,
    memorization_of,
    predictions,
    tail_weights,
)
from qubo_compress.audits import pictures as tail_pictures
from qubo_compress.audits import population as predicted_by
from qubo_compress.audits.exemplars import exemplars_of
from qubo_compress.audits.section import audit_sections
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.passes import SETTLING_EXAMPLES
from qubo_compress.errors import InvalidBatches, InvalidModel, UnknownName

CLASSES = 4


def _text(table: Any) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    return " ".join(console.export_text().split())


class Table(nn.Module):
    """Looks its scores up by the example's number."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.scores[x[:, 0].long()]


def population(count: int, seed: int, noise: float, base: Tensor) -> list[nn.Module]:
    generator = torch.Generator().manual_seed(seed)
    return [Table(base + noise * torch.randn(base.shape, generator=generator)) for _ in range(count)]


def sample(rows: int, seed: int = 0) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    scores = torch.randn(rows, CLASSES, generator=generator)
    scores[torch.arange(rows), labels] += 1.5
    return scores, [(torch.arange(float(rows))[:, None], labels)]


@settings(max_examples=20, deadline=None)
@given(st.integers(12, 80), st.integers(0, 1000), st.floats(0.1, 2.0))
def test_kinds_margins_and_classes_add_up(rows: int, seed: int, noise: float) -> None:
    base, batches = sample(rows, seed)
    report = audit(Table(base), population(1, seed + 1, noise, base)[0], batches, most_forgotten=10_000)
    kinds = report.kinds
    assert kinds.harmful + kinds.repaired + kinds.both_wrong == kinds.total == report.mismatches  # type: ignore[operator]
    assert sum(item.mismatches for item in report.margins) == kinds.total
    assert sum(item.harmful for item in report.margins) == kinds.harmful == len(report.forgotten)  # type: ignore[misc]
    assert sum(item.rows for item in report.margins) == rows
    assert max(item.rows for item in report.margins) - min(item.rows for item in report.margins) <= 1
    edges = [end for item in report.margins for end in (item.low, item.high)]
    assert edges == sorted(edges)
    assert sum(item.lost for item in report.classes) == kinds.harmful
    assert sum(item.gained for item in report.classes) == kinds.repaired
    for item in report.classes:
        assert item.change == pytest.approx((item.gained - item.lost) / item.examples)
        assert item.p_value == mcnemar(item.lost, item.gained) <= item.corrected_p_value
    margins = [item.margin for item in report.forgotten]
    assert margins == sorted(margins, reverse=True)
    json.dumps(report.to_dict())


def test_rows_of_the_same_margin_are_binned_in_the_order_of_the_examples() -> None:
    base = torch.eye(2).repeat(10, 1)
    moved = base.clone()
    moved[:2] = base[:2].flip(1)
    report = audit(Table(base), Table(moved), [torch.arange(20.0)[:, None]])
    assert [item.mismatches for item in report.margins] == [2] + [0] * 9


def test_flips_concentrate_at_small_margins() -> None:
    base, batches = sample(2000)
    report = audit(Table(base), population(1, 5, 0.2, base)[0], batches)
    assert report.margins[0].share > 5 * max(report.margins[-1].share, 0.002)


def test_a_class_that_is_given_up_is_found_and_the_others_are_not() -> None:
    base, batches = sample(2000)
    labels = batches[0][1]
    worse = base.clone()
    worse[labels == 2, 2] -= 1.0
    report = audit(Table(base), Table(worse), batches)
    assert [item.label for item in report.classes if item.changed] == [2]
    assert report.worst_class is not None and report.worst_class.label == 2
    text = _text(report.tables())
    assert "class 2" in text and "mid-p McNemar, holm" in text and "Flips by the original's margin" in text


def test_exemplars_are_where_the_most_frequent_answers_differ() -> None:
    base, batches = sample(400)
    labels = batches[0][1]
    moved = base.clone()
    moved[:10] = -base[:10]
    compressed = population(5, 1, 0.05, moved)
    found = find_exemplars([Table(base)], compressed, batches)
    expected = [i for i in range(10) if int(base[i].argmax()) != int(moved[i].argmax())]
    assert set(expected) <= set(found.rows.tolist())
    assert found.rows.size < 25
    assert found.compressed == 5 and found.originals == 1
    assert found.accuracy_before == pytest.approx(float((base.argmax(1) == labels).double().mean()))
    assert found.accuracy_after_on_exemplars is not None and found.accuracy_before_on_exemplars is not None
    assert found.accuracy_after_on_exemplars < found.accuracy_before_on_exemplars
    json.dumps(found.to_dict())


def test_class_shifts_are_welchs_test_on_recall_beside_the_accuracy() -> None:
    base, batches = sample(600)
    labels = batches[0][1]
    worse = base.clone()
    worse[labels == 1, 1] -= 0.7
    first, second = population(6, 2, 0.3, base), population(7, 3, 0.3, worse)
    found = find_exemplars(first, second, batches)
    shifts = {item.label: item for item in found.classes}
    assert shifts[1].shift < 0 and shifts[1].corrected_p_value < 0.01
    assert sum(item.shift * float((labels == item.label).double().mean()) for item in found.classes) == pytest.approx(0)
    adjusted = []
    for nets in (first, second):
        right = torch.stack([net(batches[0][0]).argmax(1) == labels for net in nets]).double()
        adjusted.append((right[:, labels == 1].mean(1) - right.mean(1)).numpy())
    assert shifts[1].p_value == pytest.approx(stats.ttest_ind(*adjusted, equal_var=False).pvalue)
    single = find_exemplars(first[:1], second, batches)
    assert single.classes[1].corrected_p_value < 0.05


def answering(labels: Tensor, wrong: list[int]) -> nn.Module:
    """Right everywhere but on these rows."""
    answers = labels.clone()
    answers[wrong] = (labels[wrong] + 1) % CLASSES
    return Table(nn.functional.one_hot(answers, CLASSES))


@pytest.mark.parametrize("wrong", [[[0], [1]], [[0], [1, 2]], [[0], [1], [2]]])
def test_shifts_are_not_tested_on_two_networks_or_without_variance(wrong: list[list[int]]) -> None:
    labels = torch.arange(CLASSES).repeat_interleave(25)
    batches = [(torch.arange(100.0)[:, None], labels)]
    compressed = [answering(labels, rows) for rows in wrong]
    found = find_exemplars([answering(labels, [])], compressed, batches)
    assert found.classes[0].shift < 0
    assert [(c.p_value, c.corrected_p_value, c.testable) for c in found.classes] == [(1.0, 1.0, False)] * CLASSES
    assert found.untested == CLASSES and not found.to_dict()["classes"][0]["testable"]
    report = audit(answering(labels, []), compressed[0], batches, others=compressed[1:])
    assert "4 of 4" in _text(report.population_table())
    assert "4 of 4 classes a shift beside the mean is not testable" in audit_sections(report)


def test_classes_without_a_test_do_not_count_in_the_correction() -> None:
    labels = torch.arange(CLASSES).repeat_interleave(25)
    inputs = torch.arange(100.0)[:, None]
    # Errors per class: those of classes 0 and 3 are always the mean, so their shift is zero up to rounding.
    counts = [(1, 2, 0, 1), (2, 4, 0, 2), (1, 2, 0, 1)]
    wrong = [[25 * label + i for label, count in enumerate(row) for i in range(count)] for row in counts]
    compressed = torch.stack([answering(labels, rows)(inputs).argmax(1) for rows in wrong])
    found = exemplars_of(labels[None], compressed, labels)
    assert [item.testable for item in found.classes] == [False, True, True, False] and found.untested == 2
    assert [item.corrected_p_value for item in found.classes[1:3]] == pytest.approx([2 * found.classes[1].p_value] * 2)


def test_churn_and_the_report_of_a_population() -> None:
    base, batches = sample(300)
    nets = population(4, 4, 0.3, base)
    found = churn(nets, batches)
    pair = float((nets[0](batches[0][0]).argmax(1) != nets[1](batches[0][0]).argmax(1)).double().mean())
    assert found.shares[0, 1] == found.shares[1, 0] == pytest.approx(pair)
    assert found.range[0] <= found.mean <= found.range[1]
    report = audit(Table(base), nets[0], batches, others=nets[1:], originals=population(2, 9, 0.5, base))
    assert report.seed_churn is not None and report.seed_churn.mean == pytest.approx(found.mean)
    assert report.exemplars is not None and report.exemplars.compressed == 4 and report.exemplars.originals == 3
    assert report.original_churn is not None and len(report.original_churn.shares) == 3
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["seed_churn"]["networks"] == 4 and plain["exemplars"]["compressed"] == 4
    with pytest.raises(InvalidBatches, match="at least two"):
        churn(nets[:1], batches)


class Shuffling:
    """Batches in another order whenever they are iterated."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels, self.reads = inputs, labels, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.reads))
        self.reads += 1
        yield self.inputs[order], self.labels[order]


class Counting(Table):
    """Counts the examples that it is run on, in a list that its copies share."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__(scores)
        self.seen = Shared()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


class Shared(list[int]):
    """A list of which copies are the list itself."""

    def __deepcopy__(self, _: Any) -> Shared:
        return self


def test_a_loader_that_shuffles_is_read_once_and_every_network_runs_once() -> None:
    base, batches = sample(200)
    nets = [Counting(base) for _ in range(4)]
    loader = Shuffling(*batches[0])
    report = audit(nets[0], nets[1], loader, others=[nets[2]], originals=[nets[3]])
    assert report.exemplars is not None and report.exemplars.rows.size == 0
    assert report.exemplars.accuracy_before == report.exemplars.accuracy_after == report.accuracy_before
    assert report.seed_churn is not None and report.seed_churn.mean == 0.0
    assert report.original_churn is not None and report.original_churn.mean == 0.0
    assert loader.reads == 1
    # The first of them show how outputs are read, alone and among all that are run at once.
    assert [sum(net.seen) for net in nets] == [200 + SETTLING_EXAMPLES + 200, 200, 200, 200]
    loader = Shuffling(*batches[0])
    found = find_exemplars(nets[:1], nets[1:], loader)
    assert found.rows.size == 0 and found.accuracy_before == found.accuracy_after and loader.reads == 1


def test_populations_can_be_compared_on_examples_read_once() -> None:
    base, batches = sample(100)
    loader = Shuffling(*batches[0])
    examples = read_examples(loader, 100)
    first, labels = predicted_by([Table(base)], examples)
    second, again = predicted_by([Table(base), Table(base)], examples)
    assert labels is not None and again is not None and torch.equal(labels, again)
    assert torch.equal(first.expand(2, -1), second) and loader.reads == 1
    assert torch.equal(predictions(Table(base), examples)[0], first[0])


def test_memorization_of_a_planted_example() -> None:
    """A nearest-neighbour learner knows an isolated example only when it has seen it."""
    torch.manual_seed(0)
    inputs = torch.cat([torch.randn(20, 2) * 0.1, torch.randn(20, 2) * 0.1 + 3.0, torch.tensor([[1.2, 0.0]])])
    labels = torch.tensor([0] * 20 + [1] * 20 + [1])  # the last one is mislabelled

    def nearest(chosen: np.ndarray, seed: int) -> nn.Module:
        kept, known = inputs[chosen], labels[chosen]

        class Nearest(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                answer = known[torch.cdist(x, kept).argmin(1)]
                return nn.functional.one_hot(answer, 2).float()

        return Nearest()

    found = memorization(nearest, inputs, labels, networks=40, progress=False)
    assert found.networks == 40 and found.masks.sum(1).tolist() == [round(0.7 * 41)] * 40
    assert found.scores[-1] == 1.0 and np.nanmax(found.scores[:20]) < 0.6 and abs(found.scores[20:40]).max() == 0.0
    assert (found.errors > 0).all()
    again = memorization_of(found.masks, found.right)
    assert np.array_equal(again.scores, found.scores)
    effect = influence(found.masks, found.right)
    assert np.allclose(np.diag(effect), found.scores)
    with pytest.raises(InvalidBatches, match="share between"):
        memorization(nearest, inputs, labels, share=1.0, progress=False)


def test_unknown_scores_are_left_out_of_the_summary_and_none_in_json() -> None:
    masks = np.array([[True, False, True, True], [False, True, True, True], [True, False, True, True]])
    right = np.array([[True, True, True, False], [False, True, True, False], [True, True, True, False]])
    found = memorization_of(masks, right).to_dict()
    assert found["scores"] == [1.0, 0.0, None, None] and found["known"] == 2 and found["share_above_0.25"] == 0.5
    json.dumps(found, allow_nan=False)
    nothing = memorization_of(masks[:, 2:], right[:, 2:]).to_dict()
    assert nothing["share_above_0.25"] is None and nothing["known"] == 0


def test_memorization_refuses_outputs_with_further_axes() -> None:
    with pytest.raises(InvalidBatches, match="20 rows of scores for 4 examples"):
        memorization(
            lambda chosen, seed: nn.Conv1d(2, 3, 1), torch.randn(4, 2, 5), torch.tensor([0, 1, 2, 0]), progress=False
        )


def test_tail_weights_favour_small_margins_weak_and_rare_classes() -> None:
    base, batches = sample(500)
    labels = batches[0][1]
    weights = tail_weights(Table(base), batches, TailWeights(margin=1.0))
    assert weights.shape == (500,) and float(weights.mean()) == pytest.approx(1.0) and float(weights.min()) > 0
    own = base[torch.arange(500), labels]
    margin = own - base.scatter(1, labels[:, None], -torch.inf).amax(1)
    one = labels == 0
    assert float(weights[one & (margin < 0.2)].mean()) > float(weights[one & (margin > 2)].mean())
    weak = base.clone()
    weak[labels == 3] *= 0.1
    only_weak = tail_weights(Table(weak), batches, TailWeights(margin=0.0, weak=1.0, rare=0.0))
    assert len({round(float(w), 9) for w in only_weak[labels == 3]}) == 1
    assert float(only_weak[labels == 3][0]) > float(only_weak[labels == 0][0])
    few = [(batches[0][0][: 100 + i], labels[: 100 + i]) for i in range(1)]
    rare = tail_weights(Table(base), few, TailWeights(margin=0.0, weak=0.0, rare=1.0))
    sums = [float(rare[few[0][1] == c].sum()) for c in range(CLASSES)]
    assert max(sums) == pytest.approx(min(sums))
    capped = tail_weights(Table(base), batches, TailWeights(margin=50.0, most=3.0))
    assert float(capped.max()) <= 3.05
    by_class = tail_weights(Table(base), batches)
    assert all(len({round(float(w), 9) for w in by_class[labels == c]}) == 1 for c in range(CLASSES))
    assert float(tail_weights(Table(base), [batches[0][0]]).std()) > 0
    with pytest.raises(InvalidBatches, match="finite"):
        TailWeights(margin=-1.0)


def test_weights_that_are_asked_for_multiply_those_of_the_batches(sample: Any) -> None:
    found = sample("perceptron")
    menu = qc.Menu(bits=(2, 4), sparsity=(0.0,))
    count = sum(len(y) for _, y in found.batches)
    vector = torch.linspace(0.1, 2.0, count)
    sizes = [len(y) for _, y in found.batches]
    own = [(x, y, w) for (x, y), w in zip(found.batches, torch.split(vector, sizes), strict=True)]
    options: dict[str, Any] = {"menu": menu, "progress": False}
    by_option = qc.measure(found.model, found.batches, example_weights=vector, **options)
    by_batches = qc.measure(found.model, own, **options)
    assert np.allclose(by_option.linear, by_batches.linear, rtol=1e-9)
    both = qc.measure(found.model, own, example_weights=1 / vector, **options)
    assert np.allclose(both.linear, qc.measure(found.model, found.batches, **options).linear, rtol=1e-6, atol=1e-9)
    tail = qc.measure(found.model, found.batches, example_weights="tail", **options)
    assert not np.allclose(tail.linear, both.linear)
    for wrong, kind in ((vector[:-1], InvalidBatches), (-vector, InvalidBatches), ("tial", UnknownName)):
        with pytest.raises(kind):
            qc.measure(found.model, found.batches, example_weights=wrong, **options)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (40, None),
        (60, "Drawn are the 40 classes that lost most, of 60; the table lists all."),
        (1200, "Drawn are the 40 classes that lost most, of 1,200; the table lists 60 of them."),
    ],
)
def test_the_page_says_how_many_classes_it_leaves_out(count: int, said: str | None) -> None:
    labels = torch.arange(count)
    net = Table(torch.eye(count))
    page = audit_sections(audit(net, net, [(torch.arange(float(count))[:, None], labels)]))
    assert (said in page) if said else ("Drawn are" not in page)


class Images(nn.Module):
    """A network of images whose last rows can be disturbed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels * 16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_and_page(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, small = Images(channels), Images(channels)
    inputs = torch.randn(120, channels, 4, 4)
    labels = model(inputs).argmax(1)
    batches = [(inputs[:50], labels[:50]), (inputs[50:], labels[50:])]
    report = audit(model, small, batches, others=[Images(channels)], most_forgotten=15)
    assert report.harmful and report.harmful > 15 and len(report.forgotten) == 15
    if channels == 2:
        assert report.images is None
    else:
        assert report.images is not None and len(report.images) == 15
        row = report.forgotten[3].row
        picture = inputs[row].permute(1, 2, 0).numpy().squeeze()
        scaled = (picture - picture.min()) / (picture.max() - picture.min())
        assert np.allclose(report.images[3], scaled, atol=1e-6)
        grid = tail_pictures.forgotten_examples(report)
        assert grid is not None and grid.startswith(b"\x89PNG")
    text = report.write(tmp_path / "audit.html").read_text()
    for part in ("What it forgot", "Flips by margin", "Classes", "Several networks", "Forgotten"):
        assert f"<h2>{part}</h2>" in text
    assert text.count("<script>") == 1 and "<script " not in text and "http:" not in text and "https:" not in text


def test_the_report_of_a_compression_takes_an_audit(digits: Any, tmp_path: Path) -> None:
    result = qc.compress(
        digits.model, digits.calibration, qc.Budget(ratio=8), menu=qc.Menu(bits=(2, 4), sparsity=(0.0,)),
        max_examples=60, time_limit=1.0, progress=False, example_weights="tail",
    )  # fmt: skip
    from qubo_compress.report import write_report

    report = audit(digits.model, result.model, digits.test)
    text = write_report(result, tmp_path / "r.html", seconds_per_point=0, audit=report).read_text()
    assert "<h2>What it forgot</h2>" in text
    assert "<h2>What it forgot</h2>" not in write_report(result, tmp_path / "s.html", seconds_per_point=0).read_text()


def test_tail_weights_leave_ignored_labels_out() -> None:
    rows = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    asked = TailWeights(margin=1.0)
    weights = tail_weights(nn.Identity(), [(rows, torch.tensor([0, -100, 1, -100]))], asked)
    assert weights[0] == weights[2] > weights[1] == weights[3]
    dense = rows.reshape(2, 2, 2)[:, [0, 1, 1]].transpose(1, 2)  # (examples, classes, places)
    known = tail_weights(nn.Identity(), [(dense, torch.tensor([[0, -100, -100], [-100, 1, -100]]))], asked)
    assert known[0] == known[1]
    square = [(dense[..., :2], torch.tensor([[0, -100], [-100, 1]]))]
    with pytest.raises(InvalidModel, match="class_axis="):
        tail_weights(nn.Identity(), square, asked)
    known = tail_weights(nn.Identity(), square, asked, class_axis=1)
    assert known[0] == known[1]
