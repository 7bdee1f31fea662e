"""Decomposition: solves one block of groups after the other while the rest is fixed."""

from __future__ import annotations

from qubo_compress.solvers.decomposition.decomposition import Decomposition, QpuDecomposition

__all__ = ["Decomposition", "QpuDecomposition"]
