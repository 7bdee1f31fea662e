"""Recovery: repairing a compressed network without leaving its plan's grid or bytes."""

from __future__ import annotations

from qubo_compress.recovery.objectives import Distillation, LabelPreserving, Plain, RecoveryObjective, objectives
from qubo_compress.recovery.recover import recover

__all__ = ["Distillation", "LabelPreserving", "Plain", "RecoveryObjective", "objectives", "recover"]
