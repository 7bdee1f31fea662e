"""What an exported network weighs and how fast it runs elsewhere, against its float32 ONNX file in the same run.

    python -m benchmarks.studies.export [--networks text-gpt] [table]

Files: torch's own export of the network in float32, and ours at 8x with the default menu, for onnxruntime, with its own
operators, and for OpenVINO. One thread. Milliseconds are CPU time, the median of runs that alternate with those of the
float32 file, so that a loaded machine slows both. ``unpacked``: onnxruntime's ``session.disable_quant_qdq``, which
unpacks the weights of convolutions once when the file is loaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import first, load
from benchmarks.networks.attention import ByteGPT
from benchmarks.records import table
from benchmarks.runtimes import Running, by_onnxruntime, by_openvino, float_file, milliseconds
from benchmarks.study import Options, Study, grid

NETWORKS = ("cifar10-resnet20", "imagenet-efficientnet-lite0", "fashion-mnist-vit", "text-gpt")
TEXT = "text-gpt"
WIDE = "GPT of width 768, untrained, 4 bits"
RATIO = 8.0
BATCH = 50
SCORED = 1_000
"""Test examples, or windows of text, that a file is scored on."""

RUNS = 15

STUDY = Study(__doc__, "export", networks=list(NETWORKS), examples=200, folder="out/export")


@dataclass(frozen=True)
class File:
    """A file and a program that runs it.

    Attributes:
        name: in the table.
        path: of the file.
        run: the program.
        against: the name of the float32 file in the same program.
    """

    name: str
    path: Path
    run: Running
    against: str


def files(small: nn.Module, original: nn.Module, inputs: Tensor, folder: Path, axes: tuple[int, ...]) -> list[File]:
    """All files and programs of one network."""
    plain = folder / "float.onnx"
    float_file(original, inputs, plain, axes)
    for runtime in (None, "onnxruntime", "openvino"):
        found = qc.export(
            small, folder / f"{runtime}.onnx", inputs, runtime=runtime, dynamic=axes, packed_products=True
        )
        print(found, flush=True)
    own = folder / "onnxruntime.onnx"
    return [
        File("float32, onnxruntime", plain, by_onnxruntime(plain), "float32, onnxruntime"),
        File("8x, onnxruntime", folder / "None.onnx", by_onnxruntime(folder / "None.onnx"), "float32, onnxruntime"),
        File("8x, MatMulNBits, unpacked", own, by_onnxruntime(own, unpacked=True), "float32, onnxruntime"),
        File("float32, OpenVINO", plain, by_openvino(plain), "float32, OpenVINO"),
        File("8x, OpenVINO", folder / "openvino.onnx", by_openvino(folder / "openvino.onnx"), "float32, OpenVINO"),
    ]


def compressed(options: Options, network: str) -> tuple[nn.Module, Any]:
    """The network at 8x, from its file if there is one."""
    loaded = load(network, calibration_examples=options.examples)
    path = Path(options.folder) / f"{network}.safetensors"
    if path.exists():
        return qc.load(path, loaded.model), loaded
    result = qc.compress(loaded.model, loaded.calibration, qc.Budget(ratio=RATIO), progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    result.save(path)
    return result.model, loaded


def batches_of(text: bool, inputs: Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Inputs to time: one row at a time, one example, 32 examples."""
    if text:
        yield "one row", inputs[:1, :1].numpy()
    for count in (1, 32):
        if len(inputs) >= count:
            yield f"batch {count}", inputs[:count].numpy()


def records_of(
    network: str, small: nn.Module, original: nn.Module, inputs: Tensor, targets: Tensor | None
) -> Iterator[dict[str, Any]]:
    """Bytes, accuracy and milliseconds of every file of one network."""
    text = targets is None or network == TEXT
    with tempfile.TemporaryDirectory() as folder:
        found = files(small, original, inputs[:32], Path(folder), (0, 1) if text else (0,))
        runs = {one.name: one.run for one in found}
        times = {name: milliseconds(runs, given, RUNS) for name, given in batches_of(text, inputs)}
        with torch.no_grad():
            wanted = torch.cat([original(part).argmax(-1) for part in inputs.split(BATCH)])
        for one in found:
            answers = torch.cat([torch.from_numpy(one.run(part.numpy())).argmax(-1) for part in inputs.split(BATCH)])
            scores = {} if targets is None else {"accuracy": float((answers == targets).float().mean())}
            yield {
                "file": one.name, "bytes": one.path.stat().st_size, **scores,
                "agreement": float((answers == wanted).float().mean()),
                **{f"{name} ms": taken[one.name] for name, taken in times.items()},
                **{f"{name} speed": taken[one.against] / taken[one.name] for name, taken in times.items()},
            }  # fmt: skip


@STUDY.step(lambda o: grid(network=o.networks))
def exported(options: Options, network: str) -> Iterator[dict[str, Any]]:
    """Trained networks at 8x by the default menu."""
    small, loaded = compressed(options, network)
    test = first(loaded.test, SCORED)
    inputs, targets = torch.cat([x for x, _ in test]), torch.cat([y for _, y in test])
    ours = Path(options.folder, f"{network}.safetensors").stat().st_size
    for record in records_of(network, small, loaded.model, inputs, targets):
        yield record | {"ours": ours}


@STUDY.step(lambda o: grid(network=[WIDE]))
def wide(options: Options, network: str) -> Iterator[dict[str, Any]]:
    """The time of a text network of a usual width, untrained, with 4 bits everywhere."""
    torch.manual_seed(0)
    model = ByteGPT(width=768, depth=4, heads=12).eval()
    inputs = torch.randint(0, 256, (4, 128))
    menu = qc.Menu(bits=(4,), sparsity=(0.0,), vector_bits=())
    table = qc.measure(model, [(inputs, inputs)], menu=menu, metric="magnitude", progress=False)
    plan = table.plan(qc.solve(table.problem(qc.Budget(ratio=7.0)), "uniform"))
    for record in records_of(network, plan.apply(model), model, inputs, None):
        yield record | {"ours": plan.bytes}


@STUDY.table
def tables(options: Options) -> str:
    """One table for each network."""
    parts = [
        "# Exported networks\n\nAt 8x by the default menu from 200 examples; the untrained one has 4 bits everywhere. "
        "One thread; CPU milliseconds, and in brackets how many times faster than float32 in the same program and run. "
        f"Accuracy, and answers equal to the original network's, on {SCORED:,} test examples.\n"
    ]
    for network in (*NETWORKS, WIDE):
        records = STUDY.records(network=network)
        if not records:
            continue
        newest = list({record["file"]: record for record in records}.values())
        columns = {"file": "{file}", "bytes": "{bytes:,}", "accuracy": "{accuracy:.4f}", "equal": "{agreement:.4f}"}
        columns |= {
            name: f"{{{name} ms:.2f}} ({{{name} speed:.2f}}x)"
            for name in ("one row", "batch 1", "batch 32")
            if f"{name} ms" in newest[0]
        }
        ours = f"Our own file: {newest[0]['ours']:,} bytes. {newest[0]['cpu']}."
        parts.append(f"## {network}\n\n{ours}\n\n{table(newest, columns)}")
    return "\n".join(parts)


if __name__ == "__main__":
    STUDY.main()
