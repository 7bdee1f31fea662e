"""The adaptive coder beside DeepCABAC and the older streams, on the same integer codes: bytes of weights alone.

    python -m benchmarks.studies.coder [--python PATH]   # PATH: a Python that has nncodec, else its column stays empty
    python -m benchmarks.studies.coder table

All weights of a network are rounded to multiples of one step, given in units of their root mean square. Every tensor is
coded alone. ``nncodec`` gets each tensor twice, with and without optimised parameters of its estimates, row by row,
its best order here; the shorter counts. Ours count all that a stream needs but no length, as do its.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.networks import load
from benchmarks.records import Record, table
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.menu.coding.adaptive.stream import AdaptiveStream
from qubo_compress.menu.coding.layout import CodeLayout
from qubo_compress.menu.coding.writer import CodedWriter

NETWORKS = ["cifar10-resnet20", "imagenet-efficientnet-lite0", "text-gpt", "fashion-mnist-vit"]
STUDY = Study(
    __doc__, "coder", networks=NETWORKS, units=Option([2.0, 1.0, 0.5], "steps, in units of the root mean square"),
    python=Option("", "a Python that has nncodec"),
)  # fmt: skip

SMALL, MIDDLE = 3000, 50_000
"""Weights of small tensors, and of those of middle size."""

DEEPCABAC = """
import json, sys
import numpy as np
from nncodec.extensions import deepCABAC
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF
def size(codes, optimised):
    encoder, none = deepCABAC.Encoder(), np.array([not row.any() for row in codes], np.int32)
    encoder.initCtxModels(10, optimised)
    encoder.encodeLayer(codes.copy(), 0, 0, 1, 0, int(none.any()), none, *HDSP_OPTS_OFF(), 0, 0)
    return int(encoder.finish().size)
