"""What few examples say by luck is drawn back, and what is asked for as measured is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress.sensitivity.measure import measure_specimen
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.shrinkage import floored, limited_rows
from qubo_compress.sensitivity.specimen import Around, Specimen

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5))


def measured(sample: Any, **options: Any) -> qc.SensitivityTable:
    return qc.measure(sample.model, sample.batches, menu=MENU, metric="gauss-newton", progress=False, **options)


def gram(table: qc.SensitivityTable) -> np.ndarray:
    assert table.factor is not None
    factor = table.factor.astype(np.float64)
    return factor @ factor.T


@pytest.mark.parametrize("name", ["perceptron", "grouped-view-inplace", "encoder"])
def test_by_default_nothing_promises_a_gain(sample: Any, name: str) -> None:
    table = measured(sample(name))
    assert np.array_equal(table.linear, table.divergence) and table.linear.min() >= -1e-7
    own = 0.5 * np.diag(gram(table))
    assert (own <= table.linear + 1e-6).all(), "an energy is 1/2 |sum A|^2 plus terms that are not negative"
    problem = table.problem(qc.Budget(ratio=1.5))
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.integers(0, size, 200) for size in problem.group_sizes], axis=1)
    assert problem.energies(drawn).min() >= -1e-6


def test_a_share_given_as_a_number_is_taken_of_what_was_measured(sample: Any) -> None:
    found = sample("grouped-view-inplace")
    whole, quarter, trusted = (measured(found, interactions=share) for share in (1.0, 0.25, True))
    assert np.allclose(gram(quarter), 0.25 * gram(whole), atol=1e-5 * gram(whole).max())
    assert (0.5 * np.diag(gram(whole)) > whole.divergence + 1e-4).any(), "no row is longer than its divergence"
    assert 0.0 < trusted.provenance.trust < 1.0


def test_around_a_plan_what_the_plan_holds_costs_nothing_more(sample: Any) -> None:
    found = sample("perceptron")
    table = measured(found)
    chosen = {group: names[1] for group, names in zip(table.group_names, table.choices, strict=True)}
    base = table.plan(chosen).apply(found.model)
    settings = Measurement(MENU, "gauss-newton", "cross-entropy", progress=False)
    around = measure_specimen(Specimen.of(found.model, found.batches, settings), Around(base))
    held = around.offsets[:-1] + around.assignment(chosen)
    assert np.abs(around.linear[held]).max() < 1e-9

    inputs = torch.cat([x for x, _ in found.batches])

    def divergence(plan: dict[str, str]) -> float:
        shares = [net(inputs).log_softmax(-1).double() for net in (found.model, table.plan(plan).apply(found.model))]
        return float((shares[0].exp() * (shares[0] - shares[1])).sum(-1).mean())

    with torch.no_grad():
        assert around.predict(chosen) == pytest.approx(divergence(chosen), abs=1e-5)
        swapped = {**chosen, "0.weight": "keep"}
        assert around.predict(swapped) == pytest.approx(divergence(swapped), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 3.0))
def test_no_assignment_gains_more_than_there_is(seed: int, most: float) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.array([0, 3, 5, 9])
    linear, rows = rng.standard_normal(9), rng.standard_normal((9, 4)).astype(np.float32)
    limited = floored(linear, rows, offsets, most)
    assert (limited >= linear - 1e-9).all() and np.array_equal(
        limited[linear >= 0.5 * (rows**2).sum(1) + 1e-6], linear[linear >= 0.5 * (rows**2).sum(1) + 1e-6]
    )
    problem = qc.ChoiceProblem(linear=limited, group_offsets=offsets, costs=np.zeros((1, 9), dtype=np.int64),
                               limits=np.array([0]), factor=rows)  # fmt: skip
    every = np.stack(np.meshgrid(range(3), range(2), range(4), indexing="ij"), axis=-1).reshape(-1, 3)
    assert problem.energies(every).min() >= -most - 1e-5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_rows_keep_their_direction_and_are_no_longer_than_allowed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, allowed = rng.standard_normal((6, 5)).astype(np.float32), rng.uniform(-0.5, 3.0, 6)
    limited = limited_rows(rows, allowed)
    lengths, before = np.linalg.norm(limited, axis=1), np.linalg.norm(rows, axis=1)
    wanted = np.minimum(before, np.sqrt(2 * np.maximum(allowed, 0)))
    assert np.allclose(lengths, wanted, atol=1e-5)
    assert np.allclose(limited * before[:, None], rows * lengths[:, None], atol=1e-4)


def test_slopes_promise_no_more_than_the_loss_that_there_is(sample: Any) -> None:
    found = sample("grouped-view-inplace")
    table, raw = measured(found, shrinkage=0.0), measured(found, shrinkage=0.0, interactions=1.0)

    def promised(some: qc.SensitivityTable) -> float:
        rest = some.linear - 0.5 * np.diag(gram(some))
        return -float(np.minimum.reduceat(rest, some.offsets[:-1]).sum())

    assert promised(raw) > raw.provenance.baseline_loss, "there is nothing to limit"
    # The rows in the table are shrunk once more, so that less is taken from the linear terms here.
    assert promised(table) <= table.provenance.baseline_loss + 1e-6
    assert (table.linear >= raw.linear - 1e-9).all() and not np.array_equal(table.linear, raw.linear)
