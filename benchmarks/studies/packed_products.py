"""From which width on do linear layers with packed weights run faster than in floating point, and for how many rows?

    python -m benchmarks.studies.packed_products [--widths 96 192] [table]

A chain of square linear layers, deep enough that a session's fixed time per run is small, exported three times:
unpacked when loaded (which runs as float32 does), with standard operators, and with onnxruntime's own. Rows are batch
times tokens. One thread; CPU milliseconds, the median of runs that alternate with those of the unpacked file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qubo_compress as qc
from benchmarks.records import newest, table
from benchmarks.runtimes import by_onnxruntime, milliseconds
from benchmarks.study import Options, Study, grid

DEPTH = 8
DEEP = 64
"""Layers of a chain that leaves the processor's fastest caches, as the rest of a larger network makes a layer do."""

ROWS = (1, 4, 16, 48, 64, 256)
RUNS = 7
FORMS: dict[str, dict[str, Any]] = {
    "unpacked": {"packed_products": False},
    "standard": {"packed_products": True},
    "own": {"packed_products": True, "runtime": "onnxruntime"},
}

STUDY = Study(__doc__, "packed_products", widths=[64, 96, 128, 192, 256, 384, 768], bits=[4, 8], deep=[96, 192])


def chain(width: int, bits: int, depth: int) -> nn.Module:
    """Square layers that all have these bits."""
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])
    data = [(torch.randn(8, width), torch.arange(8) % width)]
    menu = qc.Menu([f"quantize(bits={bits})"])
    found = qc.measure(net, data, metric="magnitude", menu=menu, groups="layer", progress=False)
    choices = {name: f"quantize(bits={bits})" for name in found.group_names if name.endswith("weight")}
    return found.plan(choices | {name: "keep" for name in found.group_names if name not in choices}).apply(net)


def cells(options: Options) -> Iterator[dict[str, Any]]:
    """All widths, and some again in deep networks."""
    yield from grid(width=options.widths, bits=options.bits, depth=[DEPTH])
    yield from grid(width=options.deep, bits=options.bits, depth=[DEEP])


@STUDY.step(cells)
def products(options: Options, width: int, bits: int, depth: int) -> dict[str, Any]:
    """Milliseconds of a chain in all forms."""
    small, inputs = chain(width, bits, depth), torch.randn(max(ROWS), width)
    with tempfile.TemporaryDirectory() as folder:
        runs, sizes = {}, {}
        for form, settings in FORMS.items():
            path = Path(folder) / f"{form}.onnx"
            sizes[f"{form} bytes"] = qc.export(small, path, inputs[:8], **settings).nbytes
            runs[form] = by_onnxruntime(path)
        times = {rows: milliseconds(runs, inputs[:rows].numpy(), RUNS) for rows in ROWS}
    return sizes | {f"{form} {rows} ms": taken[form] for rows, taken in times.items() for form in FORMS}


@STUDY.table
def tables(options: Options) -> str:
    """How many times faster than unpacked, by width and rows."""
    rows = newest(STUDY.records(), "width", "bits", "depth")
    for record in rows:
        for count in ROWS:
            plain = record[f"unpacked {count} ms"]
            fast = [plain / record[f"{form} {count} ms"] for form in ("standard", "own")]
            record[f"speed of {count}"] = f"{fast[0]:.2f} / {fast[1]:.2f}"
    columns = {"width": "{width}", "layers": "{depth}", "bits": "{bits}"} | {
        "1 row" if count == 1 else f"{count} rows": f"{{speed of {count}}}" for count in ROWS
    }
    return (
        f"# Linear layers with packed weights\n\nChains of square layers in onnxruntime, one thread: how many "
        "times faster than the same file unpacked when loaded; standard operators / onnxruntime's own. Rows are batch "
        f"times tokens.\n\n{table(sorted(rows, key=lambda one: (one['bits'], one['depth'], one['width'])), columns)}\n"
    )


if __name__ == "__main__":
    STUDY.main()
