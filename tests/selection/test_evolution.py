"""The search on the network: what it measures is what chooses plans, and its plan is never over the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import qubo_compress as qc
from qubo_compress.calibration.evaluation import settle
from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import InvalidOption
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.selection.evolution import evolve
from qubo_compress.selection.held_out_loss import HeldOutLoss, joined

MENU = qc.Menu(bits=(2, 4, 8), sparsity=(0.0, 0.5))


def table_and_examples(found: Any, metric: str = "magnitude") -> tuple[qc.SensitivityTable, HeldOut]:
    table = qc.measure(found.model, found.batches, menu=MENU, metric=metric, progress=False)
    return table, HeldOut.of(found.model, *settle(found.model, read_examples(found.batches)))


@pytest.mark.parametrize("name", ["perceptron", "attention", "recurrent", "positions"])
def test_it_is_the_measure_that_chooses_plans(sample: Any, name: str) -> None:
    found = sample(name)
    table, held_out = table_and_examples(found)
    loss = HeldOutLoss(held_out, table)
    rng = np.random.default_rng(0)
    for _ in range(2):
        drawn = np.array([rng.integers(len(names)) for names in table.choices])
        pairs = zip(table.group_names, table.choices, drawn.tolist(), strict=True)
        plan = table.plan({group: names[k] for group, names, k in pairs})
        expected = held_out.compare(plan.apply(found.model)).measure
        assert loss(drawn) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        loss.redraw(3)
        assert loss(drawn) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_parts_are_those_of_the_whole(digits: Any) -> None:
    table = qc.measure(digits.model, digits.calibration, menu=MENU, metric="magnitude", progress=False)
    stitched = table.stitched_loss(digits.model, digits.calibration, "kl", max_examples=64)
    held_out = HeldOut.of(digits.model, *settle(digits.model, read_examples(digits.calibration, 64)))
    assignment = np.array([len(names) - 1 for names in table.choices])
    for loss in (stitched, HeldOutLoss(held_out, table)):
        loss.redraw(1)
        before, whole = loss.evaluations, loss.values(assignment, 0, 64)
        parts = [loss.values(assignment, start, stop) for start, stop in ((0, 5), (5, 40), (40, 64))]
        assert np.allclose(np.concatenate(parts), whole, rtol=1e-3, atol=1e-7)
        assert loss.evaluations - before == 128
        assert float((whole * loss.weights).sum()) == pytest.approx(loss(assignment), rel=1e-5)


def test_sets_are_joined_by_their_numbers_of_examples() -> None:
    first, second = read_examples([torch.ones(30, 2)]), read_examples([torch.zeros(10, 2)])
    both = joined(first, second)
    assert both.count == 40 and np.allclose([float(part.weights.sum()) for part in both.slices], [0.75, 0.25])


def test_too_few_evaluations_are_refused_with_both_numbers(digits: Any) -> None:
    table, held_out = table_and_examples(digits_like(digits))
    with pytest.raises(InvalidOption, match=f"evaluations=10 do not suffice .* {held_out.examples.count:,} examples"):
        evolve(table, qc.Budget(ratio=8), held_out, 10)
    for wrong in (-1, 2.5, "many", True):
        with pytest.raises(InvalidOption, match="evaluations"):
            evolve(table, qc.Budget(ratio=8), held_out, wrong)  # type: ignore[arg-type]


def digits_like(digits: Any) -> Any:
    return type("Found", (), {"model": digits.model, "batches": digits.calibration})


def test_the_plan_fits_and_repeats(digits: Any) -> None:
    table, held_out = table_and_examples(digits_like(digits))
    table.pin(table.group_names[0], "quantize(bits=8)")
    budget = qc.Budget(ratio=12)
    first, second = (evolve(table, budget, held_out, 1500, seed=4) for _ in range(2))
    assert first.plan == second.plan and first.trace == second.trace
    assert first.plan.bytes * 12 <= first.plan.original_bytes and first.evaluations <= 1500
    assert first.plan.choices[table.group_names[0]] == "quantize(bits=8)"
    # Displacements alone are a poor table: the search improves on its optimum by much.
    start = table.plan(qc.solve(table.problem(budget), "annealer", time_limit=0.5))
    before = held_out.compare(start.apply(digits.model)).measure
    assert held_out.compare(first.plan.apply(digits.model)).measure < before
    again = evolve(table, budget, held_out, 600, starts=[first.plan])
    assert held_out.compare(again.plan.apply(digits.model)).measure < before
