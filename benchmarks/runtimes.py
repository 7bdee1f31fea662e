"""Files of networks in onnxruntime and OpenVINO on one thread: running, scoring and timing them."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from torch import Tensor, nn

Running = Callable[[np.ndarray], np.ndarray]

RUNTIMES = ("onnxruntime", "openvino")
AT_ONCE = 32
"""Examples of a run, except where a single one is timed."""

SHORTEST = 5e-3
"""Seconds that are timed at once, at least: the clock of a process has a grain."""


def by_onnxruntime(path: Path, unpacked: bool = False) -> Running:
    """A session.

    Args:
        path: of the file.
        unpacked: whether ``session.disable_quant_qdq`` unpacks the weights of convolutions when the file is loaded.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if unpacked:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: np.asarray(session.run(None, {name: inputs})[0])


def by_openvino(model: Any) -> Running:
    """A compiled model or file; what is not integer is float32."""
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda inputs: np.asarray(request.infer([inputs])[compiled.output(0)])


def running(runtime: str, path: Path) -> Running:
    """A file in the runtime of that name."""
    return by_openvino(path) if runtime == "openvino" else by_onnxruntime(path)


def float_file(model: nn.Module, inputs: Tensor, path: Path, axes: tuple[int, ...] = (0,)) -> None:
    """Torch's own export, with its optimisations."""
    shapes = (dict.fromkeys(axes, torch.export.Dim.AUTO),)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (inputs[:2],), dynamic_shapes=shapes, dynamo=True, verbose=False)
    torch.backends.mha.set_fastpath_enabled(before)
    program.save(path)


def outputs_of(run: Running, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, classes) outputs and (rows,) targets of all batches."""
    found, wanted = [], []
    for inputs, targets in batches:
        for start in range(0, len(inputs), AT_ONCE):
            part = run(inputs[start : start + AT_ONCE].numpy())
            found.append(part.reshape(-1, part.shape[-1]))
            wanted.append(targets[start : start + AT_ONCE].numpy().reshape(-1))
    return np.concatenate(found), np.concatenate(wanted)


def accuracy(run: Running, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of right answers, of classes or of next tokens."""
    found, wanted = outputs_of(run, batches)
    return float((found.argmax(-1) == wanted).mean())


def cross_entropy(run: Running, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Mean cross-entropy of the targets."""
    found, wanted = outputs_of(run, batches)
    highest = found.max(-1, keepdims=True)
    logarithms = found - highest - np.log(np.exp(found - highest).sum(-1, keepdims=True))
    return float(-logarithms[np.arange(len(wanted)), wanted].mean())


def milliseconds(runs: Mapping[str, Running], inputs: np.ndarray, rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of several programs, which take turns so that a loaded machine slows all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    repeats = {}
    for name, run in runs.items():
        run(inputs)
        begin = time.process_time()
        run(inputs)
        repeats[name] = max(1, int(SHORTEST / max(time.process_time() - begin, 1e-5)))
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.process_time()
            for _ in range(repeats[name]):
                run(inputs)
            taken[name].append(1e3 * (time.process_time() - begin) / repeats[name])
    return {name: statistics.median(values) for name, values in taken.items()}
