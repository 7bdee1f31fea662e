"""The code of the how-to pages runs, in its order, in one namespace each."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

import qubo_compress as qc

ROOT = Path(__file__).parents[1]


def test_the_page_for_dwave_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "dimod.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "dimod.md", "exec"), namespace)
    found, again = namespace["found"], namespace["again"]
    assert found.first.energy == 2.0 and found.first.is_feasible
    assert found.info["bound"] == 2.0 and found.info["status"] == "optimal"
    assert again.num_groups == namespace["problem"].num_groups == 30


def test_the_page_about_pair_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pair_costs.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "pair_costs.md", "exec"), namespace)
    assert namespace["stored"] <= 180 and "remove" in namespace["plan"]


def test_the_page_about_the_published_qubo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 48, 3)).eval()
    namespace: dict[str, object] = {"model": model}
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "published.md").read_text(), flags=re.DOTALL)
    block = block.replace("ratio=12", "ratio=8").replace('"annealer"', '"greedy"')
    exec(compile(block, "published.md", "exec"), namespace)
    assert isinstance(namespace["plan"], qc.Plan) and namespace["found"].plan.ratio >= 8
