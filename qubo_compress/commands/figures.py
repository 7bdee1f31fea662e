"""What a table says about its network before a budget is set: multiplications, and the range of every limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from qubo_compress.budget import MILLION
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.sensitivity import SensitivityTable

BUDGETS = "budgets"
"""The key of these figures in an answer."""

EIGHT = "quantize(bits=8,activations=8)"
"""Weights and inputs of 8 bits: what integer kernels compute with."""

SAID = {
    "smallest": "smallest reachable", "keep": "the network as it is", "eight_bit": "8-bit weights and inputs",
    "largest": "largest",
}  # fmt: skip

FLIPS = "harmful_flips"


def figures(table: SensitivityTable) -> dict[str, dict[str, float]]:
    """Budget name -> totals that a plan of the table can have.

    ``smallest`` and ``largest`` bound the budgets worth setting, each on its own; ``keep`` is the network as it is;
    ``eight_bit``, if any layer is offered it, has 8-bit weights and inputs wherever that is offered. Flips are a share
    of the examples.
    """
    found = {}
    kept = _total_of(table, "keep")
    eight = _total_of(table, EIGHT) if EIGHT in table.menu_names else None
    starts = table.offsets[:-1]
    for name, costs in table.costs.items():
        fixed, scale = table.fixed_costs.get(name, 0), MILLION if name == FLIPS else 1
        least = np.where(table.allowed, costs, np.iinfo(np.int64).max)
        most = np.where(table.allowed, costs, np.iinfo(np.int64).min)
        totals = {
            "smallest": np.minimum.reduceat(least, starts).sum(), "keep": costs[kept].sum(),
            "largest": np.maximum.reduceat(most, starts).sum(),
        }  # fmt: skip
        if eight is not None:
            totals["eight_bit"] = costs[eight].sum()
        found[name] = {key: _plain(int(total) + fixed, scale) for key, total in totals.items()}
    return found


def shown_figures(found: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """A table with one row for each budget, or nothing."""
    if not found:
        return []
    columns = {name: said for name, said in SAID.items() if any(name in totals for totals in found.values())}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("budget")
    for said in columns.values():
        table.add_column(said, justify="right")
    for name, totals in found.items():
        table.add_row(name, *(f"{totals[column]:,}" for column in columns))
    return [table]


def counted(table: SensitivityTable) -> dict[str, Any]:
    """The multiplications of the network and the range of every budget, for ``--json``."""
    return {"multiplications": int(table.provenance.multiplications), BUDGETS: figures(table)}


def _total_of(table: SensitivityTable, choice: str) -> IntArray:
    """(G,) index of a choice in every group; of ``keep`` where it is not offered."""
    pairs = zip(table.offsets[:-1], table.choices, strict=True)
    return np.array(
        [start + names.index(choice if choice in names else "keep") for start, names in pairs], dtype=np.int64
    )


def _plain(total: int, scale: int) -> float:
    return total if scale == 1 else total / scale
