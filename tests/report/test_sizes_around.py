"""The front around the budget in the report: what it leaves out, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest

import qubo_compress as qc
from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import facts
from qubo_compress.report import front as front_of
from qubo_compress.report.html import page


def test_front_skips_what_is_out_of_reach(result: CompressionResult, plain: Callable[[str], str]) -> None:
    front = front_of.find_front(dataclasses.replace(result, budget=qc.Budget(ratio=60.0)), 0.05)
    assert not front.points
    assert [ratio for ratio, _ in front.missing] == pytest.approx([60.0 * factor for factor in front_of.FRONT_FACTORS])
    assert all("out of reach" in reason for _, reason in front.missing)
    assert "30 times smaller: out of reach" in plain(page(result, front))


@pytest.mark.usefixtures("undrawn")
def test_front_keeps_the_budgets_other_limits(
    compressed: Callable[..., CompressionResult], plain: Callable[[str], str]
) -> None:
    free = compressed(rounds=0, recover=False)
    used = front_of.find_front(free, 0.3).points[0]
    costs = free.table.costs["macs"]
    fixed = free.table.fixed_costs.get("macs", 0)

    def macs(choices: Mapping[str, str]) -> int:
        return fixed + int(costs[facts.chosen_indices(free.table, choices)].sum())

    limit = macs(used.plan.choices) - 1
    tight = dataclasses.replace(free, budget=qc.Budget(ratio=2.0, macs=limit))
    front = front_of.find_front(tight, 0.3)
    assert front.points
    assert all(macs(point.plan.choices) <= limit for point in front.points)
    assert "The budget's limits on macs hold for them too." in plain(page(tight, front))
    assert "hold for them too" not in plain(page(free, front))


def test_front_names_the_limits_that_put_a_ratio_out_of_reach() -> None:
    problem = qc.ChoiceProblem(
        linear=np.zeros(2), group_offsets=np.array([0, 2]), costs=np.array([[10, 2], [3, 9]]), limits=np.array([5, 5]),
        budget_names=("bytes", "harmful_flips"),
    )  # fmt: skip
    assert front_of._out_of_reach(problem) == "out of reach within the limits on harmful flips"
    assert front_of._out_of_reach(problem.with_limits([1, 5])) == "out of reach; the smallest reachable file is 2 B"


def test_sizes_are_shares_of_the_whole_network_where_the_table_is_about_the_rest(result: CompressionResult) -> None:
    whole = dataclasses.replace(result.plan, original_bytes=2 * result.plan.original_bytes)
    rest = dataclasses.replace(result, plan=whole, budget=qc.Budget(ratio=4.0))
    assert facts.budget_rows(rest) == facts.budget_rows(result), "half of the bytes, twice the ratio"
    found, expected = front_of.find_front(rest, 0.05), front_of.find_front(result, 0.05)
    # Half of the first size is no smaller than the table's network, but is smaller than the whole one.
    assert [point.plan.bytes for point in found.points][-len(expected.points) :] == [
        point.plan.bytes for point in expected.points
    ]
    asked = [ratio for ratio, _ in found.missing] + [2 * point.ratio for point in found.points]
    assert sorted(asked) == pytest.approx([4.0 * factor for factor in front_of.FRONT_FACTORS])
