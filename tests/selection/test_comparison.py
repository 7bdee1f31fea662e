"""Paired comparisons of two networks, against the same sums done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from qubo_compress.calibration.evaluation import score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.selection.comparison import HeldOut, estimate


def two_networks(classes: int = 3) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first, second = nn.Linear(4, classes), nn.Linear(4, classes)
    return first.eval(), second.eval()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_even_weights_give_the_usual_standard_error(values: list[float]) -> None:
    series = torch.tensor(values, dtype=torch.float64)
    found = estimate(series, torch.full_like(series, 1 / len(values)))
    assert found.mean == pytest.approx(float(series.mean()), abs=1e-9)
    assert found.standard_error == pytest.approx(float(series.std()) / math.sqrt(len(values)), abs=1e-9)


def test_an_example_twice_is_an_example_of_double_weight() -> None:
    values, weights = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    spread = float((weights**2 * (values - 2.75) ** 2).sum())
    found = estimate(values, weights)
    effective = 1 / float((weights**2).sum())
    assert found.mean == 2.75
    assert found.standard_error == pytest.approx(math.sqrt(spread * effective / (effective - 1)))


def test_one_example_says_nothing_about_others() -> None:
    assert estimate(torch.ones(1).double(), torch.ones(1).double()).standard_error == math.inf
    assert estimate(torch.ones(2).double(), torch.tensor([1.0, 0.0]).double()).standard_error == math.inf


@pytest.mark.parametrize("columns", [1, 3])
def test_answers_of_yes_and_no_are_counted_as_the_score_counts_them(columns: int) -> None:
    first, second = two_networks(columns)
    inputs, targets = torch.randn(60, 4), (torch.rand(60, columns) > 0.5).float()
    examples = read_examples([(inputs, targets)], batch_size=25)
    loss = "binary-cross-entropy"
    held_out = HeldOut.of(first, examples, loss)
    found = held_out.compare(second)
    before, after = (score_examples(net, examples, loss).accuracy for net in (first, second))
    right, still = ((net(inputs) > 0) == (targets > 0.5) for net in (first, second))
    assert (found.lost, found.gained) == (int((right & ~still).sum()), int((still & ~right).sum()))
    assert found.rows == 60 * columns and found.lost > 0
    assert found.accuracy.mean == pytest.approx(after - before)
    shares = HeldOut.of(first, read_examples([(inputs, targets * 0.5)]), loss).compare(second)
    assert (shares.rows, shares.lost) == (0, 0) and math.isnan(shares.accuracy.mean)


@pytest.mark.parametrize("loss", ["cross-entropy", "kl"])
def test_it_agrees_with_the_scores_and_counts_pairs(loss: str) -> None:
    first, second = two_networks()
    inputs, labels = torch.randn(90, 4), torch.arange(90) % 3
    weights = torch.rand(90)
    examples = read_examples([(inputs, labels, weights)], batch_size=40)
    held_out = HeldOut.of(first, examples, loss)
    found = held_out.compare(second)
    before = score_examples(first, examples, loss, held_out.reference)
    after = score_examples(second, examples, loss, held_out.reference)
    assert found.loss == pytest.approx(after.loss, rel=1e-6)
    assert found.change.mean == pytest.approx(after.loss - before.loss, rel=1e-6)
    assert (found.gained - found.lost) / 90 == pytest.approx(after.accuracy - before.accuracy)
    assert found.accuracy.mean == pytest.approx(after.accuracy - before.accuracy)
    right = [network(inputs).argmax(1) == labels for network in (first, second)]
    assert found.lost == int((right[0] & ~right[1]).sum()) > 0
    share = weights.double() / weights.double().sum()
    apart = functional.kl_div(second(inputs).log_softmax(1), first(inputs).softmax(1), reduction="none").sum(1)
    assert found.divergence.mean == pytest.approx(float((apart.detach().double() * share).sum()), rel=1e-5)
    assert found.measure == found.divergence.mean
    assert held_out.compare(first).measure == pytest.approx(0.0, abs=1e-9)


def test_the_divergence_is_what_labels_of_the_original_would_show() -> None:
    """Expected cross-entropy over labels drawn by the original rises by the divergence, with more noise."""
    first, second = two_networks()
    inputs = torch.randn(4000, 4)
    labels = torch.multinomial(first(inputs).softmax(1), 1, generator=torch.Generator().manual_seed(0)).squeeze(1)
    found = HeldOut.of(first, read_examples([(inputs, labels)], 10_000), "cross-entropy").compare(second)
    assert abs(found.change.mean - found.divergence.mean) < 4 * found.change.standard_error
    assert found.divergence.standard_error < found.change.standard_error


@pytest.mark.parametrize("loss", ["squared-error", lambda rows, goal: (rows - goal).square().mean(1)])
def test_other_losses_are_measured_by_themselves(loss: Any) -> None:
    first, second = two_networks()
    examples = read_examples([(torch.randn(20, 4), torch.randn(20, 3))])
    found = HeldOut.of(first, examples, loss).compare(second)
    assert not found.by_divergence and found.rows == 0
    assert found.measure == found.loss
    assert found.held_against(0.0) == found.change and found.held_against(1.0) == found.divergence
    assert math.isnan(found.accuracy.mean)


def test_rows_without_a_label_count_nowhere() -> None:
    first, second = nn.Conv1d(2, 3, 1), nn.Conv1d(2, 3, 1)
    inputs, labels = torch.randn(6, 2, 5), torch.randint(3, (6, 5))
    labels[:, 3:] = -100
    found = HeldOut.of(first, read_examples([(inputs, labels)]), "cross-entropy").compare(second)
    assert found.rows == 18 and found.examples == 6
    again = inputs.clone()
    again[:, :, 3:] = 9.0
    assert HeldOut.of(first, read_examples([(again, labels)]), "cross-entropy").compare(second) == found


def test_outputs_that_are_not_numbers_lose() -> None:
    first, second = two_networks()
    with torch.no_grad():
        second.bias.fill_(math.nan)
    found = HeldOut.of(first, read_examples([(torch.randn(8, 4), torch.zeros(8).long())]), "cross-entropy").compare(
        second
    )
    assert found.measure == math.inf


def test_one_logit_and_a_binary_loss_go_by_the_bernoulli_divergence() -> None:
    first, second = nn.Linear(4, 1), nn.Linear(4, 1)
    inputs = torch.randn(50, 4)
    examples = read_examples([(inputs, torch.arange(50) % 2)])
    found = HeldOut.of(first, examples, "binary-cross-entropy").compare(second)
    share, other = first(inputs).sigmoid(), second(inputs).sigmoid()
    apart = share * (share / other).log() + (1 - share) * ((1 - share) / (1 - other)).log()
    assert found.measure == pytest.approx(float(apart.detach().mean()), rel=1e-4)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error"])
def test_a_lead_is_the_difference_of_the_measures(loss: str) -> None:
    torch.manual_seed(1)
    original, first, second = (nn.Linear(4, 3).eval() for _ in range(3))
    targets = torch.arange(50) % 3 if loss == "cross-entropy" else torch.randn(50, 3)
    held_out = HeldOut.of(original, read_examples([(torch.randn(50, 4), targets)], batch_size=20), loss)
    lead, back = held_out.lead(first, second), held_out.lead(second, first)
    measures = [held_out.compare(network).measure for network in (first, second)]
    assert lead.mean == pytest.approx(measures[0] - measures[1]) == pytest.approx(-back.mean)
    assert lead.standard_error == pytest.approx(back.standard_error) and lead.standard_error > 0
    assert held_out.lead(first, first).mean == 0.0
