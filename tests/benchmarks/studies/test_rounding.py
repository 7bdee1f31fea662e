"""The benchmark of rounding measures what it says, and its table is of its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.studies import rounding
from benchmarks.study import Options
from qubo_compress.calibration.statistics.input_moments import Moments
from qubo_compress.network.groups import Group, Member


def test_every_way_improves_on_the_one_before() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 18, generator=generator) @ torch.randn(18, 18, generator=generator)
    weight = torch.randn(8, 2, 3, 3, generator=generator)
    group = Group("w", "weight", (Member("w", (8, 2, 3, 3), torch.float32),), "Conv2d")
    moments = Moments(((inputs.T @ inputs).double() / 60,), 0, 8)
    errors = []
    for name, way in rounding.ways(3, {"w": 0.2}).items():
        stored = way(group, weight, moments)
        assert stored.shape == weight.shape
        levels = [len(row.unique()) for row in stored.flatten(1)]
        assert max(levels) <= 7, name
        errors.append(rounding.relative_error(weight, stored, moments))
    # Both start from the descent; which of them comes further is what the benchmark asks.
    nearest, propagated, descent, qubo, kicked = errors
    assert nearest > propagated > descent >= max(qubo, kicked) and errors[-1] < 0.9 * nearest
    direct = ((stored - weight).flatten(1) @ inputs.T).square().sum() / (weight.flatten(1) @ inputs.T).square().sum()
    assert errors[-1] == pytest.approx(float(direct), rel=1e-4)


def test_tables_are_of_the_last_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    monkeypatch.setattr(rounding.STUDY, "path", path)
    common = {"network": "net", "examples": 9}
    layer = {"layer": "a", "rows": 2, "seconds": 1.0}
    records: list[dict[str, Any]] = [{"part": "original", "accuracy": 90.0, "loss": 0.25, **common}]
    for way, error in (("descent", 9.0), ("qubo", 7.0), ("descent", 4.0), ("qubo", 3.0)):
        layers = [{**layer, "error": error, "unseen": error + 1}]
        way_record = {"part": "way", "bits": 3, "way": way, "layers": layers, "accuracy": 1.0, "loss": 2.0}
        records.append({**way_record, **common})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = rounding.tables(Options())
    assert all(f" {figure} " in text for figure in ("3.00000", "4.00000", "25.0", "20.0"))
    assert "9.00000" not in text
