"""Milliseconds as one more cost of every choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qubo_compress.budget import LATENCY
from qubo_compress.errors import InvalidBudget
from qubo_compress.latency import LatencyTable
from qubo_compress.network.groups import Layout
from qubo_compress.problem.choice_problem import IntArray


def with_latency(
    latency: LatencyTable,
    layout: Layout,
    choices: Sequence[Sequence[str]],
    costs: Mapping[str, IntArray],
    fixed_costs: Mapping[str, int],
) -> tuple[dict[str, IntArray], dict[str, int]]:
    """Costs and fixed costs with those of a latency table, in nanoseconds.

    Args:
        latency: the table.
        layout: the groups.
        choices: for every group, the names of its choices.
        costs: the others of every choice, by budget name.
        fixed_costs: the others of the rest.

    Raises:
        InvalidBudget: when the table is of another network, or lacks a choice.
    """
    unknown = [
        group.name
        for group, offered in zip(layout.groups, choices, strict=True)
        if group.kind == "weight" and len(offered) > 1 and not latency.knows(group.name)
    ]
    if unknown:
        raise InvalidBudget(
            f"the latency table has no times for {unknown[0]}: make one for this network, menu and grouping with "
            "qc.latency_table"
        )
    other = [g for g in layout.groups if g.name in latency.sizes and g.numel != latency.sizes[g.name]]
    if other:
        raise InvalidBudget(
            f"the latency table was made for a network whose {other[0].name} has {latency.sizes[other[0].name]:,} "
            f"weights; this one's has {other[0].numel:,}: make a table for this network with qc.latency_table"
        )
    found = latency.costs([group.name for group in layout.groups], choices)
    return {**costs, LATENCY: found}, {**fixed_costs, LATENCY: latency.fixed_cost}
