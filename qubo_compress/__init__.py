"""Compress trained PyTorch networks by solving one combinatorial problem."""

from __future__ import annotations

from qubo_compress.errors import QuboCompressError
from qubo_compress.problem import ChoiceProblem
from qubo_compress.solvers import Solution, solve

__all__ = ["ChoiceProblem", "QuboCompressError", "Solution", "solve"]
