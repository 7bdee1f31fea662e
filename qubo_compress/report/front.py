"""The best plans at other sizes than the report's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qubo_compress.budget import LATENCY
from qubo_compress.errors import InfeasibleBudget
from qubo_compress.page.numbers import size
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.selection.front import FrontPoint, SolveSettings, try_ratios

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult

FRONT_FACTORS = (0.5, 0.7, 1.0, 1.25, 1.6, 2.0)
"""Ratios of the Pareto front, as multiples of the budget's."""


@dataclass(frozen=True)
class Front:
    """A Pareto front, and the ratios that are out of reach.

    Attributes:
        points: found, by ratio.
        missing: ratios asked for but not reached, with the reason.
    """

    points: tuple[FrontPoint, ...]
    missing: tuple[tuple[float, str], ...]


def find_front(result: CompressionResult, seconds_per_point: float) -> Front:
    """Solve again for ratios around the budget, within all its other limits; measures nothing."""
    plan, layout = result.plan, result.table.layout
    limit = result.budget.limits(plan.original_bytes, plan.parameters)["bytes"]
    asked = result.budget.ratio or plan.original_bytes / max(1, limit)
    ratios = [ratio for ratio in (float(f"{factor * asked:.3g}") for factor in FRONT_FACTORS) if ratio > 1]
    # The table may be about what is left of the network; sizes are told as shares of the whole.
    left = layout.original_bytes / plan.original_bytes
    points: list[FrontPoint] = []
    missing: list[tuple[float, str]] = []
    settings = SolveSettings(time_limit=seconds_per_point)
    scaled = [ratio * left for ratio in ratios]
    for ratio, found in zip(ratios, try_ratios(result.table, scaled, settings, within=result.budget), strict=True):
        if isinstance(found, FrontPoint):
            points.append(found)
        elif isinstance(found, InfeasibleBudget):
            missing.append((ratio, _out_of_reach(result.table.problem(result.budget.resized(ratio * left)))))
        else:
            missing.append((ratio, "no plan that fits was found in the time given"))
    return Front(tuple(points), tuple(missing))


def _out_of_reach(problem: ChoiceProblem) -> str:
    place = problem.budget_names.index("bytes")
    least = int(problem.smallest_totals()[place])
    if least > problem.limits[place]:
        return f"out of reach; the smallest reachable file is {size(least)}"
    return f"out of reach within the limits on {limit_names(problem.budget_names)}"


def limit_names(names: Sequence[str]) -> str:
    """The names of the limits other than bytes, as text; "" if there are none.

    Example:
        >>> limit_names(("bytes", "macs", "harmful_flips"))
        'macs and harmful flips'
        >>> limit_names(("bytes", "latency_ns"))
        'latency'
    """
    others = (name for name in names if name != "bytes")
    return " and ".join("latency" if name == LATENCY else name.replace("_", " ") for name in others)
