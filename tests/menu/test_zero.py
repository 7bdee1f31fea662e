"""``zero``: pruned filters cost nothing, are stored, loaded and recovered as zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.sensitivity import costs


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(30, 4)).eval()


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 2, 8, generator=generator), torch.randint(4, (16,), generator=generator))]


def measured(net: nn.Module, batches: object) -> qc.SensitivityTable:
    menu = qc.Menu(["zero", "quantize(bits=4)"])
    return qc.measure(net, batches, menu=menu, metric="products", groups="filter", progress=False)


def test_pruned_filters_take_no_bytes_and_stay_zero(net: nn.Module, batches: list, tmp_path: Path) -> None:
    table = measured(net, batches)
    choices = {name: "quantize(bits=4)" for name in table.group_names if "weight[" in name} | {"0.weight[3]": "zero"}
    kept = {**choices, "0.weight[3]": "quantize(bits=4)"}
    plan = table.plan(choices)
    assert table.plan(kept).bytes - plan.bytes == 2 + 3  # a scale, and six codes of four bits
    small = qc.recover(plan.apply(net), batches, net, epochs=2, progress=False)
    assert not small[0].weight[3].any() and small[0].weight[2].any()
    assert qc.save(small, tmp_path / "net") == plan.bytes == (tmp_path / "net").stat().st_size
    loaded = qc.load(tmp_path / "net", net)
    values = zip(small.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


def test_zero_filters_cost_together_what_they_cost_alone(
    net: nn.Module, batches: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = measured(net, batches)
    monkeypatch.setattr(costs, "prices_rows", lambda operator: False)
    alone = measured(net, batches)
    assert all(np.array_equal(together.costs[name], alone.costs[name]) for name in together.costs)
    assert together.linear == pytest.approx(alone.linear, rel=1e-5)  # sums of float32 in another order
