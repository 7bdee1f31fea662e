"""Statistics: what operators may ask of the calibration data, gathered group by group."""

from __future__ import annotations

from qubo_compress.calibration.statistics.statistic import Calibration, Statistic

__all__ = ["Calibration", "Statistic"]
