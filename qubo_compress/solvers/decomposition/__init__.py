"""Decomposition: solves one block of groups after another with the rest fixed."""

from __future__ import annotations

from qubo_compress.solvers.decomposition.decomposition import Decomposition, QpuDecomposition

__all__ = ["Decomposition", "QpuDecomposition"]
