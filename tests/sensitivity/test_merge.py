"""Tables of parts of the examples, merged: as if all had been measured together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.errors import InvalidBatches, TablesDiffer
from qubo_compress.sensitivity import SensitivityTable
from qubo_compress.sensitivity.shrinkage import agreement, agreement_of_parts

EXAMPLES = 40
MENU = qc.Menu(bits=(2, 4, 8), sparsity=(0.0, 0.5))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def data(loss: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, 5, generator=generator)
    labels = torch.randint(3, (EXAMPLES,), generator=generator)
    return inputs, nn.functional.one_hot(labels, 3).float() if loss == "squared-error" else labels


def measured(rows: slice, loss: str = "squared-error", menu: qc.Menu = MENU, **options: Any) -> SensitivityTable:
    inputs, targets = data(loss)
    given = {"interactions": 1.0, "shrinkage": 1.0, "progress": False, **options}
    return qc.measure(network(), [(inputs[rows], targets[rows])], menu=menu, loss=loss, **given)


def gram(table: SensitivityTable) -> np.ndarray:
    assert table.factor is not None
    return table.factor.astype(np.float64) @ table.factor.T


def close(one: SensitivityTable, other: SensitivityTable, tolerance: float = 1e-5) -> bool:
    scale = np.abs(gram(other)).max()
    return bool(
        np.allclose(one.linear, other.linear, atol=tolerance * np.abs(other.linear).max())
        and np.allclose(one.divergence, other.divergence, atol=tolerance * np.abs(other.linear).max())
        and np.abs(gram(one) - gram(other)).max() <= tolerance * scale
    )


@pytest.fixture(scope="module")
def whole() -> SensitivityTable:
    return measured(slice(None))


# For squared errors half the squared row is the divergence, so that no row has to be cut.
@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, EXAMPLES - 1), min_size=1, max_size=3, unique=True).map(sorted))
def test_parts_of_any_sizes_are_the_whole(whole: SensitivityTable, cuts: list[int]) -> None:
    bounds = [0, *cuts, EXAMPLES]
    parts = [measured(slice(first, last)) for first, last in zip(bounds, bounds[1:])]
    merged = SensitivityTable.merge(parts)
    assert close(merged, whole)
    assert close(SensitivityTable.merge(parts[::-1]), merged)
    assert close(SensitivityTable.merge([SensitivityTable.merge(parts[:-1]), parts[-1]]), merged)
    one, other = merged.provenance, whole.provenance
    assert (one.examples, one.evaluations, one.trust) == (EXAMPLES, other.evaluations, 1.0)
    assert np.isclose(one.baseline_loss, other.baseline_loss)


def test_classes_and_their_flips() -> None:
    halves = [measured(slice(start, start + 20), "cross-entropy") for start in (0, 20)]
    merged, together = SensitivityTable.merge(halves), measured(slice(None), "cross-entropy")
    assert np.allclose(merged.linear, together.linear, atol=1e-6)  # divergences: means over the examples
    assert np.abs(gram(merged) - gram(together)).max() < 0.15 * np.abs(gram(together)).max()  # rows were cut apart
    difference = merged.costs["harmful_flips"] - together.costs["harmful_flips"]
    assert np.abs(difference).max() <= 1 and merged.fixed_costs == together.fixed_costs
    assert together.costs["harmful_flips"].any()
    squares = np.diag(gram(merged))
    assert (squares <= 2 * merged.divergence + 1e-6).all()


def test_weights_count_in_place_of_examples(whole: SensitivityTable) -> None:
    halves = [measured(slice(start, start + 20)) for start in (0, 20)]
    merged = SensitivityTable.merge(halves, weights=(3, 1))
    assert np.allclose(merged.linear, 0.75 * halves[0].linear + 0.25 * halves[1].linear)
    assert np.allclose(gram(merged), 0.75 * gram(halves[0]) + 0.25 * gram(halves[1]), atol=1e-5 * gram(whole).max())


def distrusted(table: SensitivityTable) -> SensitivityTable:
    """A table whose halves did not agree at all."""
    return replace(table, factor=0 * table.factor, provenance=replace(table.provenance, trust=0.0))


def test_what_was_held_back_is_put_back() -> None:
    parts = [measured(slice(start, start + 20), interactions=True) for start in (0, 20)]
    trusts = [part.provenance.trust for part in parts]
    assert min(trusts) > 0 and trusts[0] != trusts[1]
    merged = SensitivityTable.merge(parts)
    rows = [part.factor / np.sqrt(np.float32(trust)) for part, trust in zip(parts, trusts, strict=True)]
    expected = agreement_of_parts(rows, np.full(2, 0.5), parts[0].offsets, np.random.default_rng(0))
    assert merged.provenance.trust == pytest.approx(expected)
    full = gram(SensitivityTable.merge([measured(slice(start, start + 20)) for start in (0, 20)]))
    assert np.allclose(gram(merged), expected * full, atol=1e-5 * full.max())
    assert len({*trusts, expected}) == 3
    # A share that was given is kept; a table that trusts nothing counts with pairs of zero.
    kept = SensitivityTable.merge([measured(slice(start, start + 20), interactions=0.3) for start in (0, 20)])
    assert kept.provenance.trust == pytest.approx(0.3) and np.allclose(gram(kept), 0.3 * full, atol=1e-5 * full.max())
    nothing = distrusted(parts[1])
    some = SensitivityTable.merge([parts[0], nothing])
    assert some.provenance.trust == trusts[0] and np.allclose(gram(some), 0.5 * gram(parts[0]), atol=1e-5 * full.max())
    assert not SensitivityTable.merge([nothing, distrusted(parts[0])]).factor.any()


def test_pairs_are_means() -> None:
    menu = qc.Menu(bits=(2,), sparsity=(0.0,))
    parts = [measured(slice(start, stop), menu=menu, metric="pairwise") for start, stop in ((0, 10), (10, 40))]
    together = measured(slice(None), menu=menu, metric="pairwise")
    merged = SensitivityTable.merge(parts)
    assert np.allclose(merged.pairs.toarray(), together.pairs.toarray(), atol=1e-6)
    choices = dict.fromkeys(merged.group_names, "keep") | {
        "0.weight": "quantize(bits=2)",
        "2.weight": "quantize(bits=2)",
    }
    assert merged.predict(choices) == pytest.approx(together.predict(choices), abs=1e-6)


def test_a_merged_table_is_solved_and_applied(whole: SensitivityTable) -> None:
    parts = [measured(slice(start, start + 20)) for start in (0, 20)]
    parts[1].pin("0.weight", "keep")
    merged = SensitivityTable.merge(parts)
    plan = merged.plan(qc.solve(merged.problem(qc.Budget(bytes=600)), "exact"))
    assert plan.choices["0.weight"] == "keep" and plan.bytes <= 600
    assert plan.apply(network())(torch.zeros(1, 5)).shape == (1, 3)
    assert close(SensitivityTable.merge([whole]), whole)


def test_other_tables_are_refused_with_what_differs() -> None:
    table = measured(slice(0, 20))
    compensated = {"menu": qc.Menu.of("quantize", "compensate")}
    refused: dict[str, list[SensitivityTable]] = {
        "menu": [table, measured(slice(20, 40), menu=qc.Menu(bits=(2,), sparsity=(0.0,)))],
        "metric": [table, measured(slice(20, 40), metric="fisher", shrinkage=None)],
        "shrinkage.*number": [table, measured(slice(20, 40), shrinkage=0.5)],
        "groups": [table, measured(slice(20, 40), groups="filter")],
        "loss": [measured(slice(0, 20), "cross-entropy"), measured(slice(20, 40), "kl")],
        "weights": [table, replace(table, provenance=replace(table.provenance, weights="other"))],
        "choices made from data.*torch.distributed": [
            measured(slice(0, 20), **compensated), measured(slice(20, 40), **compensated)
        ],
        "around a plan": [replace(table, constant=0.1)],
        "0 and 1 are the same": [table, measured(slice(0, 20))],
        "at least one": [],
    }  # fmt: skip
    for said, tables in refused.items():
        with pytest.raises(TablesDiffer, match=said):
            SensitivityTable.merge(tables)
    for weights in ((1,), (1, 0), (1, np.nan), (1, -1)):
        with pytest.raises(InvalidBatches, match="positive numbers, one for each of 2"):
            SensitivityTable.merge([table, measured(slice(20, 40))], weights=weights)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_two_equal_parts_agree_as_two_halves_do(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal((20, 2))
    parts = [(signal + noise * rng.standard_normal((20, 2))).astype(np.float32) for _ in range(2)]
    offsets = np.arange(0, 21, 2)
    halves = agreement(np.hstack(parts), np.array([False, False, True, True]), offsets, rng)
    assert agreement_of_parts(parts, np.full(2, 0.5), offsets, rng) == pytest.approx(halves, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_agreement_is_a_share(seed: int, sizes: list[float]) -> None:
    rng = np.random.default_rng(seed)
    shares = np.array(sizes) / sum(sizes)
    offsets = np.arange(0, 13, 3)
    noise = [rng.standard_normal((12, 2)).astype(np.float32) for _ in sizes]
    assert 0 <= agreement_of_parts(noise, shares, offsets, rng) <= 1
    same = agreement_of_parts([noise[0]] * len(sizes), shares, offsets, rng)
    assert same == pytest.approx(1.0) if len(sizes) > 1 else same == 0.0
