"""Conformance suites for plug-ins: the library's own plug-ins pass them, and so should yours."""

from __future__ import annotations

from qubo_compress.testing.metrics import check_metric, same_snapshot, same_table, snapshot
from qubo_compress.testing.operators import check_faithful, check_operator, registered_samples, sample_groups
from qubo_compress.testing.solvers import brute_force, check_solver

__all__ = [
    "brute_force",
    "check_faithful",
    "check_metric",
    "check_operator",
    "check_solver",
    "registered_samples",
    "same_snapshot",
    "same_table",
    "sample_groups",
    "snapshot",
]  # fmt: skip
