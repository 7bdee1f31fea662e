"""What networks and their layers take on a processor: tables of milliseconds for :class:`qubo_compress.Budget`."""

from __future__ import annotations

from qubo_compress.latency import LatencyTable
from qubo_compress.timing.elsewhere import Elsewhere, InRuntime, run_elsewhere
from qubo_compress.timing.runtimes import measured_latency
from qubo_compress.timing.tables import latency_table

__all__ = ["Elsewhere", "InRuntime", "LatencyTable", "latency_table", "measured_latency", "run_elsewhere"]
