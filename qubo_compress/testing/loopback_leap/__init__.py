"""A stand-in for D-Wave Leap on 127.0.0.1, for tests and experiments. Nothing in it is quantum.

It speaks the solver API to the unmodified ``dwave-cloud-client`` and answers with classical solvers. See README.md.
"""

from qubo_compress.testing.loopback_leap.faults import Fault, Faults
from qubo_compress.testing.loopback_leap.server import LoopbackLeap
from qubo_compress.testing.loopback_leap.topology import ADVANTAGE2, Chip

__all__ = ["ADVANTAGE2", "Chip", "Fault", "Faults", "LoopbackLeap"]
