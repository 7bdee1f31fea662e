"""Conformance suites for plug-ins: the library's own pass them, and so should yours."""

from __future__ import annotations

from qubo_compress.testing.metrics import check_metric, same_snapshot, same_table, snapshot
from qubo_compress.testing.operators import check_operator, sample_groups
from qubo_compress.testing.solvers import brute_force, check_solver

__all__ = [
    "brute_force",
    "check_metric",
    "check_operator",
    "check_solver",
    "same_snapshot",
    "same_table",
    "sample_groups",
    "snapshot",
]  # fmt: skip
