"""Compress trained PyTorch networks by solving one combinatorial problem."""

from __future__ import annotations

from qubo_compress import menu, sensitivity, solvers
from qubo_compress.budget import Budget
from qubo_compress.errors import QuboCompressError
from qubo_compress.menu import Menu
from qubo_compress.plan import Plan
from qubo_compress.problem import ChoiceProblem
from qubo_compress.sensitivity import SensitivityTable, measure
from qubo_compress.solvers import Solution, solve

__all__ = [
    "Budget", "ChoiceProblem", "Menu", "Plan", "QuboCompressError", "SensitivityTable", "Solution",
    "measure", "menu", "sensitivity", "solve", "solvers",
]  # fmt: skip
