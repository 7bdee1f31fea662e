"""What notebooks show of results, plans, tables, solutions, problems, audits and tables of milliseconds."""

from __future__ import annotations

import re
from typing import Any
from xml.dom import minidom

import numpy as np
import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress._internal.notebook import MOST_ROWS, fragment
from qubo_compress.latency import LatencyTable
from qubo_compress.pipeline.compress import CompressionResult

HOSTILE = "<script>alert(1)</script>&\x1b[31m"


@pytest.fixture(scope="module")
def shown(result: CompressionResult, odd_audit: qc.AuditReport) -> dict[str, Any]:
    table = result.table
    times = {name: {"keep": 2.0, "quantize(bits=8)": 1.5} for name in table.group_names}
    return {
        "result": result,
        "plan": result.plan,
        "table": table,
        "solution": result.solution,
        "problem": table.problem(qc.Budget(ratio=2)),
        "audit": odd_audit,
        "latency": LatencyTable("torch", "2", f"a processor {HOSTILE}", 1, 1, 0.5, times),
    }


@pytest.fixture(scope="module")
def odd_audit() -> qc.AuditReport:
    torch.manual_seed(0)
    inputs = torch.randn(90, 4)
    net, other = nn.Linear(4, 3), nn.Linear(4, 3)
    return qc.audit(net, other, [(inputs, net(inputs).argmax(1))])


NAMES = ("result", "plan", "table", "solution", "problem", "audit", "latency")


@pytest.mark.parametrize("name", NAMES)
def test_fragments_are_small_well_formed_and_without_script_or_colour(shown: dict[str, Any], name: str) -> None:
    text = shown[name]._repr_html_()
    assert len(text) < 12_000
    minidom.parseString(text)
    assert not re.search(r"<script|<style|color:|background|https?:|\x1b|in<b>", text)
    assert "<table" in text and len(repr(shown[name])) > 0


def test_they_say_what_counts(shown: dict[str, Any]) -> None:
    result, text = shown["result"], shown["result"]._repr_html_()
    for said in ("Gained: ", "Lost: ", "Can the prediction be trusted?", "this plan", "uniform", "additive", "greedy"):
        assert said in text
    assert f"{result.plan.bytes:,}" in text and f"{result.plan.bytes:,}" in shown["plan"]._repr_html_()
    assert "in&lt;b&gt;&amp;$x$.weight" in shown["table"]._repr_html_()
    assert str(result.table.provenance.examples) in shown["table"]._repr_html_()
    assert "proven optimal" in shown["solution"]._repr_html_() or "below" in shown["solution"]._repr_html_()
    audit = shown["audit"]
    assert f"{audit.harmful} right answers were lost" in audit._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;\\x1b[31m" in shown["latency"]._repr_html_()


def test_the_text_of_a_result_is_one_line(result: CompressionResult) -> None:
    assert "\n" not in repr(result) and "times smaller" in repr(result) and len(repr(result)) < 400


def test_a_problem_tells_which_totals_are_possible() -> None:
    problem = qc.ChoiceProblem.random(kind="dense", groups=5, choices=4, seed=0)
    text = problem._repr_html_()
    most = problem.fixed_costs[0] + sum(
        problem.costs[0, start:stop].max()
        for start, stop in np.lib.stride_tricks.sliding_window_view(problem.group_offsets, 2)
    )
    for value in (problem.limits[0], problem.smallest_totals()[0], most):
        assert f"{int(value):,}" in text


def test_regression_audits_show_how_far_numbers_moved() -> None:
    torch.manual_seed(0)
    net, other, inputs = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(20, 3)
    report = qc.audit(net, other, [(inputs, torch.randn(20, 2))], loss="squared-error")
    text = report._repr_html_()
    minidom.parseString(text)
    assert all(row[0] in text for row in report.regression.rows())


def test_long_tables_are_cut_and_say_so() -> None:
    text = fragment(HOSTILE, [HOSTILE], [HOSTILE, "n"], ([HOSTILE, str(n)] for n in range(1000)), more=f" {HOSTILE}")
    assert text.count("<tr>") == 1 + MOST_ROWS and f"and {1000 - MOST_ROWS} more" in text
    assert "<script" not in text and "\x1b" not in text
