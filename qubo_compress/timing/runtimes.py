"""Runs a compressed network in a runtime, and takes the time."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qubo_compress._internal.checks import whole
from qubo_compress._internal.optional import require
from qubo_compress.errors import InvalidOption, unknown_name
from qubo_compress.exports.formats import checked_batches
from qubo_compress.exports.onnx.running import fed
from qubo_compress.exports.onnx.writing import OnnxSettings, onnx_bytes
from qubo_compress.exports.uncompressed import carried_or_kept
from qubo_compress.network.inputs import Inputs
from qubo_compress.network.memory import refuse_without_values
from qubo_compress.network.replay import run_model
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan import Compression

RUNTIMES = ("onnxruntime", "openvino", "torch")

WARM_UP = 3
"""Runs before the first one that counts: memory is allocated and kernels are chosen in them."""

ROUNDS = 3
"""Programs that take turns are timed this many times, and the least median of each counts: load only adds."""

SHORTEST, MOST_REPEATS = 2e-3, 200
"""Shorter programs are run several times, at most this many, for a time of this many seconds: clocks have a grain."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Stopwatch:
    """How a network's time is taken: the median of several runs, after some that do not count.

    Args:
        runtime: ``"onnxruntime"``, ``"openvino"`` or ``"torch"``.
        threads: of the runtime.
        runs: that count.
        clock: seconds; a test's own clock makes every time repeatable.
    """

    runtime: str = "onnxruntime"
    threads: int = 1
    runs: int = 30
    clock: Clock = time.perf_counter

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise unknown_name("runtime", self.runtime, RUNTIMES)
        if whole("threads", self.threads) < 1 or whole("runs", self.runs) < 1:
            raise InvalidOption(f"threads and runs must be at least 1; got {self.threads} and {self.runs}")

    @property
    def version(self) -> str:
        """Of the runtime."""
        return metadata.version(self.runtime)

    def milliseconds(self, small: nn.Module, compression: Compression, inputs: Inputs) -> float:
        """Median time of one run of a compressed network.

        Args:
            small: the network.
            compression: what it carries.
            inputs: of one run.
        """
        return self._timed(self.program(small, compression, inputs))

    def program(self, small: nn.Module, compression: Compression, inputs: Inputs) -> Callable[[], Any]:
        """Runs a compressed network on the inputs."""
        if self.runtime != "torch":
            return self.runner(onnx_bytes(small, compression, [inputs], OnnxSettings(self.runtime)), inputs)

        def run() -> None:
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                with torch.no_grad():
                    run_model(small, inputs)
            finally:
                torch.set_num_threads(before)

        return run

    def least_of_turns(self, runs: Sequence[Callable[[], Any]]) -> list[float]:
        """Milliseconds of several programs that take turns, so that load hits all alike: the least median of each."""
        taken = [[self._timed(run) for run in runs] for _ in range(ROUNDS)]
        return [min(times) for times in zip(*taken, strict=True)]

    def runner(self, data: bytes, inputs: Inputs) -> Callable[[], Any]:
        """Runs the network of an ONNX file on the inputs, in onnxruntime or OpenVINO."""
        return self._by_openvino(data, inputs) if self.runtime == "openvino" else self._by_onnx(data, inputs)

    def _timed(self, run: Callable[[], Any]) -> float:
        for _ in range(WARM_UP):
            run()
        started = self.clock()
        run()
        repeats = max(1, min(MOST_REPEATS, int(SHORTEST / max(self.clock() - started, SHORTEST / MOST_REPEATS))))
        found = []
        for _ in range(self.runs):
            started = self.clock()
            for _ in range(repeats):
                run()
            found.append((self.clock() - started) / repeats)
        return 1e3 * float(np.median(found))

    def _by_onnx(self, data: bytes, inputs: Inputs) -> Callable[[], Any]:
        runtime = require("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        running = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        feeds = fed(running, inputs)
        return lambda: running.run(None, feeds)

    @property
    def _openvino(self) -> dict[str, Any]:
        """Settings of OpenVINO: what is not integer is float32, which it else replaces by bfloat16 on some machines."""
        return {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}

    def _by_openvino(self, data: bytes, inputs: Inputs) -> Callable[[], Any]:
        core = require("openvino", "openvino").Core()
        given = inputs.values() if isinstance(inputs, dict) else (inputs,) if not isinstance(inputs, tuple) else inputs
        feeds = dict(enumerate(tensor.detach().cpu().numpy() for tensor in given))
        request = core.compile_model(core.read_model(data, b""), "CPU", self._openvino).create_infer_request()
        return lambda: request.infer(feeds)


def processor() -> str:
    """The name of this machine's processor.

    Example:
        >>> bool(processor())
        True
    """
    known = Path("/proc/cpuinfo")
    lines = known.read_text(errors="replace").splitlines() if known.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine() or "unknown"


def measured_latency(
    model: nn.Module,
    example: Inputs,
    runtime: str = "onnxruntime",
    threads: int = 1,
    runs: int = 30,
    clock: Clock = time.perf_counter,
) -> float:
    """Milliseconds of one run of a network in a runtime: the median, warm.

    Args:
        model: made by ``plan.apply``, ``recover``, ``compress`` or ``load``; any other network is timed as it is.
        example: inputs of one run: the batch counts. Of a pair (inputs, labels) the inputs are taken.
        runtime: ``"onnxruntime"``, ``"openvino"`` or ``"torch"``.
        threads: of the runtime.
        runs: of which a median is taken, after three that do not count; a short network is run several times in each.
        clock: returns seconds.

    Raises:
        WrongModel: when the values of the module have left the grid of its plan.
        InvalidModel: when tensors have no values, on the meta device.
        InvalidBatches: when the example is none.
        UnknownName, InvalidOption: for other arguments.
        ExportRefused: when the network has no ONNX form.
        MissingDependency: without the runtime.
    """
    watch, model = Stopwatch(runtime, threads, runs, clock), unwrapped(model)
    refuse_without_values(model)
    inputs = checked_batches(example, model)[0]
    return watch.least_of_turns([watch.program(model, carried_or_kept(model), inputs)])[0]
