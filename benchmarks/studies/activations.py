"""Eight-bit weights and activations beside the runtimes' own tools: accuracy, bytes, milliseconds.

    python -m benchmarks.studies.activations [--networks cifar10-resnet20] [table]

Ours: every layer that takes it as ``quantize(bits=8,activations=8)``, and the plan of least predicted loss with 1.25
times the bit operations of that. Others: onnxruntime's static quantization and NNCF's post-training quantization of
torch's float32 file. All are calibrated on the same examples and scored on the same test examples. One thread.
Milliseconds are CPU time, the median of runs that alternate with those of the float32 file, so that a loaded machine
slows both.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qubo_compress as qc
from benchmarks.networks import first, load
from benchmarks.records import Record, table
from benchmarks.rivals import nbytes, nncf_quantization, static_quantization
from benchmarks.runtimes import AT_ONCE, RUNTIMES, Running, accuracy, float_file, milliseconds, running
from benchmarks.study import Options, Study, grid

NETWORKS = ("cifar10-resnet20", "imagenet-efficientnet-lite0", "fashion-mnist-vit", "text-gpt")
TEXT = "text-gpt"

UNIFORM = "quantize(bits=8,activations=8)"
MENU = ["quantize(bits=8)", UNIFORM, "fold(bits=16)", "cast(bits=16)"]
MORE = 1.25
"""Bit operations of the chosen plan, relative to those of the uniform one."""

STUDY = Study(__doc__, "activations", networks=list(NETWORKS), examples=200, scored=1000, runs=15)


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
        for runtime in RUNTIMES:
            path = folder / f"{name}-{runtime}.onnx"
            found = qc.export(small, path, inputs[:64], runtime=runtime, dynamic=axes)
            yield runtime, name, running(runtime, path), found.nbytes
    plain, static, theirs = (folder / name for name in ("plain.onnx", "static.onnx", "nncf.xml"))
    # torch's own file: NNCF finds no weights to round in transformers of ours.
    float_file(loaded.model, inputs, plain, axes)
    static_quantization(plain, inputs.numpy(), static, "MinMax", "all operators")
    yield "onnxruntime", "onnxruntime's static quantization", running("onnxruntime", static), nbytes(static)
    nncf_quantization(plain, inputs.numpy(), theirs, "performance", network in (TEXT, "fashion-mnist-vit"))
    yield "openvino", "NNCF post-training", running("openvino", theirs), nbytes(theirs)


@STUDY.step(lambda options: grid(network=options.networks))
def files(options: Options, network: str) -> Iterator[Record]:
    """One record for every file of a network."""
    loaded = load(network, calibration_examples=options.examples)
    test = first(loaded.test, options.scored)
    inputs = test[0][0]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        found = list(runners(network, Path(folder), options.examples))
        for runtime in RUNTIMES:
            runs = {name: run for kind, name, run, _ in found if kind == runtime}
            sizes = {name: size for kind, name, _, size in found if kind == runtime}
            taken = {}
            for batch, count in ((1, options.runs), (AT_ONCE, options.runs // 2)):
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
