"""``result.export`` knows the examples to check its file with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import qubo_compress as qc


def test_a_result_exports_itself(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
    inputs = torch.randn(80, 32, generator=generator)
    result = qc.compress(net, [(inputs, torch.arange(80) % 3)], qc.Budget(ratio=4), time_limit=1, progress=False)
    found = result.export(tmp_path / "net.onnx")
    assert found.examples == result.comparison.examples and found.largest_difference < 1e-4
    assert found.artifact_bytes == result.plan.bytes
