"""Regular expressions of groupings: what a file holds is matched as before, and never for ever."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.network import patterns
from qubo_compress.network.discovery import discover, discover_stored
from qubo_compress.network.patterns import is_quick, labels_by, labels_within_limits

NAMES = ["blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight", "blocks.1.mlp.fc1.weight", "head.weight"]
QUICK = [
    "weight",
    r"blocks\.(\d+)\.",
    r"(.*)\.(\d+)\.(attn|mlp)",
    "(conv)?weight",
    "[a-z]+",
    "(?i)HEAD",
    "^(.*)fc",
    "(a|b)*",
]
SLOW = [r"((\w+)\.)+weight", r"(?=.*attn)blocks\.(\d)", r"(.*)\.(.*)\.(.*)\.weight", r"(\w)\w*\.\1", "(b|bl|head)+"]
ENDLESS = ["((a+)+)+$", r"^(\w+\.?)+#", "(.*)*(.*)*#", "(a|a|b)" * 3 + "(aa|a)*(aa|a)*#"]


@pytest.mark.parametrize("pattern", QUICK + SLOW)
def test_labels_are_those_of_the_plain_matcher(pattern: str) -> None:
    assert is_quick(pattern) == (pattern in QUICK)
    assert labels_within_limits(pattern, NAMES) == labels_by(re.compile(pattern), NAMES)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_what_would_never_end_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="takes more than 1 s"):
        labels_within_limits(pattern, ["a" * 60 + "b"])


@pytest.mark.parametrize("pattern", ["(" * 1500 + ")" * 1500, "a{1,4294967290}" * 3])
def test_what_the_matcher_itself_refuses_is_said(pattern: str) -> None:
    try:
        labels_within_limits(pattern, NAMES)
    except ValueError as refusal:
        assert "regular expression" in str(refusal)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a" * 40: nn.Linear(4, 4), "conv1": nn.Linear(4, 4), "conv2": nn.Linear(4, 4)}).eval()


class Chain(nn.Module):
    """Linear layers with names of many letters."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts.values():
            x = torch.relu(part(x))
        return x


@pytest.mark.parametrize("rule", [r"((\w+)\.)+weight", r"conv(\d)", re.compile(r"(?P<n>conv.+)+\.weight")])
def test_a_grouping_of_ones_own_may_be_any_and_its_file_is_read_at_once(
    rule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Chain().eval()
    table = qc.measure(model, [torch.randn(4, 4)], qc.Menu(bits=(4,)), "magnitude", "kl", groups=rule, progress=False)
    assert is_quick(table.layout.rule) or table.layout.rule.startswith("custom:")
    small = table.plan({}).apply(model)
    qc.save(small, tmp_path / "net")
    monkeypatch.setattr(patterns.subprocess, "run", lambda *given, **named: pytest.fail("no process is needed"))
    loaded = qc.load(tmp_path / "net", Chain())
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), small.parameters(), strict=True))


def test_files_of_version_0_4_with_any_expression_are_read_still() -> None:
    model = Chain().eval()
    for rule in (*SLOW[:3], "conv"):
        try:
            wanted = discover(model, rule)
        except errors.InvalidMenu:
            continue
        found = discover_stored(model, rule)
        assert found.groups == wanted.groups and found.rule == rule


def test_an_endless_expression_in_a_plan_is_refused(tmp_path: Path) -> None:
    model = Chain().eval()
    table = qc.measure(model, [torch.randn(4, 4)], qc.Menu(bits=(4,)), "magnitude", "kl", progress=False)
    plan = table.plan({})
    for rule in ("((a+)+)+$", "(" * 5000, "a" * 5000):
        crafted = qc.Plan(**{**{name: getattr(plan, name) for name in plan.__dataclass_fields__}, "rule": rule})
        crafted.save(tmp_path / "plan.json")
        with pytest.raises(errors.InvalidMenu, match="grouping|no weight|expression"):
            qc.Plan.load(tmp_path / "plan.json").apply(model)