codes = np.load(sys.argv[1])
print(json.dumps([min(size(codes[name], 0), size(codes[name], 1)) for name in codes.files]))
"""


def codes_of(network: str, step: float) -> dict[str, npt.NDArray[np.int32]]:
    """Codes of all weights of two or more axes, with one step for all."""
    parameters = load(network).model.named_parameters()
    weights = {name: value.detach().double().numpy() for name, value in parameters if value.ndim > 1}
    flat = np.concatenate([weight.reshape(-1) for weight in weights.values()])
    size = step * float(np.sqrt(np.square(flat).mean()))
    return {name: np.rint(weight / size).astype(np.int32) for name, weight in weights.items()}


def kind_of(codes: npt.NDArray[np.int32]) -> str:
    """What a layer is, by the shape of its weight."""
    if codes.ndim == 2:
        return "linear"
    return "depthwise" if codes.shape[1] == 1 else "pointwise" if codes[0, 0].size == 1 else "convolution"


def deepcabac(python: str, codes: dict[str, npt.NDArray[np.int32]]) -> list[int | None]:
    """Bytes of every tensor in nncodec, which has an environment of its own."""
    if not python:
        return [None] * len(codes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.npz"
        np.savez(path, **codes)
        done = subprocess.run([python, "-c", DEEPCABAC, str(path)], capture_output=True, text=True, check=True)
    found: list[int | None] = json.loads(done.stdout)
    return found


def adaptive(codes: npt.NDArray[np.int32]) -> Record:
    """Bytes of a tensor in an adaptive stream, and CPU seconds of writing and reading it."""
    layout, low, high = CodeLayout.of(codes.shape), int(codes.min()), int(codes.max())
    whole = codes.reshape(layout.rows, layout.columns).astype(np.int64)
    start, stream = time.process_time(), AdaptiveStream.writer(2 * codes.size + 64)
    stream.tensor(whole.copy(), low, high, layout)
    data = stream.finish()
    if data is None:
        raise RuntimeError("two bytes per weight were too few")
    written, found = time.process_time(), np.zeros_like(whole)
    AdaptiveStream.reader(memoryview(data)).tensor(found, low, high, layout)
    read = time.process_time()
    if not np.array_equal(found, whole):
        raise RuntimeError("the codes that were read are not those that were written")
    return {"ours": len(data), "writing": written - start, "reading": read - written}


def older(codes: npt.NDArray[np.int32]) -> int:
    """Bytes of a tensor in the streams before."""
    shape = (codes.shape[0], codes.shape[1], codes[0, 0].size)
    writer = CodedWriter({codes.size: shape})
    writer.codes(codes.reshape(-1), int(codes.min()), int(codes.max()))
    return len(writer.data())


@STUDY.step(lambda o: grid(network=o.networks, unit=o.units))
def sizes(options: Options, network: str, unit: float) -> Record:
    """Bytes of every tensor of a network at one step."""
    codes = codes_of(network, unit)
    adaptive(next(iter(codes.values())))  # compiles
    theirs = deepcabac(options.python, codes)
    layers = [
        {"weights": value.size, "kind": kind_of(value), "nncodec": other, "older": older(value), **adaptive(value)}
        for value, other in zip(codes.values(), theirs, strict=True)
    ]
    return {"layers": layers}


def summed(name: str, layers: Iterable[Record]) -> Record:
    """Sums over layers, and shares of ours against the others."""
    chosen = list(layers)
    known = all(layer["nncodec"] is not None for layer in chosen)
    total = {
        field: sum(layer[field] for layer in chosen) for field in ("weights", "ours", "older", "writing", "reading")
    }
    theirs = sum(layer["nncodec"] for layer in chosen) if known else None
    return {
        **total, "layers": name, "tensors": len(chosen), "bits": 8 * total["ours"] / total["weights"],
        "nncodec": "-" if theirs is None else f"{theirs:,}",
        "beside": "-" if theirs is None else f"{total['ours'] / theirs - 1:+.1%}",
        "before": total["ours"] / total["older"] - 1,
        "seconds": f"{1e7 * total['writing'] / total['weights']:.1f} / {1e7 * total['reading'] / total['weights']:.1f}",
    }  # fmt: skip


def size_of(layer: Record) -> str:
    """The class of a tensor's size."""
    return "small" if layer["weights"] <= SMALL else "middle" if layer["weights"] <= MIDDLE else "large"


COLUMNS = {
    "network": "{network}", "step": "{step:g}", "layers": "{layers}", "tensors": "{tensors}", "weights": "{weights:,}",
    "bits per weight": "{bits:.3f}", "ours": "{ours:,}", "nncodec": "{nncodec}", "to nncodec": "{beside}",
    "older": "{older:,}", "to older": "{before:+.1%}",
}  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """Networks as a whole, then by kinds and sizes of layers."""
    whole, parts = [], []
    for record in STUDY.records():
        key = {"network": record["network"], "step": record["unit"]}
        layers = record["layers"]
        whole.append({**key, **summed("all", layers)})
        kinds = sorted({layer["kind"] for layer in layers})
        parts += [{**key, **summed(kind, [x for x in layers if x["kind"] == kind])} for kind in kinds]
        classes = [name for name in ("small", "middle", "large") if any(size_of(x) == name for x in layers)]
        parts += [{**key, **summed(name, [x for x in layers if size_of(x) == name])} for name in classes]
    return (
        "# The adaptive coder beside DeepCABAC, on equal codes\n\n"
        "Bytes of the weights alone; codes are weights rounded to one step per network, in units of their root mean "
        "square. CPU seconds are those of writing / reading 10 million weights.\n\n"
        + table(whole, {**COLUMNS, "CPU s, 10 M weights": "{seconds}"})
        + f"\n\nBy kind and by size (small: up to {SMALL:,} weights, middle: up to {MIDDLE:,}).\n\n"
        + table(parts, COLUMNS)
    )


if __name__ == "__main__":
    STUDY.main()
