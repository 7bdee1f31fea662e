"""The benchmarks of rounding and of entropy coding measure what they say, and their tables are of their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import entropy_coding, rounding
from benchmarks.entropy_coding import EntropyBound
from qubo_compress.menu.groups import Group, Member
from qubo_compress.menu.operator import parse
from qubo_compress.statistics.input_moments import Moments


def test_every_way_improves_on_the_one_before() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 18, generator=generator) @ torch.randn(18, 18, generator=generator)
    weight = torch.randn(8, 2, 3, 3, generator=generator)
    group = Group("w", "weight", (Member("w", (8, 2, 3, 3), torch.float32),), "Conv2d")
    moments = Moments(((inputs.T @ inputs).double() / 60,), 0, 8)
    errors = []
    for name, way in rounding.ways(3).items():
        stored = way(group, weight, moments)
        assert stored.shape == weight.shape
        levels = [len(row.unique()) for row in stored.flatten(1)]
        assert max(levels) <= 7, name
        errors.append(rounding.relative_error(weight, stored, moments))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]
    direct = ((stored - weight).flatten(1) @ inputs.T).square().sum() / (weight.flatten(1) @ inputs.T).square().sum()
    assert errors[-1] == pytest.approx(float(direct), rel=1e-4)


def test_the_bound_is_below_what_the_coder_needs() -> None:
    pytest.importorskip("constriction")
    weight = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    group = Group("w", "weight", (Member("w", (30, 40), torch.float32),), "Linear")
    for name in ("quantize(bits=4)", "quantize(bits=3,sparsity=0.5)"):
        packed: Any = parse(name).encode(group, [weight])
        record = entropy_coding.measured(name, [group], [weight], [packed], 1)
        assert record["bound"] < record["coded"] < min(1.1 * record["bound"], record["plain"])
        assert record["values"] == 1200 and min(record["encode"], record["decode"], record["coded_step"]) > 0
    bound = EntropyBound()
    bound.raw(b"abc")
    bound.codes(np.array([0, 0, 1, 2] * 8), 0, 3)
    assert bound.total == 3 + 1.5 * 32 / 8


@pytest.mark.parametrize("module", [rounding, entropy_coding])
def test_tables_are_of_the_last_records(module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PATH", tmp_path / "records.jsonl")
    common = {"network": "net", "examples": 9}
    if module is rounding:
        layer = {"layer": "a", "rows": 2, "seconds": 1.0}
        records = [{"part": "original", "accuracy": 90.0, "loss": 0.25, **common}]
        for way, error in (("descent", 9.0), ("qubo", 7.0), ("descent", 4.0), ("qubo", 3.0)):
            layers = [{**layer, "error": error, "unseen": error + 1}]
            way_record = {"part": "way", "bits": 3, "way": way, "layers": layers, "accuracy": 1.0, "loss": 2.0}
            records.append({**way_record, **common})
        expected = ["3.00000", "4.00000", "25.0", "20.0"]
    else:
        sizes = {"values": 1000, "plain": 500, "coded": 400, "bound": 390.0, "encode": 1.0, "decode": 1.0}
        records = [{"choice": "x", **sizes, "plain_step": 0.001, "coded_step": 0.002, **common}]
        expected = ["20.0", "3.200", "2.56"]
    module.PATH.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = module.table_text()
    assert all(f" {figure} " in text for figure in expected)
    assert "9.00000" not in text
