"""Layers choose their bits and channels choose to stay, in one problem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.pipeline.decisions import ALL_CHANNELS, FEWER_CHANNELS, smallest_choices
from qubo_compress.sensitivity.coupled.layer_prices import UNIT
from qubo_compress.sensitivity.table import SensitivityTable
from tests.sensitivity.coupled.test_removal import NAMES, network

MENU = qc.Menu(bits=(3, 8), sparsity=(0.0, 0.5), vector_bits=(8,))
LIMITS = qc.Budget(ratio=0.5, macs=10**12)

Measured = tuple[nn.Module, list[tuple[Tensor, Tensor]], SensitivityTable]


@pytest.fixture(scope="module", params=NAMES)
def measured(request: pytest.FixtureRequest) -> Measured:
    net, data = network(request.param)
    return net, data, qc.measure(net, data, groups="channel", menu=MENU, progress=False)


def drawn(table: SensitivityTable, rng: np.random.Generator, share: float = 0.7) -> dict[str, str]:
    """A plan that keeps about this share of the channels."""
    removals = table.removals
    assert removals is not None
    plan = {
        name: str(rng.choice(names))
        for name, names in zip(table.group_names, table.choices, strict=True)
        if name in removals.layers
    }
    for name, names in zip(table.group_names, table.choices, strict=True):
        if name not in plan:
            plan[name] = "remove" if len(names) == 2 and rng.random() > share else "keep"
    return plan


def totals(table: SensitivityTable, plan: dict[str, str], around: dict[str, str] | None) -> np.ndarray:
    return table.problem(LIMITS, around=around).totals(table.assignment(plan)) / UNIT


def priced(table: SensitivityTable, plan: dict[str, str]) -> np.ndarray:
    removals = table.removals
    assert removals is not None and removals.prices is not None
    kept = removals.kept(table.group_names, plan)
    return np.array([removals.prices.total(name, plan, kept) for name in ("bytes", "macs")])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_prices_are_exact_where_only_bits_or_only_channels_change(measured: Measured, seed: int) -> None:
    table, rng = measured[2], np.random.default_rng(seed)
    around, other = drawn(table, rng), drawn(table, rng)
    layers = table.removals.layers
    bits = {name: (other if name in layers else around)[name] for name in around}
    channels = {name: (around if name in layers else other)[name] for name in around}
    # Every pair cost is rounded to a part of a byte.
    nearly = {"rtol": 1e-3, "atol": len(around) / UNIT}
    for plan in (around, bits, channels):
        np.testing.assert_allclose(totals(table, plan, around), priced(table, plan), **nearly)
    assert (totals(table, other, None) >= priced(table, other) * (1 - 1e-3) - len(around) / UNIT).all()


def test_files_are_not_larger_than_their_price(measured: Measured, tmp_path: Path) -> None:
    net, data, table = measured
    rng = np.random.default_rng(1)
    for number in range(2):
        asked = drawn(table, rng)
        plan = table.plan(asked)
        small = plan.apply(net)
        assert [p.ndim for p in small.parameters()] == [p.ndim for p in net.parameters()]
        path = tmp_path / f"{number}.safetensors"
        assert qc.save(small, path) == plan.bytes == path.stat().st_size
        assert plan.bytes <= priced(table, asked)[0]
        plan.save(tmp_path / "plan.json")
        again, twin = qc.load(path, net), qc.Plan.load(tmp_path / "plan.json").apply(net)
        with torch.no_grad():
            wanted = small(data[0][0])
            assert torch.equal(again(data[0][0]), wanted) and torch.equal(twin(data[0][0]), wanted)
    without = {name: choice for name, choice in asked.items() if name not in table.removals.layers}
    left = table.plan(without).apply(net)
    counted = qc.measure(left, data, menu=qc.Menu([]), progress=False, metric="products").costs["macs"].sum()
    assert priced(table, without)[1] == counted


def test_half_of_a_layer_adds_half_of_its_noise(measured: Measured) -> None:
    table = measured[2]
    rng = np.random.default_rng(2)
    plan = drawn(table, rng)
    problem = table.problem(LIMITS, around=plan)
    energy = problem.energy(table.assignment(plan))
    assert energy == pytest.approx(table.predict(plan), rel=1e-5, abs=1e-9)
    kept_whole = table.problem(LIMITS).energy(table.assignment(plan))
    assert energy <= kept_whole + 1e-9


def test_compress_mixes_bits_and_channels(tmp_path: Path) -> None:
    net, data = network("residual")
    macs = int(0.6 * qc.measure(net, data, menu=qc.Menu([]), progress=False).costs["macs"].sum())
    menu = qc.Menu(bits=(3, 8), sparsity=(0.0,), vector_bits=(8,))
    budget = qc.Budget(ratio=3, macs=macs)
    found = qc.compress(
        net, data, budget, groups="channel", menu=menu, time_limit=1.0, progress=False, solver="annealer"
    )
    assert found.decisions is not None and found.plan.removal is not None
    limit = budget.limits(found.plan.original_bytes, 1)["bytes"]
    assert found.plan.original_bytes == sum(t.numel() * t.element_size() for t in net.state_dict().values())
    assert found.save(tmp_path / "net.safetensors") <= limit
    assert any(choice.startswith("quantize") for choice in found.plan.choices.values())
    by_name = {trial.name: trial for trial in found.decisions.trials}
    assert by_name[FEWER_CHANNELS].removed > 0 and by_name[ALL_CHANNELS].measure is None  # so few bits are not zero
    left = qc.measure(found.model, data, menu=qc.Menu([]), progress=False)
    assert left.costs["macs"].sum() <= macs  # with zeros, which are multiplied with, too
    with torch.no_grad():
        again = qc.load(tmp_path / "net.safetensors", net)(data[0][0])
        assert torch.equal(again, found.model(data[0][0]))
    best = min(trial.measure for trial in found.decisions.trials if trial.measure is not None)
    assert found.taken.chosen.final_measure == pytest.approx(best, rel=1e-4)  # networks are compared repaired
    page = found.report(tmp_path / "report.html").read_text()
    assert "physically smaller" in page and "all channels: no plan fits" in page


def test_the_network_with_all_channels_competes() -> None:
    """Without training, bits cost less than channels: then nothing is removed."""
    net, data = network("depthwise")
    found = qc.compress(
        net, data, qc.Budget(ratio=2.0), groups="channel", menu=qc.Menu(bits=(8,), sparsity=(0.0,)), time_limit=0.5,
        progress=False, solver="annealer", recover=False,
    )  # fmt: skip
    assert found.decisions is not None and {trial.name for trial in found.decisions.trials} >= {ALL_CHANNELS}
    best = min(t.measure for t in found.decisions.trials if t.measure is not None)
    assert found.taken.measure <= best + 1e-9


def test_what_no_plan_reaches_is_refused() -> None:
    net, data = network("depthwise")
    with pytest.raises(errors.InfeasibleBudget, match="bytes"):
        qc.compress(
            net,
            data,
            qc.Budget(ratio=1000),
            groups="channel",
            menu=MENU,
            time_limit=0.5,
            progress=False,
            solver="greedy",
        )
    table = qc.measure(net, data, groups="channel", menu=MENU, progress=False)
    with pytest.raises(errors.UnknownName, match="no such group"):
        table.problem(LIMITS, around={"no such group": "keep"})
    with pytest.raises(errors.InvalidMenu, match="decisions about channels"):
        table.minimum_bits(table.group_names[-1], 8)
    with pytest.raises(errors.InvalidOption, match="stitched"):
        table.stitched_loss(net, data)
    with pytest.raises(errors.InvalidBudget, match="counts no flips"):
        qc.compress(net, data, qc.Budget(ratio=2, harmful_flips=0.1), groups="channel", progress=False)
    smallest = smallest_choices(table)
    assert priced(table, smallest)[0] <= priced(table, dict.fromkeys(smallest, "keep"))[0]


def test_every_network_that_is_measured_has_its_own_folder_in_the_cache(tmp_path: Path) -> None:
    net, data = network("depthwise")
    macs = int(0.7 * qc.measure(net, data, menu=qc.Menu([]), progress=False).costs["macs"].sum())
    first, again = (
        qc.compress(
            net, data, qc.Budget(ratio=2, macs=macs), groups="channel", menu=qc.Menu(bits=(8,), sparsity=(0.0,)),
            time_limit=0.5, progress=False, solver="greedy", cache=tmp_path,
        )
        for _ in range(2)
    )  # fmt: skip
    assert first.plan.choices == again.plan.choices
    assert again.table.provenance.resumed > 0 and again.decisions is not None
    assert again.decisions.table.provenance.resumed > 0


def test_branches_leave_beside_bits(tmp_path: Path) -> None:
    net, data = network("residual")
    table = qc.measure(net, data, groups="branch", menu=MENU, progress=False)
    decisions = [name for name, names in zip(table.group_names, table.choices, strict=True) if "remove" in names]
    layers = {name: "quantize(bits=8)" for name, names in zip(table.group_names, table.choices, strict=True)
              if "quantize(bits=8)" in names}  # fmt: skip
    plan = table.plan({decisions[0]: "remove", **layers})
    small = plan.apply(net)
    assert len(small.state_dict()) < len(net.state_dict())
    assert qc.save(small, tmp_path / "net.safetensors") == plan.bytes
    with torch.no_grad():
        assert torch.equal(qc.load(tmp_path / "net.safetensors", net)(data[0][0]), small(data[0][0]))
