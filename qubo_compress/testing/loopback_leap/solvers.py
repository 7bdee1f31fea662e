"""The solvers on offer: chips and hybrid solvers, with their records and the classical code behind each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dwave.cloud.testing import mocks

from qubo_compress.testing.loopback_leap import binary, constrained, discrete, nonlinear, qpu
from qubo_compress.testing.loopback_leap.tasks import NOTE, Solve
from qubo_compress.testing.loopback_leap.topology import Chip

SHORT_MINIMUM = 0.2
"""Default least time limit of a hybrid solver, in seconds, instead of the documented ones."""

# As documented in July 2026, (size, seconds); the size is variables for binary models and
# interactions x cases / variables for discrete ones.
_BINARY_TIMES = [[1, 3], [1024, 3], [4096, 10], [10000, 40], [30000, 200], [100000, 600], [1000000, 600]]
_DISCRETE_TIMES = [
    [1, 5], [20000, 5], [100000, 6], [200000, 13], [500000, 34], [1000000, 71], [2000000, 152], [5000000, 250],
    [20000000, 400], [250000000, 1200],
]  # fmt: skip
_CONSTRAINED_TIMES = {
    "minimum_time_limit_s": 5.0,
    "num_variables_multiplier": 1.57e-4,
    "num_biases_multiplier": 4.65e-6,
    "num_constraints_multiplier": 6.44e-9,
}
_NONLINEAR_TIMES = {
    "min_time_limit": 5.0,
    "offset": 0.012671678446550175,
    "num_nodes_multiplier": 8.306792043756981e-05,
    "state_size_multiplier": 2.8379674360396316e-10,
    "num_nodes_state_size_multiplier": 2.1097317822863966e-12,
}
_LONGEST_HOURS = 24


@dataclass(frozen=True)
class Offered:
    """An offered solver: its record, and the function that answers its problems."""

    record: dict[str, Any]
    solve: Solve

    @property
    def name(self) -> str:
        """The solver's name in its record."""
        return str(self.record["identity"]["name"])


def offered_solvers(chips: Sequence[Chip], minimum_time: float, documented_times: bool) -> dict[str, Offered]:
    """All solvers by name.

    Args:
        chips: the chips to offer.
        minimum_time: least time limit of every hybrid solver, in seconds.
        documented_times: use the documented minimum times instead, which grow with the problem.
    """
    scale = None if documented_times else minimum_time
    found = [Offered(chip.record(), qpu.solve) for chip in chips] + [
        Offered(_binary_record(scale), binary.solve),
        Offered(_constrained_record(scale), constrained.solve),
        Offered(_discrete_record(scale), discrete.solve),
        Offered(_nonlinear_record(scale), nonlinear.solve),
    ]
    names = [solver.name for solver in found]
    if len(set(names)) != len(names):
        raise ValueError(f"two chips have the same name: {', '.join(sorted(names))}; give each another size")
    return {solver.name: solver for solver in found}


def _common(name: str, version: str) -> dict[str, Any]:
    return {
        "name": f"loopback_hybrid_{name}",
        "status": "ONLINE",
        "avg_load": 0.1,
        "description": f"{NOTE}. Takes the place of a hybrid solver.",
        "version": version,
        "category": "hybrid",
        "quota_conversion_rate": 20,
        "maximum_time_limit_hrs": _LONGEST_HOURS,
        "parameters": {"time_limit": "Seconds to work for.", "label": "Problem label."},
    }


def _table(documented: list[list[int]], minimum: float | None) -> list[list[float]]:
    if minimum is None:
        return [[float(size), float(seconds)] for size, seconds in documented]
    return [[float(documented[0][0]), minimum], [float(documented[-1][0]), minimum]]


def _shortened(documented: dict[str, float], minimum: float | None) -> dict[str, float]:
    """All times scaled in proportion to the least one."""
    if minimum is None:
        return dict(documented)
    least = next(seconds for name, seconds in documented.items() if name.startswith("min"))
    return {name: seconds * minimum / least for name, seconds in documented.items()}


def _binary_record(minimum: float | None) -> dict[str, Any]:
    record: dict[str, Any] = mocks.hybrid_bqm_solver_data(
        **_common("bqm", "2.2"),
        minimum_time_limit=_table(_BINARY_TIMES, minimum),
        maximum_number_of_variables=1_000_000,
        maximum_number_of_biases=200_000_000,
    )
    return record


def _constrained_record(minimum: float | None) -> dict[str, Any]:
    record: dict[str, Any] = mocks.hybrid_cqm_solver_data(
        **_common("cqm", "1.13"),
        **_shortened(_CONSTRAINED_TIMES, minimum),
        maximum_number_of_variables=5_000_000,
        maximum_number_of_biases=750_000_000,
        maximum_number_of_constraints=100_000,
        maximum_number_of_quadratic_variables=5_000_000,
    )
    return record


def _discrete_record(minimum: float | None) -> dict[str, Any]:
    record: dict[str, Any] = mocks.hybrid_dqm_solver_data(
        **_common("dqm", "1.12"),
        minimum_time_limit=_table(_DISCRETE_TIMES, minimum),
        maximum_number_of_variables=5_000,
        maximum_number_of_cases=500_000,
        maximum_number_of_biases=5_000_000_000,
    )
    return record


def _nonlinear_record(minimum: float | None) -> dict[str, Any]:
    record: dict[str, Any] = mocks.hybrid_nl_solver_data(
        **_common("nl", "1.10"),
        **_shortened(_NONLINEAR_TIMES, minimum),
        maximum_number_of_nodes=2_000_000,
        maximum_number_of_states=1,
        maximum_decision_state_size=50_000_000,
        maximum_state_size=750_000_000,
    )
    return record
