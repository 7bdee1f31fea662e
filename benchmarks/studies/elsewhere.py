"""Ours beside the runtimes' own tools: accuracy, bytes and milliseconds in onnxruntime and OpenVINO.

    python -m benchmarks.studies.elsewhere [--networks cifar10-resnet20] [made|scored|timed|table]

Rows: torch's own float32 export; our best plan at 8x of weights alone; every layer that takes it as
``quantize(bits=8,activations=8)``; half of the multiplications by ``groups="channel"``, recovered, in float32 and then
in 8 bits; onnxruntime's static quantization (three calibrators, all operators or products alone) and NNCF (two
presets), of which the settings of least cross-entropy on the calibration examples count; torch-pruning's magnitudes at
half of the multiplications, trained by the same recipe, in float32 and then by each runtime's own tool. All see the
same calibration and training examples, and are scored on the same test examples, in the runtime. One thread.
Milliseconds are CPU time, the median of runs that alternate with those of the float32 file, so that a loaded machine
slows all alike; in brackets, how many times faster than that file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qubo_compress as qc
from benchmarks.networks import Batches, Network, first, load
from benchmarks.records import Record, matching, newest, table
from benchmarks.rivals import by_torch_pruning, nbytes, rounded_by_runtime
from benchmarks.runtimes import AT_ONCE, RUNTIMES, accuracy, float_file, milliseconds, running
from benchmarks.studies.channels import RECIPES, Recipe, moved, multiplications, trained
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.recovery import Distillation

NETWORKS = ("cifar10-resnet20", "imagenet-efficientnet-lite0", "fashion-mnist-vit", "text-gpt")
TEXT, TRANSFORMERS = "text-gpt", ("text-gpt", "fashion-mnist-vit")
TRAINING = {
    "cifar10-resnet20": (4_000, 5), "imagenet-efficientnet-lite0": (200, 2), "fashion-mnist-vit": (2_000, 3),
    "text-gpt": (300, 2),
}  # fmt: skip
"""Training examples, and epochs on them, after channels left. EfficientNet has no more images here."""

SOFTENED = ("cifar10-resnet20",)
"""Networks that are trained by the other recipe of the channels study: moved images, softened probabilities."""

WANTED = ("quantize(bits=8,activations=8)", "quantize(bits=8)", "fold(bits=16)", "cast(bits=16)", "keep")
"""What a tensor becomes in 8 bits: the first of these that it can be."""

FLOAT, SMALL, UNPACKED = "float32", "ours, 8x weights", "ours, 8x weights, unpacked when loaded"
BITS, HALF, BOTH = "ours, W8A8", "ours, half the multiplications", "ours, half the multiplications, W8A8"
OWN, PRUNED = "the runtime's own W8A8", "torch-pruning, half the multiplications"
PRUNED_OWN = "torch-pruning, half the multiplications, the runtime's own W8A8"
ROWS = (FLOAT, SMALL, UNPACKED, BITS, HALF, BOTH, OWN, PRUNED, PRUNED_OWN)

STUDY = Study(
    __doc__, "elsewhere", field="step", networks=list(NETWORKS), rows=Option(list(ROWS), choices=ROWS), examples=200,
    scored=10_000, rounds=15, channel_examples=512, epochs=Option(None, "instead of each network's own", type=int),
    folder="out/elsewhere",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """One network, its examples, and the folder of everything that is made of it."""

    network: str
    options: Options

    @cached_property
    def loaded(self) -> Network:
        """With the training examples that recover it; the first of them calibrate."""
        return load(self.network, calibration_examples=TRAINING[self.network][0])

    @property
    def calibration(self) -> Batches:
        """The examples that measure and calibrate."""
        return first(self.loaded.calibration, self.options.examples)

    @property
    def example(self) -> Tensor:
        """Inputs that files are checked with."""
        return self.calibration[0][0][:64]

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes of the inputs of any length."""
        return (0, 1) if self.network == TEXT else (0,)

    @property
    def epochs(self) -> int:
        """Of training after channels left."""
        return TRAINING[self.network][1] if self.options.epochs is None else self.options.epochs

    @property
    def recipe(self) -> Recipe:
        """Of training after channels left, the same for all."""
        return RECIPES["softened" if self.network in SOFTENED else "plain"]

    def path(self, name: str) -> Path:
        """A file of this network."""
        folder = Path(self.options.folder, self.network)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name.replace(", ", "-").replace(" ", "_").replace("'", "")

    def kept(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A compressed network from its file, or made now."""
        path = self.path(f"{name}.safetensors")
        if not path.exists():
            qc.save(make(), path)
        return qc.load(path, self.loaded.model)

    def small(self) -> nn.Module:
        """Weights at 8x."""
        return self.kept(
            SMALL,
            lambda: qc.compress(self.loaded.model, self.calibration, qc.Budget(ratio=8.0), progress=False).model,
        )

    def half(self) -> nn.Module:
        """With channels removed, recovered."""

        def make() -> nn.Module:
            some = first(self.loaded.calibration, self.options.channel_examples)
            macs = multiplications(self.loaded.model, self.example) // 2
            found = qc.compress(
                self.loaded.model, some, qc.Budget(ratio=1, macs=macs), groups="channel", progress=False
            )
            recipe = self.recipe
            return qc.recover(
                found.model, self.loaded.calibration, teacher=self.loaded.model, epochs=self.epochs,
                max_examples=TRAINING[self.network][0], progress=False, learning_rate=recipe.rate,
                objective=Distillation(temperature=recipe.temperature, labels=recipe.labels),
                augment=partial(moved, shift=recipe.shift) if recipe.shift else None,
            )  # fmt: skip

        return self.kept(HALF, make)

    def rounded(self, name: str, model: Callable[[], nn.Module]) -> nn.Module:
        """A network with 8-bit weights and activations in every layer that takes them."""

        def make() -> nn.Module:
            net, menu = model(), qc.Menu(list(WANTED[:-1]))
            found = qc.measure(net, self.calibration, menu=menu, metric="products", interactions=False, progress=False)
            offered = zip(found.group_names, found.choices, strict=True)
            plan = found.plan({group: next(one for one in WANTED if one in names) for group, names in offered})
            return qc.recover(plan.apply(net), self.calibration, teacher=net, progress=False)

        return self.kept(name, make)

    def pruned(self) -> nn.Module:
        """By torch-pruning, trained."""
        path = self.path(f"{PRUNED}.pt")
        if not path.exists():
            macs = multiplications(self.loaded.model, self.example) // 2
            cut = by_torch_pruning(self.loaded.model, self.example, macs)
            small = trained(cut, self.loaded.model, self.loaded.calibration, self.epochs, 0, self.recipe)
            torch.save(small, path)
        found: nn.Module = torch.load(path, weights_only=False)
        return found.eval()

    def ours(self, row: str) -> nn.Module | None:
        """Our network of a row; None where the row is another's."""
        made: dict[str, Callable[[], nn.Module]] = {
            SMALL: self.small, UNPACKED: self.small, HALF: self.half,
            BITS: lambda: self.rounded(BITS, lambda: self.loaded.model), BOTH: lambda: self.rounded(BOTH, self.half),
        }  # fmt: skip
        return made[row]() if row in made else None

    def file(self, row: str, runtime: str) -> tuple[Path, Record]:
        """The file of a row for a runtime, and what its record says more."""
        found = self.ours(row)
        if found is not None:
            path = self.path(f"{row}-{runtime}.onnx")
            exported = qc.export(
                found, path, self.example, runtime=runtime, dynamic=self.axes, packed_products=row != UNPACKED
            )
            return path, {"ours": exported.artifact_bytes, "agreement": exported.agreement}
        plain = self.path(f"{PRUNED if row in (PRUNED, PRUNED_OWN) else FLOAT}.onnx")
        if not plain.exists():
            float_file(
                self.pruned() if row in (PRUNED, PRUNED_OWN) else self.loaded.model, self.example, plain, self.axes
            )
        if row in (FLOAT, PRUNED):
            return plain, {}
        stem = self.path(f"{row}-{runtime}")
        path, losses = rounded_by_runtime(runtime, plain, self.calibration, stem, self.network in TRANSFORMERS)
        return path, {"losses": losses}


def _cells(options: Options) -> Iterator[Record]:
    for cell in grid(network=options.networks, row=options.rows):
        if cell["row"] != UNPACKED or cell["network"] in TRANSFORMERS:
            yield cell


@STUDY.step(_cells)
def made(options: Options, network: str, row: str) -> Iterator[Record]:
    """Every file of a row, with its accuracy on test examples."""
    torch.set_num_threads(1)
    work = Work(network, options)
    test = first(work.loaded.test, options.scored)
    for runtime in RUNTIMES:
        started = time.process_time()
        path, more = work.file(row, runtime)
        took = time.process_time() - started
        model = work.ours(row) if row in (HALF, BOTH) else work.pruned() if row in (PRUNED, PRUNED_OWN) else None
        counted = work.loaded.model if model is None else model
        macs, before = (multiplications(net, work.example) for net in (counted, work.loaded.model))
        yield {
            "runtime": runtime, "path": str(path), "bytes": nbytes(path), "cpu_making": took, **more,
            "macs": macs, "macs_before": before,
            "accuracy": accuracy(running(runtime, path), test), "examples": sum(len(batch) for batch, _ in test),
            "training": TRAINING[network][0], "epochs": work.epochs,
        }  # fmt: skip


@STUDY.step(lambda options: grid(network=options.networks, runtime=RUNTIMES))
def timed(options: Options, network: str, runtime: str) -> Iterator[Record]:
    """Milliseconds of all files of a network in a runtime, which take turns."""
    files = {one["row"]: one for one in newest(STUDY.records("made", network=network, runtime=runtime), "row")}
    runs = {row: running(runtime, Path(one["path"])) for row, one in files.items()}
    inputs = load(network, calibration_examples=AT_ONCE).calibration[0][0][:AT_ONCE].numpy()
    if len(inputs) < AT_ONCE:
        inputs = torch.cat([batch for batch, _ in load(network, calibration_examples=2 * AT_ONCE).calibration])[
            :AT_ONCE
        ].numpy()
    batches = {"1": inputs[:1], "32": inputs} | ({"row": inputs[:1, :1]} if network == TEXT else {})
    taken = {name: milliseconds(runs, given, options.rounds) for name, given in batches.items()}
    for row in runs:
        times = {f"milliseconds_{name}": found[row] for name, found in taken.items()}
        yield {"row": row, **times, **{f"ratio_{name}": found[FLOAT] / found[row] for name, found in taken.items()}}


@STUDY.table
def tables(options: Options) -> str:
    """One table for each network."""
    parts = [f"# Ours and the runtimes' own tools\n\n{__doc__.partition('Rows: ')[2].strip()}\n"]
    for network in NETWORKS:
        found = newest(STUDY.records("made", network=network), "runtime", "row")
        if not found:
            continue
        times = newest(STUDY.records("timed", network=network), "runtime", "row")
        joined = [one | _times(one, times) for one in found]
        joined.sort(key=lambda one: (RUNTIMES.index(one["runtime"]), ROWS.index(one["row"])))
        parts.append(f"## {network}\n\n{_caption(joined)}\n\n{table(joined, _columns(network))}")
    return "\n".join(parts)


def _times(one: Record, times: list[Record]) -> Record:
    """The milliseconds of a row in its runtime, if they were measured."""
    same = matching(times, runtime=one["runtime"], row=one["row"])
    return (
        {name: value for name, value in same[0].items() if name.startswith(("milliseconds_", "ratio_"))} if same else {}
    )


def _caption(found: list[Record]) -> str:
    one = found[0]
    return (
        f"{one['examples']:,} test examples; after channels left, {one['epochs']} epochs on {one['training']:,} "
        f"training examples. {one['cpu']}."
    )


def _columns(network: str) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "runtime": "{runtime}", "network": _named, "accuracy": lambda r: f"{100 * r['accuracy']:.2f} %",
        "multiplications": lambda r: f"{r['macs'] / r['macs_before']:.0%}",
        "our file, bytes": lambda r: f"{r['ours']:,}" if "ours" in r else "", "the runtime's file": "{bytes:,}",
    }  # fmt: skip
    for name, title in (("row", "one row"), ("1", "batch 1"), ("32", "batch 32")):
        if name != "row" or network == TEXT:
            columns[f"{title}, CPU ms"] = f"{{milliseconds_{name}:.3f}} ({{ratio_{name}:.2f}}x)"
    return columns


def _named(record: Record) -> str:
    own = {"onnxruntime": "onnxruntime's static quantization", "openvino": "NNCF post-training"}[record["runtime"]]
    losses = {name: loss for name, loss in record.get("losses", {}).items() if loss != float("inf")}
    chosen = f" ({min(losses, key=losses.__getitem__)})" if losses else ""
    return str(record["row"]).replace(OWN, own) + chosen


if __name__ == "__main__":
    STUDY.main()
