"""Decomposition: one block of groups after the other, the rest held."""

from __future__ import annotations

from qubo_compress.solvers.decomposition.decomposition import Decomposition, QpuDecomposition

__all__ = ["Decomposition", "QpuDecomposition"]
