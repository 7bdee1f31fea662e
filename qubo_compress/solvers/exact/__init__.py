"""Exact solvers with proofs: branch and bound, dynamic programming, relaxations, and checks of their bounds."""

from __future__ import annotations

from qubo_compress.solvers.exact.exact import Exact

__all__ = ["Exact"]
