"""Harmful flips of every choice as a budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import qubo_compress as qc
from qubo_compress.calibration.evaluation import outputs_of
from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import InfeasibleBudget, InvalidBudget
from qubo_compress.sensitivity.metrics.jacobian import Jacobian

MENU = qc.Menu(bits=(2, 3, 8), sparsity=(0.0,))


def real_flips(model: torch.nn.Module, small: torch.nn.Module, batches: Any) -> float:
    """Weighted share of examples that the first gets right and the second wrong, one by one."""
    examples = read_examples(batches)
    before, after = outputs_of(model, examples), outputs_of(small, examples)
    total = 0.0
    for part, first, second in zip(examples.slices, before, after, strict=True):
        for n in range(len(part)):
            label = int(part.targets[n])  # type: ignore[index]
            if int(first[n].argmax()) == label != int(second[n].argmax()):
                total += float(part.weights[n])
    return total


@pytest.fixture(scope="module")
def noisy(digits: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images near the decision boundary: on clean ones the network hardly errs, whatever is done to it."""
    generator = torch.Generator().manual_seed(0)
    return [(x + 0.8 * torch.randn(x.shape, generator=generator), y) for x, y in digits.calibration]


@pytest.fixture(scope="module")
def weighted(noisy: Any) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(x, y, torch.rand(len(y), generator=generator)) for x, y in noisy]


def test_costs_are_the_flips_of_each_choice_alone(digits: Any, weighted: Any) -> None:
    table = qc.measure(digits.model, weighted, menu=MENU, progress=False)
    costs = table.costs["harmful_flips"]
    assert costs.dtype == np.int64 and costs.max() > 0
    for group in ("conv1.weight", table.group_names[3], table.group_names[-2]):
        number = table.group_names.index(group)
        for k, name in enumerate(table.choices[number]):
            small = table.plan({group: name}).apply(digits.model)
            real = real_flips(digits.model, small, weighted)
            assert costs[int(table.offsets[number]) + k] == pytest.approx(1e6 * real, abs=1.5)
    assert costs[table.offsets[:-1]].max() == 0, "keep flips nothing"


@pytest.mark.parametrize("metric", ["pairwise", Jacobian(measured_linear=True)])
def test_every_metric_that_runs_all_choices_counts_the_same(sample: Any, metric: Any) -> None:
    found = sample("perceptron")
    menu = qc.Menu(bits=(2,), sparsity=(0.0,))
    costs = [
        qc.measure(found.model, found.batches, menu=menu, metric=m, progress=False).costs["harmful_flips"]
        for m in ("gauss-newton", metric)
    ]
    assert np.array_equal(*costs)


def test_a_plan_keeps_within_the_limit_and_a_tighter_one_costs_loss(digits: Any, noisy: Any) -> None:
    # As measured: what a choice costs and how many answers it flips must not be two counts of one thing.
    table = qc.measure(digits.model, noisy, menu=MENU, shrinkage=0.0, interactions=1.0, progress=False)
    free = table.plan(qc.solve(table.problem(qc.Budget(ratio=9)), time_limit=2))

    def counted(plan: qc.Plan) -> int:
        return int(table.costs["harmful_flips"][table.offsets[:-1] + table.assignment(plan.choices)].sum())

    limit = counted(free) / 1.5e6
    assert limit > 0
    tight = table.plan(qc.solve(table.problem(qc.Budget(ratio=9, harmful_flips=limit)), time_limit=2))
    assert counted(tight) <= 1e6 * limit < counted(free)
    assert tight.bytes <= table.layout.original_bytes / 9
    assert tight.predicted_loss >= free.predicted_loss - 1e-6
    with pytest.raises(InfeasibleBudget):
        qc.solve(table.problem(qc.Budget(ratio=13, harmful_flips=0.0)), "exact", time_limit=5)


def test_refined_tables_count_from_the_original(digits: Any, noisy: Any) -> None:
    """Around a plan, the fixed part and the costs of the plan's own choices are the plan's real flips."""
    result = qc.compress(
        digits.model, noisy, qc.Budget(ratio=11, harmful_flips=0.9), menu=MENU, rounds=1, recover=False,
        validation=noisy, time_limit=1.0, progress=False,
    )  # fmt: skip
    first, second = result.rounds[:2]
    table = second.table
    chosen = table.offsets[:-1] + table.assignment(first.plan.choices)
    total = table.fixed_costs["harmful_flips"] + int(table.costs["harmful_flips"][chosen].sum())
    real = real_flips(digits.model, first.plan.apply(digits.model), noisy)
    assert real > 0
    assert total == pytest.approx(1e6 * real, abs=5)
    assert (table.costs["harmful_flips"] >= 0).all()


def test_what_is_not_counted_is_refused_before_work_is_spent(sample: Any) -> None:
    found = sample("perceptron")
    budget = qc.Budget(ratio=2, harmful_flips=0.1)
    with pytest.raises(InvalidBudget, match="does not run every choice"):
        qc.compress(found.model, found.batches, budget, metric="magnitude", progress=False)
    with pytest.raises(InvalidBudget, match="no class labels"):
        qc.compress(found.model, [x for x, _ in found.batches], budget, loss="kl", progress=False)
    table = qc.measure(found.model, found.batches, metric="fisher", progress=False)
    with pytest.raises(InvalidBudget, match="harmful flips"):
        table.problem(budget)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(InvalidBudget, match="share"):
            qc.Budget(ratio=2, harmful_flips=wrong)
