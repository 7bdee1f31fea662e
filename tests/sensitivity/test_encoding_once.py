"""No choice is searched for twice: in a measurement, for a table from the cache, or for a plan that is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.menu import prune, quantize
from qubo_compress.menu.storage import many as encoding
from qubo_compress.sensitivity import choices
from qubo_compress.sensitivity import costs as prices
from qubo_compress.sensitivity.metrics.auto import AutoMetric
from qubo_compress.sensitivity.metrics.products import displacements

MENU = qc.Menu(bits=(2, 4, None), sparsity=(0.0, 0.5))


class Calls:
    """Counts searches for scales, and stored tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fitted = self.stored = 0
        fit, stored, pruned = quantize.fit_scale, quantize.Quantize.stored, prune.Prune.stored

        def counted_fit(values: Tensor, *rest: Any) -> Tensor:
            self.fitted += values.numel() > 20  # biases are searched for again: that takes no time
            return fit(values, *rest)

        def counted(*given: Any) -> Any:
            self.stored += 1
            return stored(*given)

        def counted_pruning(*given: Any) -> Any:
            self.stored += 1
            return pruned(*given)

        monkeypatch.setattr(quantize, "fit_scale", counted_fit)
        monkeypatch.setattr(encoding, "fit_scale", counted_fit)
        monkeypatch.setattr(quantize.Quantize, "stored", counted)
        monkeypatch.setattr(prune.Prune, "stored", counted_pruning)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4)
    ).eval()  # fmt: skip


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(12, 2, 6, 6, generator=generator), torch.randint(4, (12,), generator=generator))]


def measured(net: nn.Module, batches: Any, metric: str = "gauss-newton", **options: Any) -> qc.SensitivityTable:
    return qc.measure(net, batches, menu=MENU, metric=metric, progress=False, **options)


def same(one: qc.SensitivityTable, two: qc.SensitivityTable) -> bool:
    costs = all(np.array_equal(one.costs[name], two.costs[name]) for name in one.costs)
    return costs and np.array_equal(one.linear, two.linear) and one.choices == two.choices


def test_scales_are_searched_for_once(net: nn.Module, batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    table = measured(net, batches)
    weights = [group.name for group in table.layout.groups if group.kind == "weight"]
    assert calls.fitted == len(weights) * sum(name.startswith("quantize") for name in MENU.names)
    calls.fitted = 0
    plan = table.plan(dict.fromkeys(weights, "quantize(bits=4,sparsity=0.5)"))
    small = plan.apply(net)
    loss = table.stitched_loss(net, batches, loss="kl")
    assert np.isfinite(loss(table.assignment(plan.choices)))
    assert calls.fitted == 0
    bare = qc.Plan(**{**plan.__dict__, "fits": {}})
    assert bare == plan
    for one, two in zip(small.state_dict().values(), bare.apply(net).state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert calls.fitted == len(weights)


@pytest.mark.parametrize("kept_bytes", [None, 0])
def test_a_whole_compression_searches_for_scales_once(
    net: nn.Module, batches: Any, kept_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured by products, choices of first plans are run, and plans are applied, checked and repaired."""
    if kept_bytes is not None:  # nothing that was stored is remembered
        monkeypatch.setattr(displacements, "KEPT_BYTES", kept_bytes)
        monkeypatch.setattr(choices, "VALUE_MEMORY", 1e12)
    calls = Calls(monkeypatch)
    result = qc.compress(
        net, batches, qc.Budget(ratio=3), menu=MENU, metric=AutoMetric(small=0.0), solver="annealer", time_limit=0.3,
        progress=False,
    )  # fmt: skip
    assert len(result.taken.candidates) > 2
    weights = sum(group.kind == "weight" for group in result.table.layout.groups)
    assert calls.fitted == weights * sum(name.startswith("quantize") for name in MENU.names)


@pytest.mark.parametrize("metric", ["gauss-newton", "jacobian", "fisher", "pairwise"])
def test_a_table_from_the_cache_stores_nothing(
    net: nn.Module, batches: Any, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(net, batches, metric, cache=tmp_path)
    calls = Calls(monkeypatch)
    second = measured(net, batches, metric, cache=tmp_path)
    assert (calls.fitted, calls.stored) == (0, 0)
    assert same(first, second)
    # A folder of an earlier version has no prices: they are computed again, and kept.
    (tmp_path / f"{prices.UNIT}.npz").unlink()
    assert same(first, measured(net, batches, metric, cache=tmp_path))
    assert calls.fitted > 0 and (tmp_path / f"{prices.UNIT}.npz").exists()


def test_filters_cost_what_they_cost_one_by_one(net: nn.Module, batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    together = measured(net, batches, "magnitude", groups="filter")
    monkeypatch.setattr(prices, "prices_rows", lambda operator: False)
    alone = measured(net, batches, "magnitude", groups="filter")
    assert same(together, alone)
    assert np.array_equal(together.fits.data, alone.fits.data)
    assert np.array_equal(together.fits.ends, alone.fits.ends)


def test_a_narrower_table_keeps_what_was_found(net: nn.Module, batches: Any) -> None:
    table = measured(net, batches, "magnitude")
    chosen = {"0.weight": "quantize(bits=4)"}
    plan, narrow = table.plan(chosen), table.narrowed(["quantize(bits=4)"]).plan(chosen)
    assert plan.fits["0.weight"] == narrow.fits["0.weight"] and len(plan.fits["0.weight"]) == 2 * 6


def test_plans_are_saved_without_it(net: nn.Module, batches: Any, tmp_path: Path) -> None:
    plan = measured(net, batches, "magnitude").plan({"0.weight": "quantize(bits=4)"})
    plan.save(tmp_path / "plan.json")
    again = qc.Plan.load(tmp_path / "plan.json")
    assert "fits" not in (tmp_path / "plan.json").read_text() and again == plan and not again.fits


def test_slow_choices_are_kept_within_the_memory(net: nn.Module, batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    menu = qc.Menu(["svd(rank=2)", "quantize(bits=4)"])
    wide = qc.measure(net, batches, menu=menu, progress=False)
    monkeypatch.setattr(choices, "VALUE_MEMORY", 1e12)
    assert same(wide, qc.measure(net, batches, menu=menu, progress=False))
