"""Eight-bit weights and activations beside the runtimes' own tools: accuracy, bytes, milliseconds.

    python -m benchmarks.studies.activations [--networks cifar10-resnet20] [table]

Ours: every layer that takes it as ``quantize(bits=8,activations=8)``, and the plan of least predicted loss with 1.25
times the bit operations of that. Others: onnxruntime's static quantization and NNCF's post-training quantization of our
float32 file. All are calibrated on the same examples and scored on the same test examples. One thread. Milliseconds are
CPU time, the median of runs that alternate with those of the float32 file, so that a loaded machine slows both.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnxruntime
import openvino
import torch
from onnxruntime import quantization
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import first, load
from benchmarks.records import Record, table
from benchmarks.study import Options, Study, grid

NETWORKS = ("cifar10-resnet20", "imagenet-efficientnet-lite0", "fashion-mnist-vit", "text-gpt")
TEXT = "text-gpt"

UNIFORM = "quantize(bits=8,activations=8)"
MENU = ["quantize(bits=8)", UNIFORM, "fold(bits=16)", "cast(bits=16)"]
MORE = 1.25
"""Bit operations of the chosen plan, relative to those of the uniform one."""

AT_ONCE = 32

STUDY = Study(__doc__, "activations", networks=list(NETWORKS), examples=200, scored=1000, runs=15)

Running = Callable[[np.ndarray], np.ndarray]


def by_onnxruntime(path: Path) -> Running:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: np.asarray(session.run(None, {name: inputs})[0])


def by_openvino(model: Any) -> Running:
    """A compiled model of one thread; what is not integer is float32."""
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda inputs: np.asarray(request.infer([inputs])[compiled.output(0)])


class _Reader(quantization.CalibrationDataReader):
    """Calibration inputs for onnxruntime's tool."""

    def __init__(self, name: str, inputs: np.ndarray) -> None:
        self._left = iter({name: part} for part in np.array_split(inputs, max(1, len(inputs) // AT_ONCE)))

    def get_next(self) -> Any:
        return next(self._left, None)


def by_their_tool(plain: Path, inputs: np.ndarray, folder: Path) -> Path:
    """The file of onnxruntime's static quantization: unsigned activations, signed weights by channel."""
    prepared, made = folder / "prepared.onnx", folder / "static.onnx"
    quantization.quant_pre_process(plain, prepared)
    name = onnxruntime.InferenceSession(prepared).get_inputs()[0].name
    quantization.quantize_static(
        prepared, made, _Reader(name, inputs), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    return made


def by_nncf(plain: Path, inputs: np.ndarray, text: bool) -> Any:
    """NNCF's post-training quantization of a model of OpenVINO."""
    model = openvino.Core().read_model(plain)
    parts = [inputs[number : number + 1] for number in range(len(inputs))]
    kind = nncf.ModelType.TRANSFORMER if text else None
    return nncf.quantize(model, nncf.Dataset(parts), subset_size=len(parts), model_type=kind)


def ours(model: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[str, nn.Module, qc.Plan]]:
    """Our networks, with the plans."""
    measured = qc.measure(model, batches, menu=qc.Menu(MENU), metric="products", progress=False)
    offered = dict(zip(measured.group_names, measured.choices, strict=True))
    uniform = measured.plan({group: UNIFORM for group, names in offered.items() if UNIFORM in names})
    yield "float32", measured.plan({}).apply(model), measured.plan({})
    yield "ours, uniform", uniform.apply(model), uniform
    places = measured.offsets[:-1] + measured.assignment(uniform.choices)
    operations = int(MORE * measured.costs["bit_operations"][places].sum())
    problem = measured.problem(qc.Budget(bytes=measured.layout.original_bytes, bit_operations=operations))
    chosen = measured.plan(qc.solve(problem, time_limit=5))
    yield "ours, chosen", chosen.apply(model), chosen


def runners(network: str, folder: Path, examples: int) -> Iterator[tuple[str, str, Running, int]]:
    """(runtime, file, program, bytes) of every file."""
    loaded = load(network, calibration_examples=examples)
    inputs = torch.cat([batch[0] for batch in loaded.calibration])[:examples]
    axes = (0, 1) if network == TEXT else (0,)
    for name, small, _ in ours(loaded.model, loaded.calibration):
        for runtime in ("onnxruntime", "openvino"):
            path = folder / f"{name}-{runtime}.onnx"
            found = qc.export(small, path, inputs[:64], runtime=runtime, dynamic=axes)
            yield runtime, name, by_onnxruntime(path) if runtime == "onnxruntime" else by_openvino(path), found.nbytes
    plain = folder / "float32-onnxruntime.onnx"
    static = by_their_tool(plain, inputs.numpy(), folder)
    yield "onnxruntime", "onnxruntime's static quantization", by_onnxruntime(static), static.stat().st_size
    theirs = by_nncf(plain, inputs.numpy(), network in (TEXT, "fashion-mnist-vit"))
    openvino.save_model(theirs, folder / "nncf.xml", compress_to_fp16=False)
    yield "openvino", "NNCF post-training", by_openvino(theirs), (folder / "nncf.bin").stat().st_size


def accuracy(run: Running, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of right answers, of classes or of next tokens."""
    right = total = 0
    for inputs, targets in batches:
        for start in range(0, len(inputs), AT_ONCE):
            found = run(inputs[start : start + AT_ONCE].numpy()).argmax(-1)
            wanted = targets[start : start + AT_ONCE].numpy()
            right, total = right + int((found == wanted).sum()), total + wanted.size
    return right / total


def milliseconds(runs: dict[str, Running], inputs: np.ndarray, count: int) -> dict[str, float]:
    """Median CPU milliseconds of several programs, which take turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(inputs), run(inputs)
    for _ in range(count):
        for name, run in runs.items():
            begin = time.process_time()
            run(inputs)
            taken[name].append(1e3 * (time.process_time() - begin))
    return {name: statistics.median(values) for name, values in taken.items()}


@STUDY.step(lambda options: grid(network=options.networks))
def files(options: Options, network: str) -> Iterator[Record]:
    """One record for every file of a network."""
    loaded = load(network, calibration_examples=options.examples)
    test = first(loaded.test, options.scored)
    inputs = test[0][0]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        found = list(runners(network, Path(folder), options.examples))
        for runtime in ("onnxruntime", "openvino"):
            runs = {name: run for kind, name, run, _ in found if kind == runtime}
            sizes = {name: size for kind, name, _, size in found if kind == runtime}
            taken = {}
            for batch, count in ((1, 4 * options.runs), (AT_ONCE, options.runs // 2)):
                taken[batch] = milliseconds(runs, inputs[:batch].numpy(), count)
            for name, run in runs.items():
                yield {
                    "runtime": runtime, "file": name, "bytes": sizes[name], "examples": sum(len(x) for x, _ in test),
                    "accuracy": accuracy(run, test),
                    **{f"milliseconds_{batch}": taken[batch][name] for batch in taken},
                    **{f"ratio_{batch}": taken[batch]["float32"] / taken[batch][name] for batch in taken},
                }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """All records, network by network."""
    return table(
        STUDY.records(),
        {
            "network": "{network}", "runtime": "{runtime}", "file": "{file}", "bytes": "{bytes:,}",
            "accuracy": lambda record: f"{100 * record['accuracy']:.1f} %", "examples": "{examples:,}",
            "CPU ms, batch 1": "{milliseconds_1:.3f}", "faster": "{ratio_1:.2f}x",
            "CPU ms, batch 32": "{milliseconds_32:.2f}", "faster, 32": "{ratio_32:.2f}x",
        },
    )  # fmt: skip


if __name__ == "__main__":
    STUDY.main()
