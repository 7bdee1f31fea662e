"""Second-order pruning: the inverse, the joint update, gradients, and the damping chosen on unseen ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.statistics.gradients import GradientRows, Gradients
from qubo_compress.calibration.statistics.inverse_fisher import (
    InverseFisher,
    inverse_fisher_blocks,
    survivors_answer,
    survivors_answers,
)
from qubo_compress.calibration.statistics.statistic import Calibration
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.woodfisher import (
    FisherSettings,
    WoodFisher,
    chosen_damping,
    compensated,
    largest,
    saliencies,
    unseen_changes,
    without_zeros,
)
from qubo_compress.network.discovery import discover
from qubo_compress.network.losses.classification import make_loss, rows_of


def rows_like(count: int, size: int, seed: int) -> GradientRows:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 4, generator=generator) @ torch.randn(4, size, generator=generator)
    return GradientRows(common + 0.3 * torch.randn(count, size, generator=generator), torch.ones(count))


def fisher(rows: GradientRows, damping: float) -> Tensor:
    gradients = rows.values.double()
    return gradients.T @ gradients / gradients.shape[0] + damping * torch.eye(gradients.shape[1]).double()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 60), size=st.integers(1, 40), damping=st.sampled_from([1e-5, 1e-3, 1.0]),
    form=st.sampled_from(["auto", "recursion", "gram"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_woodbury_inverse_is_the_dense_inverse(count: int, size: int, damping: float, form: str, seed: int) -> None:
    rows = rows_like(count, size, seed)
    # Compared as F x inverse = 1: the dense inverse itself is no better than its condition number allows.
    found = InverseFisher.of(rows.values, damping, form)  # type: ignore[arg-type]
    matrix = fisher(rows, damping)
    dense = torch.linalg.inv(matrix)
    assert float((found.dense() - dense).norm() / dense.norm()) < 1e-8
    assert torch.allclose(found.diagonal, dense.diagonal(), rtol=1e-6)


def test_one_block_is_made_at_a_time() -> None:
    rows = rows_like(8, 1000, 0)
    blocks = inverse_fisher_blocks(rows.values, 1e-3, 100)
    where, first = next(blocks)
    assert where == slice(0, 100) and first.gradients.shape == (8, 100)
    assert sum(part.gradients.shape[1] for _, part in blocks) == 900


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("count", [10, 80])
def test_the_joint_update_is_the_stationary_point(count: int, with_gradient: bool) -> None:
    rows, damping = rows_like(count, 30, 1), 1e-2
    values = torch.randn(30, generator=torch.Generator().manual_seed(2))
    mask = largest(values.abs(), 18)
    moved = compensated(values, mask, rows, FisherSettings(damping, 2000, "joint", with_gradient))
    change = moved - values.double()
    slope = fisher(rows, damping) @ change
    if with_gradient:
        slope = slope + rows.values.double().T @ rows.roots.double() / count
    assert bool((moved[~mask] == 0).all())
    assert float(slope[mask].abs().max()) < 1e-8 * float(slope.abs().max())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), size=st.integers(2, 40), share=st.floats(0.1, 0.9), block=st.sampled_from([7, 2000]))
def test_no_update_is_better_than_the_joint_one(seed: int, size: int, share: float, block: int) -> None:
    rows, damping = rows_like(25, size, seed), 1e-3
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    mask = largest(saliencies(values, rows, FisherSettings(damping, block)), max(1, int(size * (1 - share))))
    costs = {}
    for update in ("joint", "independent", "none"):
        moved = compensated(values, mask, rows, FisherSettings(damping, block, update))  # type: ignore[arg-type]
        change = moved - values.double()
        costs[update] = sum(
            float(change[where] @ fisher(GradientRows(rows.values[:, where], rows.roots), damping) @ change[where])
            for where in (slice(a, a + block) for a in range(0, size, block))
        )
    assert costs["joint"] <= costs["independent"] * (1 + 1e-9) + 1e-12
    assert costs["joint"] <= costs["none"] * (1 + 1e-9) + 1e-12


def test_one_weight_at_a_time_both_updates_are_the_surgeon() -> None:
    rows, damping = rows_like(25, 12, 3), 1e-3
    values = torch.randn(12, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(12, dtype=torch.bool)
    mask[5] = False
    inverse = torch.linalg.inv(fisher(rows, damping))
    expected = values.double() - values[5].double() * inverse[:, 5] / inverse[5, 5]
    expected[5] = 0.0
    for update in ("joint", "independent"):
        found = compensated(values, mask, rows, FisherSettings(damping, 2000, update))  # type: ignore[arg-type]
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-10)
    cost = saliencies(values, rows, FisherSettings(damping))[5]
    change = expected - values.double()
    assert float(cost) == pytest.approx(0.5 * float(change @ fisher(rows, damping) @ change), rel=1e-7)


@pytest.mark.parametrize("count", [10, 80])
def test_answers_for_many_dampings_are_those_for_each(count: int) -> None:
    gradients = rows_like(count, 30, 6).values.double()
    pruned = torch.arange(30) % 3 == 0
    target = gradients @ (torch.randn(30, generator=torch.Generator().manual_seed(1)).double() * pruned)
    dampings = (1e-4, 1e-2, 1.0)
    for damping, found in zip(dampings, survivors_answers(gradients, dampings, pruned, target), strict=True):
        expected = survivors_answer(gradients, damping, pruned, target)
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-10)
    assert not survivors_answers(gradients, dampings, torch.ones(30, dtype=torch.bool), target).any()


@pytest.mark.parametrize("with_gradient", [False, True])
def test_weights_that_are_gone_stay_gone_and_help_nobody(with_gradient: bool) -> None:
    rows, setting = rows_like(20, 30, 8), FisherSettings(1e-2, 2000, "joint", with_gradient)
    values = torch.randn(30, generator=torch.Generator().manual_seed(9))
    gone = torch.arange(30) < 10
    values[gone] = 0.0
    masked = without_zeros(values, rows)
    assert not saliencies(values, masked, setting)[gone].any()
    mask = largest(saliencies(values, masked, setting), 14)
    assert not mask[gone].any()
    alone = GradientRows(rows.values[:, ~gone], rows.roots)
    apart = compensated(values[~gone], mask[~gone], alone, setting)
    assert torch.allclose(compensated(values, mask, masked, setting)[~gone], apart, rtol=1e-7, atol=1e-10)


def test_the_damping_follows_the_noise() -> None:
    values = torch.randn(60, generator=torch.Generator().manual_seed(0))
    clear = rows_like(200, 60, 1)
    noise = torch.randn(200, 60, generator=torch.Generator().manual_seed(5))
    noisy = GradientRows(noise, torch.ones(200))
    low, error = chosen_damping(values, clear, 0.5)
    high, worse = chosen_damping(values, noisy, 0.5)
    mean = [float(rows.values.square().mean()) for rows in (clear, noisy)]
    assert low / mean[0] < high / mean[1]
    assert error < 0.5 < worse


def test_unseen_changes_are_those_of_updates_from_the_other_half() -> None:
    rows, dampings = rows_like(21, 30, 2), (1e-3, 1e-1)
    values = torch.randn(30, generator=torch.Generator().manual_seed(3))
    mask = largest(values.abs(), 15)
    for with_gradient in (False, True):
        found = unseen_changes(values, rows, 0.5, dampings, FisherSettings(1.0, 12, "joint", with_gradient))
        for seen, unseen in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            half = GradientRows(rows.values[seen], rows.roots[seen])
            for number, damping in enumerate(dampings):
                moved = compensated(values, mask, half, FisherSettings(damping, 12, "joint", with_gradient))
                expected = rows.values[unseen].double() @ (moved - values.double())
                assert torch.allclose(found[number, unseen], expected, rtol=1e-6, atol=1e-9)
        assert torch.allclose(found[-1], -rows.values.double() @ (values.double() * ~mask))


def calibration(net: nn.Module, targets: Tensor | None) -> Calibration:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(12, 5, generator=generator)
    batch = inputs if targets is None else (inputs, targets)
    return Calibration(net, read_examples([batch]), make_loss("cross-entropy" if targets is not None else "kl"),
                       lambda x: rows_of(net(x)), 0)  # fmt: skip


def test_gradients_are_those_of_single_examples_and_leave_the_network_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    targets = torch.arange(12) % 3
    data = calibration(net, targets)
    group = next(g for g in discover(net).groups if g.name == "0.weight")
    found = Gradients(12).collect(data, group)[0]
    inputs = data.examples.slices[0].inputs
    for row, x, y in zip(found.values, inputs, targets, strict=True):
        loss = nn.functional.cross_entropy(net(x[None]), y[None])
        expected = torch.autograd.grad(loss, net[0].weight)[0]
        assert torch.allclose(row, expected.reshape(-1), atol=1e-6)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert Gradients(5).collect(data, group)[0].values.shape == (5, 20)
    assert Gradients(4, batch=6).collect(data, group)[0].values.shape == (4, 20)


def test_without_labels_they_are_drawn_from_the_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 3)).eval()
    group = discover(net).groups[0]
    data = calibration(net, None)
    first, again = (Gradients(12).collect(data, group)[0].values for _ in range(2))
    assert torch.equal(first, again) and float(first.abs().max()) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"sparsity": 1.0},
        {"bits": 1},
        {"damping": 0.0},
        {"batch": 0},
        {"update": "both"},
        {"order": "third"},
        {"block": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidMenu):
        WoodFisher(**{"sparsity": 0.5, **wrong})  # type: ignore[arg-type]


def test_it_is_chosen_from_a_menu_and_applied() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    data = [(torch.randn(40, 5), torch.arange(40) % 3)]
    table = qc.measure(net, data, menu=qc.Menu([WoodFisher(0.5), WoodFisher(0.5, bits=4)]), progress=False)
    small = table.plan({"0.weight": "woodfisher(sparsity=0.5,bits=4)"}).apply(net)
    assert int((small[0].weight == 0).sum()) >= 40
