"""Tables and plans: pins, predictions, and problems that mean what the table says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import qubo_compress as qc
from qubo_compress import errors

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))


@pytest.fixture
def table(sample: Callable[[str], Any]) -> qc.SensitivityTable:
    found = sample("perceptron")
    return qc.measure(found.model, found.batches, menu=MENU, progress=False)


def test_the_problem_is_the_table(table: qc.SensitivityTable) -> None:
    problem = table.problem(qc.Budget(bytes=5000, macs=10**6, cells=10**6))
    assert problem.budget_names == ("bytes", "macs", "cells")
    rng = np.random.default_rng(0)
    for _ in range(20):
        assignment = np.array([rng.integers(len(names)) for names in table.choices])
        plan = table.plan(dict(problem.names_of(assignment)))
        assert problem.energy(assignment) == pytest.approx(plan.predicted_loss, abs=1e-6)
        assert problem.totals(assignment)[0] == plan.bytes


def test_without_interactions_only_linear_terms_are_left(table: qc.SensitivityTable) -> None:
    assert table.problem(qc.Budget(ratio=2), interactions=False).structure == "separable"
    assert table.problem(qc.Budget(ratio=2)).structure == "factor"


def test_pins_bind(table: qc.SensitivityTable) -> None:
    free = table.problem(qc.Budget(bytes=10**6))
    table.pin("0.weight", "quantize(bits=2)").leave_alone("0.bias").minimum_bits("3.*weight", 4)
    problem = table.problem(qc.Budget(bytes=10**6))
    assert problem.num_choices < free.num_choices
    names = dict(
        zip(problem.group_names, np.split(np.array(problem.choice_names), problem.group_offsets[1:-1]), strict=True)
    )
    assert list(names["0.weight"]) == ["quantize(bits=2)"]
    assert list(names["0.bias"]) == ["keep"]
    assert "quantize(bits=4)" in names["3.weight"] and "quantize(bits=2)" not in names["3.weight"]
    solution = qc.solve(problem, "greedy", time_limit=1.0)
    assert table.plan(solution).choices["0.weight"] == "quantize(bits=2)"
    restored = table.unpin("0.weight").unpin("0.bias").unpin("3.weight").problem(qc.Budget(bytes=10**6))
    assert restored.num_choices == free.num_choices


def test_names_that_do_not_exist_are_refused_with_the_nearest(table: qc.SensitivityTable) -> None:
    for wrong, said in (
        (lambda: table.pin("0.wieght", "keep"), r"did you mean '0\.weight'"),
        (lambda: table.pin("0.weight", "quantize(bit=2)"), "did you mean 'quantize"),
        (lambda: table.plan({"0.weigth": "keep"}), r"did you mean '0\.weight'"),
        (lambda: table.plan({"0.weight": "kep"}), "did you mean 'keep'"),
        (lambda: table.minimum_bits("nothing", 4), "group 'nothing'"),
        (lambda: table.unpin("nothing"), "group 'nothing'"),
    ):
        with pytest.raises(errors.UnknownName, match=said):
            wrong()
    table.pin("0.weight", "quantize(bits=2)")
    with pytest.raises(errors.InvalidMenu, match="no choice would be left"):
        table.minimum_bits("0.weight", 4)


def test_a_pin_replaces_a_pin_and_opens_nothing_that_is_forbidden(table: qc.SensitivityTable) -> None:
    table.pin("0.weight", "quantize(bits=2)").pin("0.weight", "quantize(bits=4)").leave_alone("0.weight")
    table.unpin("0.weight").minimum_bits("0.weight", 4)
    before = table.allowed.copy()
    with pytest.raises(
        errors.InvalidMenu, match=r"forbidden for '0\.weight' by minimum_bits, which leaves keep, .*unpin"
    ):
        table.pin("0.weight", "quantize(bits=2)")
    assert np.array_equal(table.allowed, before)
    table.pin("0.weight", "quantize(bits=4)").unpin("0.weight").pin("0.weight", "quantize(bits=2)")


def test_a_budget_out_of_reach_names_the_smallest_size(table: qc.SensitivityTable) -> None:
    with pytest.raises(errors.InfeasibleBudget) as caught:
        qc.solve(table.problem(qc.Budget(bytes=10)), "greedy")
    found = caught.value.smallest
    cheapest = {
        group: names[int(np.argmin(table.costs["bytes"][start : start + len(names)]))]
        for group, names, start in zip(table.group_names, table.choices, table.offsets[:-1], strict=True)
    }
    assert found == table.plan(cheapest).bytes and str(found) in str(caught.value)
    assert table.plan(qc.solve(table.problem(qc.Budget(bytes=found)), "greedy", time_limit=1.0)).bytes == found


def test_ratio_and_bits_per_weight(table: qc.SensitivityTable) -> None:
    plan = table.plan({})
    assert plan.ratio == pytest.approx(plan.original_bytes / plan.bytes)
    assert plan.bits_per_weight == pytest.approx(8 * plan.bytes / plan.parameters)


def test_a_size_out_of_reach_says_its_ratio_and_what_pins_add(table: qc.SensitivityTable) -> None:
    free = table.problem(qc.Budget(bytes=1)).smallest_totals()[0]
    table.minimum_bits(".*weight", 8).leave_alone("3.weight")
    with pytest.raises(errors.InfeasibleBudget, match=r"enlarge [03]\.weight \([\d,]+ bytes instead of") as caught:
        qc.solve(table.problem(qc.Budget(ratio=1000)), "greedy")
    smallest = caught.value.smallest
    assert smallest is not None and smallest > free
    said = str(caught.value)
    assert f"{smallest:,} bytes are a ratio of {table.layout.original_bytes / smallest:.2f}" in said
    assert f"Without pins and minimum bits, {free:,} bytes are reachable" in said
