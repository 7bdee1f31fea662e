"""The choice problem: one choice per group at the least energy within the budgets."""

from __future__ import annotations

from qubo_compress.problem.choice_problem import ChoiceProblem

__all__ = ["ChoiceProblem"]
