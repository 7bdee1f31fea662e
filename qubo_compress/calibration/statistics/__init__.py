"""Statistics of the calibration data that operators may request, gathered group by group."""

from __future__ import annotations

from qubo_compress.calibration.statistics.statistic import Calibration, Statistic

__all__ = ["Calibration", "Statistic"]
