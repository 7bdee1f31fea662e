"""What the compressed network forgot."""

from __future__ import annotations

from qubo_compress.audit.audit import AuditReport, audit
from qubo_compress.audit.churn import Churn, churn
from qubo_compress.audit.classes import ClassChange
from qubo_compress.audit.exemplars import ClassShift, Exemplars, find_exemplars
from qubo_compress.audit.intervals import Correlation, corrected, mcnemar, paired_change, spearman, wilson
from qubo_compress.audit.long_tail import Forgotten, TailWeights, tail_weights
from qubo_compress.audit.margins import MarginBin
from qubo_compress.audit.memorization import Memorization, influence, memorization, memorization_of
from qubo_compress.audit.mismatches import Mismatches, population, predictions
from qubo_compress.audit.regression import LargestChange, RegressionChange

__all__ = [
    "AuditReport",
    "Churn",
    "ClassChange",
    "ClassShift",
    "Correlation",
    "Exemplars",
    "Forgotten",
    "LargestChange",
    "MarginBin",
    "Memorization",
    "Mismatches",
    "RegressionChange",
    "TailWeights",
    "audit",
    "churn",
    "corrected",
    "find_exemplars",
    "influence",
    "mcnemar",
    "memorization",
    "memorization_of",
    "paired_change",
    "population",
    "predictions",
    "spearman",
    "tail_weights",
    "wilson",
]
