"""Answers of the simulated chips: simulated annealing of the Ising problem as sent, qubit by qubit.

The schedule of a chip, s(t) from 0 to 1, is taken as a schedule of inverse temperatures that grows
geometrically with s; a schedule that starts at s = 1 starts from the given state (reverse annealing).
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dimod
import numpy as np
import numpy.typing as npt
from dwave.samplers import SimulatedAnnealingSampler

from qubo_compress.testing.loopback_leap.tasks import NOTE, Answer, ProblemRejected, Task

_FEWEST_SWEEPS, _MOST_SWEEPS = 10, 2000
_UNUSED = 3
"""The value of unused qubits in ``initial_state``."""

Points = list[tuple[float, float]]


def solve(task: Task) -> Answer:
    """Draw ``num_reads`` samples.

    Raises:
        ProblemRejected: when the problem does not fit the chip, a parameter is out of range, or the chip
            would be busy for longer than it may.
    """
    qubits, model = decode_problem(task.data, task.properties, task.type)
    reads = _number(task, "num_reads", 1, task.properties["num_reads_range"])
    if reads != int(reads):
        raise ProblemRejected(f"num_reads must be an integer; got {reads}")
    points = _schedule(task)
    timing = timing_of(task.properties, len(qubits), int(reads), points, task.params)
    longest = task.properties["problem_run_duration_range"][1]
    if timing["qpu_access_time"] > longest:
        raise ProblemRejected(
            f"the problem would take {timing['qpu_access_time']} us of the chip and may take {longest:g}; lower "
            f"num_reads ({int(reads)}) or annealing_time ({points[-1][0]:g} us)"
        )
    samples = _anneal(task, model, qubits, int(reads), points)
    return Answer(_encode_answer(task, model, qubits, samples, timing))


def decode_problem(
    data: Mapping[str, Any], properties: Mapping[str, Any], kind: str
) -> tuple[npt.NDArray[np.int64], dimod.BinaryQuadraticModel]:
    """The active qubits, and a model over their positions; the client handles the offset.

    ``lin`` holds a float64 per qubit of the chip, NaN where it is not used; ``quad`` one per coupler
    whose two ends are both used.

    Raises:
        ProblemRejected: when the arrays have other lengths.
    """
    if data.get("format") != "qp":
        raise ProblemRejected(f"problems for a chip have format 'qp'; got {data.get('format')!r}")
    linear = np.frombuffer(base64.b64decode(data["lin"]), dtype="<f8")
    quadratic = np.frombuffer(base64.b64decode(data["quad"]), dtype="<f8")
    all_qubits = np.array(properties["qubits"], dtype=np.int64)
    couplers = np.array(properties["couplers"], dtype=np.int64).reshape(-1, 2)
    if linear.size != all_qubits.size:
        raise ProblemRejected(f"there are {linear.size} linear biases for {all_qubits.size} qubits")
    qubits = all_qubits[~np.isnan(linear)]
    if qubits.size == 0:
        raise ProblemRejected("no qubit is used")
    position = np.full(properties["num_qubits"], -1)
    position[qubits] = np.arange(qubits.size)
    ends = position[couplers]
    ends = ends[(ends >= 0).all(axis=1)]
    if quadratic.size != len(ends):
        raise ProblemRejected(
            f"there are {quadratic.size} quadratic biases for {len(ends)} couplers between used qubits"
        )
    used = quadratic != 0
    model = dimod.BinaryQuadraticModel.from_numpy_vectors(
        linear[~np.isnan(linear)], (ends[used, 0], ends[used, 1], quadratic[used]), 0.0,
        dimod.SPIN if kind == "ising" else dimod.BINARY,
    )  # fmt: skip
    return qubits, model


def full_scale(model: dimod.BinaryQuadraticModel, properties: Mapping[str, Any]) -> float:
    """The divisor of a spin model's biases with which they fill the ranges of the chip exactly.

    Example:
        >>> from qubo_compress.testing.loopback_leap import Chip
        >>> properties = Chip("zephyr", 1).record()["properties"]
        >>> full_scale(dimod.BinaryQuadraticModel({0: 6.0}, {(0, 1): -4.0}, "SPIN"), properties)
        2.0
    """
    vectors = model.to_numpy_vectors()
    rows, columns, couplings = vectors.quadratic.row_indices, vectors.quadratic.col_indices, vectors.quadratic.biases
    sums = np.zeros(model.num_variables)
    np.add.at(sums, rows, couplings)
    np.add.at(sums, columns, couplings)
    ratios = [0.0]
    for values, limits in (
        (vectors.linear_biases, "h_range"),
        (couplings, "extended_j_range"),
        (sums, "per_qubit_coupling_range"),
    ):
        if values.size:
            low, high = properties[limits]
            ratios += [float(values.min()) / low, float(values.max()) / high]
    return max(ratios) or 1.0


@dataclass(frozen=True)
class _Betas:
    """Inverse temperatures at s = 0 and s = 1."""

    hot: float
    cold: float

    @staticmethod
    def of(model: dimod.BinaryQuadraticModel, temperature: float | None) -> _Betas:
        vectors = model.to_numpy_vectors()
        couplings = np.abs(vectors.quadratic.biases)
        field = np.abs(vectors.linear_biases)
        np.add.at(field, vectors.quadratic.row_indices, couplings)
        np.add.at(field, vectors.quadratic.col_indices, couplings)
        sizes = np.concatenate([np.abs(vectors.linear_biases), couplings])
        sizes = sizes[sizes > 0]
        if not sizes.size:
            return _Betas(1.0, 1.0)
        hot = math.log(2) / (2 * float(field.max()))
        cold = math.log(100) / (2 * float(np.quantile(sizes, 0.25)))
        if temperature is not None:
            cold = min(cold, 1 / temperature)
        return _Betas(min(hot, cold), cold)

    def at(self, s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return self.hot * (self.cold / self.hot) ** s


def _anneal(
    task: Task, model: dimod.BinaryQuadraticModel, qubits: npt.NDArray[np.int64], reads: int, points: Points
) -> npt.NDArray[np.int8]:
    """(reads, qubits) spins."""
    spin = model.change_vartype(dimod.SPIN, inplace=False)
    scale = full_scale(spin, task.properties)
    if not task.params.get("auto_scale", True):
        if scale > 1:
            raise ProblemRejected(
                "auto_scale is off, and biases are out of range: "
                f"h in {task.properties['h_range']}, J in {task.properties['extended_j_range']}, sum of J per qubit in "
                f"{task.properties['per_qubit_coupling_range']}; they would have to be divided by {scale:.4g}"
            )
        scale = 1.0
    spin.scale(1 / scale)
    length = points[-1][0]
    sweeps = int(np.clip(round(length * task.settings.sweeps_per_microsecond), _FEWEST_SWEEPS, _MOST_SWEEPS))
    s = np.interp(np.linspace(0, length, sweeps), *np.array(points).T)
    betas = _Betas.of(spin, task.settings.chip_temperature).at(s)

    def sample(count: int, start: npt.NDArray[np.int8] | None) -> npt.NDArray[np.int8]:
        found = SimulatedAnnealingSampler().sample(
            spin, num_reads=count, beta_schedule_type="custom", beta_schedule=betas, seed=task.seed,
            initial_states=None if start is None else (start, list(spin.variables)),
            initial_states_generator="random" if start is None else "tile",
            interrupt_function=task.stopped.is_set,
        )  # fmt: skip
        order = [found.variables.index(v) for v in range(len(qubits))]
        return np.asarray(found.record.sample[:, order], dtype=np.int8)

    state = _initial_state(task, qubits, points)
    if state is None or task.params.get("reinitialize_state", True):
        return sample(reads, state)
    rows: list[npt.NDArray[np.int8]] = []
    while len(rows) < reads and not task.stopped.is_set():
        rows.append(sample(1, rows[-1] if rows else state)[0])
    return np.array(rows, dtype=np.int8)


def _schedule(task: Task) -> Points:
    given = task.params.get("anneal_schedule")
    if given is None:
        length = _number(
            task, "annealing_time", task.properties["default_annealing_time"], task.properties["annealing_time_range"]
        )
        return [(0.0, 0.0), (length, 1.0)]
    if "annealing_time" in task.params:
        raise ProblemRejected("give annealing_time or anneal_schedule, not both")
    points = [(float(t), float(s)) for t, s in given]
    times = [t for t, _ in points]
    most = task.properties["max_anneal_schedule_points"]
    if not 2 <= len(points) <= most or times[0] != 0 or any(b <= a for a, b in itertools.pairwise(times)):
        raise ProblemRejected(f"anneal_schedule has 2 to {most} points of growing time from 0 on; got {given}")
    if not all(0 <= s <= 1 for _, s in points) or points[-1][1] != 1:
        raise ProblemRejected(f"anneal_schedule must stay within 0 <= s <= 1 and end at s = 1; got {given}")
    return points


def _initial_state(task: Task, qubits: npt.NDArray[np.int64], points: Points) -> npt.NDArray[np.int8] | None:
    given, reverse = task.params.get("initial_state"), points[0][1] == 1
    if reverse != (given is not None):
        raise ProblemRejected("an anneal_schedule that starts at s = 1 and an initial_state need each other")
    if given is None:
        return None
    values = np.array(given)
    count = task.properties["num_qubits"]
    if values.shape != (count,) or (values[qubits] == _UNUSED).any():
        raise ProblemRejected(
            f"initial_state needs {count} entries, and a value for each of the {len(qubits)} used qubits"
        )
    return np.where(values[qubits] > 0, 1, -1).astype(np.int8)


def _number(task: Task, name: str, default: float, limits: list[float]) -> float:
    value = task.params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not limits[0] <= value <= limits[1]:
        raise ProblemRejected(f"{name} must be a number within {limits}; got {value!r}")
    return float(value)


def timing_of(
    properties: Mapping[str, Any], qubits: int, reads: int, points: Points, params: Mapping[str, Any]
) -> dict[str, float]:
    """Microseconds that a chip would take, by the published timing model; fictitious, because no chip was used.

    Agrees with ``estimate_qpu_access_time`` of the client.
    """
    model = properties["problem_timing_data"]
    reverse = points[0][1] == 1
    which = "with" if params.get("reinitialize_state", True) else "without"
    programming = model["typical_programming_time"] + (
        params.get("programming_thermalization") or model["default_programming_thermalization"]
    )
    parameters = model["readout_time_model_parameters"]
    half = len(parameters) // 2
    readout = 10 ** float(np.interp(math.log10(qubits), parameters[:half], parameters[half:]))
    anneal, delay = points[-1][0], model["qpu_delay_time_per_sample"]
    if reverse:
        programming += model[f"reverse_annealing_{which}_reinit_prog_time_delta"]
        delay += model[f"reverse_annealing_{which}_reinit_delay_time_delta"]
    pause = params.get("readout_thermalization") or model["default_readout_thermalization"]
    if params.get("reduce_intersample_correlation"):
        low, high = model["decorrelation_time_range"]
        pause = max(pause, anneal / model["decorrelation_max_nominal_anneal_time"] * (high - low) + low)
    sampling = reads * (anneal + readout + delay + pause)
    return {
        "qpu_sampling_time": round(sampling, 2),
        "qpu_anneal_time_per_sample": anneal,
        "qpu_readout_time_per_sample": round(readout, 2),
        "qpu_delay_time_per_sample": delay + pause,
        "qpu_programming_time": round(programming, 2),
        "qpu_access_time": round(sampling + programming, 2),
        "qpu_access_overhead_time": 15_000.0,
        "total_post_processing_time": 1.0,
        "post_processing_overhead_time": 1.0,
    }


def _encode_answer(
    task: Task, model: dimod.BinaryQuadraticModel, qubits: npt.NDArray[np.int64], spins: npt.NDArray[np.int8],
    timing: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    mode = task.params.get("answer_mode", "histogram")
    if mode not in ("histogram", "raw"):
        raise ProblemRejected(f"answer_mode must be 'histogram' or 'raw'; got {mode!r}")
    values = spins if task.type == "ising" else ((spins + 1) // 2).astype(np.int8)
    counts = np.ones(len(values), dtype=np.int64)
    if mode == "histogram":
        values, counts = np.unique(values, axis=0, return_counts=True)
    energies = np.asarray(model.energies((values, list(range(len(qubits))))), dtype=np.float64)
    order = np.argsort(energies, kind="stable") if mode == "histogram" else np.arange(len(values))
    order = order[: int(_number(task, "max_answers", len(order), task.properties["num_reads_range"]))]
    return {
        "format": "qp",
        "num_variables": int(task.properties["num_qubits"]),
        "active_variables": _encoded(qubits, "<i4"),
        "energies": _encoded(energies[order], "<f8"),
        "num_occurrences": _encoded(counts[order], "<i4"),
        "solutions": _encoded(np.packbits(values[order] > 0, axis=1), "u1"),
        "timing": timing,
        "loopback": NOTE,
    }


def _encoded(array: npt.NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode("ascii")
