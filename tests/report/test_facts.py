"""The figures that the report is made of, compared with the result itself."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import qubo_compress as qc
from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import facts


def test_rows_are_the_plan(result: CompressionResult) -> None:
    rows = facts.group_rows(result)
    assert {row.name: row.choice for row in rows} == dict(result.plan.choices)
    assert sum(row.bytes for row in rows) + result.table.fixed_costs["bytes"] == result.plan.bytes
    kept = sum(item.nbytes for item in result.table.layout.kept)
    assert sum(row.original_bytes for row in rows) + kept == result.plan.original_bytes
    state = result.model.state_dict()
    for row in rows:
        if row.kind == "weight":
            assert row.zeros == pytest.approx(float((state[row.name] == 0).double().mean())), row.name
        expected = re.search(r"bits=(\d+)", row.choice)
        assert row.bits == (float(expected.group(1)) if expected else 32.0)


def test_the_round_taken_is_the_last_accepted_one(result: CompressionResult) -> None:
    assert result.taken.plan.choices == result.plan.choices


def test_bundles_keep_every_group_once(result: CompressionResult) -> None:
    rows = [
        facts.GroupRow(f"layer{n // 9}.weight[{n % 9}]", "weight", "keep", 32.0, 0.0, 4, 16 + n, 16, 0.5)
        for n in range(700)
    ]
    rows += [facts.GroupRow(f"layer{n}.bias", "bias", "keep", 32.0, None, 4, 16, 8, 0.25) for n in range(78)]
    for most, vectors_from in ((1000, 2000), (200, 2000), (48, 26), (5, 2)):
        bundles = facts.bundle(rows, most=most, vectors_from=vectors_from)
        assert len(bundles.labels) == len(bundles.members) <= most
        assert sorted(i for members in bundles.members for i in members) == list(range(len(rows)))
        assert bool(bundles.sentence) == (len(bundles.labels) < len(rows))
        joined = facts.bundled_rows(rows, bundles)
        assert sum(row.original_bytes for row in joined) == sum(row.original_bytes for row in rows)
        assert sum(row.groups for row in joined) == len(rows)
    assert "778 groups" in bundles.sentence


def test_channels_are_joined_by_layer_and_never_taken_for_vectors() -> None:
    rows = [
        facts.GroupRow(f"layer{n // 30}.weight[{n % 30}]", "channels", choice, 32.0, None, 4, 16, 16, 0.5)
        for n, choice in enumerate(["keep", "remove"] * 60)
    ]
    bundles = facts.bundle(rows, most=40, vectors_from=26)
    assert bundles.labels == tuple(f"layer{n}.weight" for n in range(4))
    joined = facts.bundled_rows(rows, bundles)
    assert all(row.kind == "channels" and row.choice == "15 × keep; 15 × remove" for row in joined)
    assert len(facts.bundle(rows, most=400, vectors_from=26).labels) == 120


def test_joined_rows_average_by_value() -> None:
    rows = [
        facts.GroupRow("a[0]", "weight", "quantize(bits=2)", 2.0, 0.5, 30, 120, 8, 0.1),
        facts.GroupRow("a[1]", "weight", "quantize(bits=6)", 6.0, 0.1, 10, 40, 8, 0.2),
    ]
    row = facts.bundled_rows(rows, facts.bundle(rows, most=1, vectors_from=9))[0]
    assert (row.name, row.bits, row.zeros, row.bytes) == ("a", 3.0, pytest.approx(0.4), 16)
    assert row.choice == "1 × quantize(bits=2); 1 × quantize(bits=6)"
    assert row.alone == pytest.approx(0.3)


def test_interactions_add_up_to_the_prediction(result: CompressionResult) -> None:
    rows = facts.group_rows(result)
    bundles = facts.bundle(rows, most=4, vectors_from=2)
    between, is_gram = facts.bundled_factor(result, bundles) or (None, False)
    assert is_gram
    assert between is not None
    every, _ = facts.bundled_factor(result, facts.bundle(rows, most=99, vectors_from=99)) or (None, False)
    assert every is not None
    assert between.sum() == pytest.approx(every.sum(), rel=1e-9)
    pairs = 0.5 * (every.sum() - np.trace(every))
    predicted = result.table.predict(result.plan.choices)
    assert sum(row.alone for row in rows) + pairs == pytest.approx(predicted, rel=1e-6, abs=1e-9)


def test_kept_tensors_have_reasons(result: CompressionResult) -> None:
    found = {row.name: row.reason for row in facts.kept_rows(result)}
    assert "no operator" in found["temperature"]
    assert "int64" in found["steps"]
    kept = {name for name, choice in result.plan.choices.items() if choice == "keep"}
    assert set(found) == kept | {"temperature", "steps"}
    assert facts.shared_tensors(result) == (("again.weight", "middle.weight"),)


def test_group_without_any_choice_says_why(
    result: CompressionResult, compressed: Callable[..., CompressionResult]
) -> None:
    only = compressed(menu=qc.Menu(bits=(2,), sparsity=(0.0,), vector_bits=()), budget=qc.Budget(ratio=1.5), rounds=0)
    reasons = {row.name: row.reason for row in facts.kept_rows(only)}
    assert "no choice of the menu suits it" in reasons["last.bias"]
    assert "bias" in reasons["last.bias"].split(":", 1)[1]
