"""Bytes and milliseconds in other runtimes, beside the original, on the page as well."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.errors import InvalidOption, UnknownName
from qubo_compress.timing import run_elsewhere


@pytest.fixture(scope="module")
def result() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    data = [(torch.randn(48, 32), torch.arange(48) % 4)]
    return qc.compress(net, data, qc.Budget(ratio=4), solver="greedy", recover=False, progress=False)


def test_both_networks_run_in_every_runtime(result: Any, tmp_path: Path) -> None:
    ticks = itertools.count()
    found = result.elsewhere(batch=2, runs=2, clock=lambda: float(next(ticks)))
    assert [one.runtime for one in found.runtimes] == ["onnxruntime", "openvino"]
    for one in found.runtimes:
        assert one.nbytes < one.plain_bytes and one.agreement == 1.0
        assert (one.milliseconds, one.plain_milliseconds, one.speed) == (1000.0, 1000.0, 1.0)
    assert (found.batch, found.threads, found.artifact_bytes) == (2, 1, result.plan.bytes)
    page = result.report(tmp_path / "report.html", elsewhere=found).read_text()
    assert "In other runtimes" in page and found.processor in page and f"{found.runtimes[0].plain_bytes:,}" in page
    assert found.runtimes[0].version in str(found) and "<table" in found._repr_html_()


def test_wrong_arguments_are_refused_before_anything_runs(result: Any) -> None:
    plain = result.table.plan({}).apply(result.original)
    for batch in (0, 10_000):
        with pytest.raises(InvalidOption, match="batch"):
            run_elsewhere(result.model, plain, list(result.inputs), batch)
    with pytest.raises(UnknownName, match="openvino"):
        run_elsewhere(result.model, plain, list(result.inputs), 1, ["openvin"])
