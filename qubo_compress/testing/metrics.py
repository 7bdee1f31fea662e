"""Conformance checks for metrics: run on all registered ones, and meant for users' own.

Example:
    >>> from qubo_compress.testing import check_metric
    >>> check_metric("magnitude")
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_compress.menu.menu import Menu
from qubo_compress.sensitivity.measure import measure
from qubo_compress.sensitivity.metric import Metric
from qubo_compress.sensitivity.table import SensitivityTable

STEPS = 60


def check_metric(metric: str | Metric, seed: int = 0) -> None:
    """Measure a small trained network with a metric and check the table.

    Args:
        metric: a registered name or an object.
        seed: of the network, its data and the metric.

    Raises:
        AssertionError: naming what was wrong.
    """
    model, batches = trained_network(seed)
    before = snapshot(model)
    table = _measured(model, batches, metric, seed)
    assert same_snapshot(before, snapshot(model)), "the model is not as it was found"
    _check_table(table)
    assert same_table(table, _measured(model, batches, metric, seed)), "the same seed gives another table"
    with tempfile.TemporaryDirectory() as folder:
        _measured(model, batches, metric, seed, folder)
        units = sorted(Path(folder).glob("*.npz"))
        for unit in units[::2]:
            unit.unlink()
        resumed = _measured(model, batches, metric, seed, folder)
        assert same_table(table, resumed), "a resumed table is not the same bit for bit"
        assert resumed.provenance.resumed == len(units) - len(units[::2]), "finished units were not read back"
    additive = measure(model, batches, _menu(), metric, progress=False, seed=seed, interactions=False)
    assert additive.factor is None, "interactions=False gave a factor"


def trained_network(seed: int = 0) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A perceptron with normalisation, trained on three clusters, and its data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        targets = torch.arange(60) % 3
        inputs = torch.randn(60, 6) + 2.0 * functional.one_hot(targets, 6)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval(), [(inputs[:40], targets[:40]), (inputs[40:], targets[40:])]


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a model that measuring must not change."""
    found: list[Any] = []
    for name, module in model.named_modules(remove_duplicate=False):
        found.append((name, id(module), module.training, sorted(module.__dict__)))
        for key, value in sorted(module.__dict__.items()):
            if key.startswith("_") and isinstance(value, dict) and "hook" in key:
                found.append((key, [id(hook) for hook in value.values()]))
            elif not isinstance(value, dict):
                found.append((key, id(value) if callable(value) else repr(value)))
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    flags = (type(tensor).__name__, tensor.requires_grad, id(tensor.grad))
                    found.append((key, id(tensor), *flags, tensor.detach().clone()))
    return found


def same_snapshot(first: list[Any], second: list[Any]) -> bool:
    """Whether two snapshots agree, tensors bit for bit."""
    if len(first) != len(second):
        return False
    for one, other in zip(first, second, strict=True):
        if len(one) != len(other):
            return False
        for a, b in zip(one, other, strict=True):
            if not (torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b):
                return False
    return True


def same_table(first: SensitivityTable, second: SensitivityTable) -> bool:
    """Whether two tables hold the same numbers bit for bit."""
    arrays: list[tuple[Any, Any]] = [(first.linear, second.linear)]
    arrays += [(first.costs[name], second.costs[name]) for name in first.costs]
    for one, other in ((first.factor, second.factor), (first.divergence, second.divergence)):
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None:
            arrays.append((one, other))
    if first.pairs is not None and second.pairs is not None:
        arrays.append((first.pairs.toarray(), second.pairs.toarray()))
    same = all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in arrays)
    return same and first.choices == second.choices and first.constant == second.constant


def _menu() -> Menu:
    return Menu(bits=(2, 4, 8), sparsity=(0.0, 0.5))


def _measured(
    model: nn.Module, batches: Any, metric: str | Metric, seed: int, cache: str | None = None
) -> SensitivityTable:
    return measure(model, batches, _menu(), metric, progress=False, seed=seed, cache=cache)


def _check_table(table: SensitivityTable) -> None:
    count = int(table.offsets[-1])
    assert table.linear.shape == (count,) and table.linear.dtype == np.float64, f"linear is {table.linear.shape}"
    assert bool(np.isfinite(table.linear).all()), "linear terms are not finite"
    keeps = table.offsets[:-1]
    assert all(names[0] == "keep" for names in table.choices), "keep is not the first choice of every group"
    assert not table.linear[keeps].any(), f"keep has linear terms {table.linear[keeps]}, not zero"
    if table.factor is not None:
        assert table.factor.shape[0] == count and table.factor.dtype == np.float32, f"factor is {table.factor.shape}"
        assert bool(np.isfinite(table.factor).all()), "the factor is not finite"
        assert not table.factor[keeps].any(), "keep interacts with other choices"
    if table.pairs is not None:
        dense = table.pairs.toarray()
        assert np.array_equal(dense, dense.T), "pairs are not symmetric"
        assert not dense[keeps].any(), "keep interacts with other choices"
        for start, stop in zip(table.offsets[:-1], table.offsets[1:], strict=True):
            assert not dense[start:stop, start:stop].any(), "choices of one group interact"
