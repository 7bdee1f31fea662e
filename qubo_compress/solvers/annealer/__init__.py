"""The categorical annealer: this library's own solver for coupled choices under budgets."""

from __future__ import annotations

from qubo_compress.solvers.annealer.annealer import Annealer

__all__ = ["Annealer"]
