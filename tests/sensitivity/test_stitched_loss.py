"""The loss of a stitched network is the loss of the applied plan, bit for bit, and the network stays as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.calibration.evaluation import ALL_EXAMPLES, outputs_of, score_examples, settle
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.passes import SETTLING_EXAMPLES

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))


def measured(found: Any, **options: Any) -> qc.SensitivityTable:
    return qc.measure(found.model, found.batches, menu=MENU, metric="magnitude", progress=False, **options)


def random_assignments(table: qc.SensitivityTable, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.array([rng.integers(len(names)) for names in table.choices]) for _ in range(count)]


def applied_loss(found: Any, table: qc.SensitivityTable, assignment: np.ndarray, loss: str = "cross-entropy") -> float:
    choices = {
        group: names[k] for group, names, k in zip(table.group_names, table.choices, assignment.tolist(), strict=True)
    }
    examples = settle(found.model, read_examples(found.batches, ALL_EXAMPLES), "kl")[0]
    return score_examples(
        table.plan(choices).apply(found.model), examples, loss, outputs_of(found.model, examples)
    ).loss


def same_state(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_that_of_the_applied_plan(any_sample: Any) -> None:
    table = measured(any_sample)
    before = copy.deepcopy(any_sample.model.state_dict())
    identities = {name: id(value) for name, value in any_sample.model.named_parameters()}
    loss = table.stitched_loss(any_sample.model, any_sample.batches)
    for assignment in random_assignments(table, 3):
        assert loss(assignment) == applied_loss(any_sample, table, assignment)
    assert same_state(before, any_sample.model.state_dict())
    assert identities == {name: id(value) for name, value in any_sample.model.named_parameters()}


@pytest.mark.parametrize("name", ["perceptron", "grouped-view-inplace", "positions", "tied"])
def test_filters_share_a_tensor(sample: Callable[[str], Any], name: str) -> None:
    found = sample(name)
    table = measured(found, groups="filter")
    loss = qc.StitchedLoss(found.model, table, found.batches, loss="kl")
    drawn = random_assignments(table, 4)
    values = [loss(assignment) for assignment in drawn]
    assert values == [applied_loss(found, table, assignment, "kl") for assignment in drawn]
    # What was stitched in before leaves no trace.
    assert [loss(assignment) for assignment in reversed(drawn)] == values[::-1]


def test_channels_last_weights_and_images(digits: Any) -> None:
    model = copy.deepcopy(digits.model).to(memory_format=torch.channels_last)
    batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in digits.calibration]
    table = qc.measure(model, batches, menu=MENU, metric="magnitude", progress=False)
    loss = table.stitched_loss(model, batches)
    found = type("Found", (), {"model": model, "batches": batches})
    for assignment in random_assignments(table, 2):
        assert loss(assignment) == applied_loss(found, table, assignment)


def test_without_memory_the_choices_are_made_again(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    for groups in ("layer", "filter"):
        table = measured(found, groups=groups)
        rich = table.stitched_loss(found.model, found.batches)
        poor = table.stitched_loss(found.model, found.batches, memory_limit=200)
        for assignment in random_assignments(table, 5):
            assert rich(assignment) == poor(assignment)


SHOWN = SETTLING_EXAMPLES + 24  # two batches are joined, and seen to give the same then


def test_evaluations_are_counted_in_examples(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    table = measured(found)
    assignment = random_assignments(table, 1)[0]
    loss = table.stitched_loss(found.model, found.batches)
    assert (loss.examples, loss.evaluations) == (24, SHOWN)
    loss(assignment, 5)
    loss(assignment)
    loss(assignment, 100)
    assert loss.evaluations == SHOWN + 5 + 24 + 24
    assert table.stitched_loss(found.model, found.batches, "kl").evaluations == SHOWN + 24
    seen = []
    hook = loss.model.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    before = loss.evaluations
    loss(assignment, 7)
    hook.remove()
    assert sum(seen) == loss.evaluations - before == 7


@pytest.mark.parametrize("kind", ["cross-entropy", "kl"])
@pytest.mark.parametrize("name", ["perceptron", "positions"])
def test_samples_are_of_the_calibration_examples(sample: Callable[[str], Any], kind: str, name: str) -> None:
    found = sample(name)
    table = measured(found)
    loss = table.stitched_loss(found.model, found.batches, kind)
    assignment = random_assignments(table, 1)[0]
    joined = [torch.cat(tensors) for tensors in zip(*found.batches, strict=True)]
    single = [
        table.stitched_loss(found.model, [tuple(t[n : n + 1] for t in joined)], kind)(assignment) for n in range(24)
    ]
    assert loss(assignment, 9) == pytest.approx(np.mean(single[:9]), rel=1e-5)
    loss.redraw(3)
    index = np.random.default_rng(3).permutation(24)[:9]
    assert loss(assignment, 9) == pytest.approx(np.mean([single[n] for n in index]), rel=1e-5)
    assert loss(assignment) == pytest.approx(np.mean(single), rel=1e-5)


def test_pins_shift_the_indices_as_they_do_in_the_problem(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    table = measured(found).pin("0.weight", "quantize(bits=4)").minimum_bits("3.weight", 4)
    problem = table.problem(qc.Budget(bytes=10**6))
    loss = table.stitched_loss(found.model, found.batches)
    assignment = problem.group_sizes - 1
    plan = table.plan(problem.names_of(assignment))
    examples = settle(found.model, read_examples(found.batches, ALL_EXAMPLES), "kl")[0]
    assert loss(assignment) == score_examples(plan.apply(found.model), examples).loss
    with pytest.raises(errors.InvalidAssignment, match=r"0\.weight.*1 open choices"):
        loss(np.ones(problem.num_groups, dtype=np.int64))


def test_wrong_input_is_refused_and_leaves_the_model_alone(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    table = measured(found)
    before = copy.deepcopy(found.model.state_dict())
    loss = table.stitched_loss(found.model, found.batches)
    with pytest.raises(errors.InvalidAssignment, match="integer type"):
        loss(np.zeros(len(table.choices)))
    with pytest.raises(errors.InvalidBatches, match="at least 1"):
        loss(np.zeros(len(table.choices), dtype=np.int64), 0)

    def explode(outputs: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
        raise RuntimeError("no")

    broken = table.stitched_loss(found.model.train(), found.batches, explode)
    with pytest.raises(RuntimeError, match="no"):
        broken(random_assignments(table, 1)[0])
    assert found.model.training
    assert same_state(before, found.model.state_dict())
    with pytest.raises(errors.WrongModel, match="other weights"):
        table.stitched_loss(nn.Linear(5, 3), found.batches)
    with pytest.raises(errors.InvalidBatches, match="targets"):
        table.stitched_loss(found.model, [inputs for inputs, _ in found.batches], loss="cross-entropy")


def test_a_loss_that_is_not_finite_is_infinite(sample: Callable[[str], Any]) -> None:
    found = sample("perceptron")
    table = measured(found)
    loss = table.stitched_loss(found.model, found.batches, lambda outputs, targets: outputs[:, 0] * torch.nan)
    assert loss(np.zeros(len(table.choices), dtype=np.int64)) == math.inf
