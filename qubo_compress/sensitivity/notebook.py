"""What a notebook shows of a sensitivity table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from qubo_compress._internal.notebook import fragment
from qubo_compress.page.numbers import signed

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable


def table_html(table: SensitivityTable) -> str:
    """How it was measured, and what the smallest choice of every group saves and costs alone."""
    facts = table.provenance
    pairs = "no pair energies"
    if table.factor is not None:
        pairs = f"all pair energies as a factor of rank {table.factor.shape[1]:,}, trusted to {100 * facts.trust:.0f} %"
    elif table.pairs is not None:
        pairs = f"{table.pairs.nnz // 2:,} pair energies"
    return fragment(
        f"SensitivityTable: {table.linear.size:,} choices for {len(table.choices):,} groups",
        [
            f"Metric {facts.metric}, loss {facts.loss}, {facts.examples:,} examples, {facts.seconds:.1f} s; {pairs}.",
            "Below: every group's smallest choice, alone, with all other groups kept.",
        ],
        ["group", "smallest choice", "choices", "bytes kept", "bytes", "loss change"],
        _rows(table),
        names=2,
        more="; table.linear and table.costs have all choices",
    )


def _rows(table: SensitivityTable) -> Iterator[list[str]]:
    sizes, ends = table.costs["bytes"], table.offsets.tolist()
    for name, choices, start, stop in zip(table.group_names, table.choices, ends[:-1], ends[1:], strict=True):
        least = start + int(np.argmin(sizes[start:stop]))
        yield [
            name, choices[least - start], f"{stop - start:,}", f"{int(sizes[start]):,}", f"{int(sizes[least]):,}",
            signed(float(table.linear[least])),
        ]  # fmt: skip
