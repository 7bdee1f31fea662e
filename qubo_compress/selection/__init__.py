"""Selection of plans: candidates of every kind, compared on held-out examples; and the best plan at every size."""

from __future__ import annotations

from qubo_compress.selection.candidates import Candidate, select
from qubo_compress.selection.front import pareto

__all__ = ["Candidate", "pareto", "select"]
