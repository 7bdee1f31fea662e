"""What the compressed network forgot."""

from __future__ import annotations

from qubo_compress.audits.audit import AuditReport, audit
from qubo_compress.audits.churn import Churn, churn
from qubo_compress.audits.classes import ClassChange
from qubo_compress.audits.exemplars import ClassShift, Exemplars, find_exemplars
from qubo_compress.audits.long_tail import Forgotten, TailWeights, tail_weights
from qubo_compress.audits.margins import MarginBin
from qubo_compress.audits.memorization import Memorization, influence, memorization, memorization_of
from qubo_compress.audits.mismatches import Mismatches, population, predictions
from qubo_compress.audits.regression import LargestChange, RegressionChange
from qubo_compress.calibration.intervals import Correlation, corrected, mcnemar, paired_change, spearman, wilson

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
