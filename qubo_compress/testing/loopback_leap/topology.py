"""Solver records of simulated annealing chips: Zephyr and Pegasus graphs, complete or with missing parts."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from dwave.cloud.testing.mocks import qpu_pegasus_solver_data, qpu_problem_timing_data, qpu_zephyr_solver_data

from qubo_compress.testing.loopback_leap.tasks import NOTE

PARAMETERS = {
    "anneal_schedule": "Piecewise linear schedule, (microseconds, s) pairs; starting at s=1: reverse annealing.",
    "annealing_time": "Microseconds per anneal: sweeps of the simulated annealing in proportion.",
    "answer_mode": "'histogram' (default): distinct samples, least energy first; or 'raw'.",
    "auto_scale": "Scale biases into their ranges (default).",
    "flux_drift_compensation": "Accepted; there is no drift.",
    "initial_state": "Spin of each qubit, 3 where unused, for reverse annealing.",
    "label": "Problem label.",
    "max_answers": "Most samples to return.",
    "num_reads": "Number of samples.",
    "programming_thermalization": "Microseconds; only counted in the timing.",
    "readout_thermalization": "Microseconds; only counted in the timing.",
    "reduce_intersample_correlation": "Only counted in the timing.",
    "reinitialize_state": "Start every reverse anneal from initial_state (default), or from the last sample.",
}


@dataclass(frozen=True)
class Chip:
    """A simulated annealing chip.

    Args:
        topology: ``"zephyr"`` or ``"pegasus"``.
        size: grid size m; large real chips have 12 and 16.
        missing_qubits: how many random qubits to remove.
        missing_couplers: how many of the remaining couplers to remove at random.
        seed: decides which.

    Raises:
        ValueError: for another topology, or when more must be missing than exist.

    Example:
        >>> record = Chip("zephyr", 2, missing_qubits=3).record()
        >>> record["identity"]["name"], len(record["properties"]["qubits"]), record["properties"]["num_qubits"]
        ('loopback_zephyr2', 157, 160)
    """

    topology: str = "zephyr"
    size: int = 4
    missing_qubits: int = 0
    missing_couplers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.topology not in ("zephyr", "pegasus"):
            raise ValueError(f"topology must be 'zephyr' or 'pegasus'; got {self.topology!r}")
        if self.size < (1 if self.topology == "zephyr" else 2):
            raise ValueError(f"a {self.topology} graph of size {self.size} has no couplers")

    @property
    def name(self) -> str:
        """The name of the chip's solver."""
        return f"loopback_{self.topology}{self.size}"

    def record(self) -> dict[str, Any]:
        """The solver record in the solver API's format."""
        make = qpu_zephyr_solver_data if self.topology == "zephyr" else qpu_pegasus_solver_data
        whole = make(self.size)["properties"]
        qubits, couplers = self._working_graph(whole["qubits"], whole["couplers"])
        digest = hashlib.sha256(repr((self.topology, self.size, qubits, couplers)).encode()).hexdigest()
        record: dict[str, Any] = make(
            self.size,
            name=self.name,
            graph_id=digest[:10],
            status="ONLINE",
            description=f"{NOTE}. A {self.topology} graph of {len(qubits)} working qubits.",
            avg_load=0.1,
            properties=_chip_properties(self.topology),
            qubits=qubits,
            couplers=couplers,
            num_qubits=whole["num_qubits"],
        )
        return record

    def _working_graph(self, qubits: list[int], couplers: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        rng = np.random.default_rng(self.seed)
        if not 0 <= self.missing_qubits < len(qubits):
            raise ValueError(f"missing_qubits must be within 0 and {len(qubits) - 1}; got {self.missing_qubits}")
        gone = set(rng.choice(qubits, self.missing_qubits, replace=False).tolist())
        qubits = [int(qubit) for qubit in qubits if qubit not in gone]
        couplers = [[int(a), int(b)] for a, b in couplers if a not in gone and b not in gone]
        if not 0 <= self.missing_couplers < len(couplers):
            raise ValueError(f"missing_couplers must be within 0 and {len(couplers) - 1}; got {self.missing_couplers}")
        cut = set(rng.choice(len(couplers), self.missing_couplers, replace=False).tolist())
        return qubits, [coupler for i, coupler in enumerate(couplers) if i not in cut]


ADVANTAGE2 = Chip("zephyr", 12, missing_qubits=223, missing_couplers=400)
"""About as large as the documented Advantage2_system1 (4577 qubits, 41 515 couplers); missing parts are made up."""


def _chip_properties(topology: str) -> dict[str, Any]:
    """Ranges of a real chip; the times follow the documented figures of Advantage2 and are otherwise made up."""
    timing = qpu_problem_timing_data()
    timing.update(
        typical_programming_time=33_600.0 if topology == "zephyr" else 14_073.0,
        # Readout takes 17 us for one qubit and 101 us for 4600, a straight line in logarithms.
        readout_time_model="pwl_log_log",
        readout_time_model_parameters=[0.0, math.log10(4600), math.log10(17.0), math.log10(101.0)],
    )
    return {
        "category": "qpu",
        "chip_id": "loopback",
        "supported_problem_types": ["ising", "qubo"],
        "parameters": dict(PARAMETERS),
        "h_range": [-4.0, 4.0],
        "j_range": [-1.0, 1.0],
        "extended_j_range": [-2.0, 1.0],
        "per_qubit_coupling_range": [-18.0, 15.0],
        "num_reads_range": [1, 10000],
        "annealing_time_range": [0.5, 2000.0],
        "default_annealing_time": timing["default_annealing_time"],
        "max_anneal_schedule_points": 12,
        "programming_thermalization_range": [0.0, 10000.0],
        "default_programming_thermalization": timing["default_programming_thermalization"],
        "readout_thermalization_range": [0.0, 10000.0],
        "default_readout_thermalization": timing["default_readout_thermalization"],
        "problem_run_duration_range": [0.0, 1_000_000.0],
        "problem_timing_data": timing,
        "quota_conversion_rate": 1,
        "tags": [],
    }
