"""The benchmark on true loss: what it counts is what the network was asked, and its figures are of its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.studies import true_loss
from benchmarks.studies.true_loss_figures import ORDER, draw, table_text
from benchmarks.study import Options


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> true_loss.Cell:
    cache = tmp_path_factory.mktemp("tables")
    options = Options(network="digits", examples=8, pool=48, cache=cache, time_limit=0.5)
    return true_loss.Cell(options, seed=0, ratio=10.0)


def forwarded(cell: true_loss.Cell, search: Any) -> tuple[true_loss.Found, int]:
    """What a search found, and how many examples the network was really given."""
    seen = []

    def count(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append(len(output))

    hook = cell.network.model.register_forward_hook(count)
    try:
        return search(), sum(seen)
    finally:
        hook.remove()


def test_searches_spend_what_they_say_and_no_more_than_the_sweep(cell: true_loss.Cell) -> None:
    small = {"generations": None, "offspring": 8, "survivors": (2, 1), "samples": (4, 16)}
    assert cell.sweep == (cell.problem.num_choices + 1) * 8
    found, count = forwarded(cell, lambda: cell.evopress("evopress", cell.sweep, **small))
    assert count == found.evaluations <= cell.sweep
    assert len(found.history) > 2 and found.plan.ratio >= 10
    halfway = cell.at(found, cell.sweep // 2, "half")
    assert halfway.history[-1][0] <= cell.sweep // 2 < found.history[-1][0]
    found, count = forwarded(cell, lambda: cell.spdy(cell.sweep))
    # The data-free errors look at a handful of examples to see how the network is built; no loss is asked.
    assert 0 <= count - found.evaluations <= 16 and found.evaluations <= cell.sweep


def test_methods_on_the_table_are_charged_the_table(cell: true_loss.Cell) -> None:
    plans = {found.method: found for found in cell.table_plans({"full", "additive", "uniform", "full, shrinkage=1"})}
    assert set(plans) == {"full", "additive", "uniform", "full, shrinkage=1"}
    assert {found.evaluations for found in plans.values()} == {cell.sweep}
    assert all(found.plan.ratio >= 10 for found in plans.values())


def test_table_and_pictures_are_made_of_the_records(tmp_path: Path) -> None:
    base = {"network": "net", "seed": 0, "ratio": 8.0, "accuracy": 50.0, "evaluations": 900, "seconds": 2.0}
    records = [base | {"method": method, "loss": 1.0 + n} for n, method in enumerate(ORDER)]
    records += [record | {"seed": 1, "loss": record["loss"] + 0.5} for record in records[:2]]
    for record in records:
        if record["method"] in ("spdy", "evopress at E2", "evopress, cross-entropy"):
            record["curve"] = [(10, 2.0, 3.0), (900, 1.0, 1.5)]
    text = table_text(records)
    assert text.count("\n") == 2 + len(ORDER)
    assert "| 8x | uniform | 2 | 1.250 | 1.000 to 1.500 | 50.00 | 1 | 2 |" in text
    (path,) = draw(records, tmp_path)
    assert path.name == "true_loss_net_8x.png" and path.stat().st_size > 10_000
