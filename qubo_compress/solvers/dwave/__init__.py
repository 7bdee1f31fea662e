"""D-Wave's machines: the hybrid solvers of Leap, and quantum processors asked directly."""

from __future__ import annotations

from qubo_compress.solvers.dwave.connection import Connection
from qubo_compress.solvers.dwave.leap import LeapBQM, LeapCQM, LeapDQM, LeapNonlinear, Preview, preview
from qubo_compress.solvers.dwave.qpu import Qpu

__all__ = ["Connection", "LeapBQM", "LeapCQM", "LeapDQM", "LeapNonlinear", "Preview", "Qpu", "preview"]
