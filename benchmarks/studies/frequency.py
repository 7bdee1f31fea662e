"""Kernels pruned and quantized by their frequencies, against the same in space: error and loss at equal bytes.

    python -m benchmarks.studies.frequency uniform   # one choice for all 3 x 3 convolutions
    python -m benchmarks.studies.frequency layers    # every choice of single layers, and who is ahead at equal bytes
    python -m benchmarks.studies.frequency solve     # menus with and without frequencies, solved at some ratios
    python -m benchmarks.studies.frequency splicing  # masks that move in one epoch of recovery, against fixed ones
    python -m benchmarks.studies.frequency table

Errors are shares of the squared norm of the weights, meant over layers; losses are KL divergences from the original
network on validation images, accuracies those of test images. Records are appended to
``benchmarks/results/frequency.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import Record, markdown, newest, table
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.calibration.evaluation import outputs_of, score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.menu.operator import parse, stored_as

BITS = (3, 4, 6)
SHARES = (0.5, 0.65, 0.75, 0.85)

MENUS: dict[str, tuple[str, ...]] = {
    "quantized": tuple(f"quantize(bits={bits})" for bits in (2, 3, 4, 5, 6, 8)),
    "pruned": tuple(f"quantize(bits={bits},sparsity={share})" for share in SHARES for bits in BITS),
    "bands": tuple(f"frequency(bands={bands},bits={bits})" for bands in (2, 3, 4) for bits in BITS),
    "frequencies": tuple(f"frequency(sparsity={share},bits={bits})" for share in SHARES for bits in BITS),
}
"""Families that are compared: two in space, two in frequency, structured and not."""

VARIANTS = (
    *tuple(
        f"frequency(sparsity=0.75,bits=4{more})"
        for more in (",scales='filter'", ",beta=(1.5, 1.0)", ",beta=(2.0, 1.0)", ",beta=(3.0, 1.0)", ",slope=0.25")
    ),
    "frequency(bits=4)",
    "frequency(bits=4,scales='filter')",
    "frequency(bits=4,slope=-0.25,scales='filter')",
)
"""Settings that are tried once, with one choice for all layers."""

JOINT = {
    "quantized": ("quantized",),
    "quantized+pruned": ("quantized", "pruned"),
    "quantized+bands": ("quantized", "bands"),
    "quantized+frequencies": ("quantized", "bands", "frequencies"),
    "all": tuple(MENUS),
}

TUNED = (
    "quantize(bits=4,sparsity=0.75)", "frequency(sparsity=0.75,bits=4)",
    "quantize(bits=4,sparsity=0.85)", "frequency(sparsity=0.85,bits=4)",
)  # fmt: skip


STUDY = Study(
    __doc__, "frequency", report="frequency_{network}", field="step", network="cifar10-resnet20",
    examples=Option(1000, "calibration and validation images"), test_examples=10_000, ratios=[8.0, 12.0, 16.0],
    time_limit=5.0, tuned=list(TUNED), tuning_examples=4000, learning_rates=[1e-3, 3e-3], seed=0,
    threads=torch.get_num_threads(), cache="out/tables", progress=False,
)  # fmt: skip


@lru_cache(maxsize=1)
def network_of(options: Options) -> Network:
    """The network with its calibration images."""
    return channels_last(load(options.network, calibration_examples=options.examples))


def kernels_of(layout: qc.menu.Layout) -> list[qc.menu.Group]:
    """Groups of convolutions whose kernels have three values or more along an axis."""
    return [g for g in layout.groups if g.kind == "weight" and max(g.members[0].shape[2:], default=0) >= 3]


def planned(network: Network, choice: str) -> tuple[qc.Plan, int]:
    """A plan with one choice for all kernels and ``keep`` elsewhere, and the bytes of these kernels."""
    menu = qc.Menu([parse(choice)])
    few = [(x[:4], y[:4]) for x, y in network.calibration[:1]]
    table = qc.measure(network.model, few, menu=menu, metric="magnitude", progress=False)
    chosen = {group.name: choice for group in kernels_of(table.layout)}
    costs = dict(zip(((g, c) for g, cs in zip(table.group_names, table.choices, strict=True) for c in cs),
                     table.costs["bytes"], strict=True))  # fmt: skip
    return table.plan(chosen), int(sum(costs[item] for item in chosen.items()))


def error_of(network: Network, choice: str) -> float:
    """Mean over layers of the displacement's share of the squared norm."""
    state = network.model.state_dict()
    shares = []
    for group in kernels_of(qc.menu.discover(network.model)):
        parts = [state[member.name] for member in group.members]
        stored = stored_as(choice, group, parts).tensors()
        apart = sum(float((a - b).square().sum()) for a, b in zip(stored, parts, strict=True))
        shares.append(apart / sum(float(part.square().sum()) for part in parts))
    return statistics.mean(shares)


def figures(network: Network, model: Any, options: Options) -> dict[str, float]:
    """Divergence from the original on validation images, and test accuracy."""
    examples = read_examples(network.validation, options.examples)
    divergence = score_examples(model, examples, "kl", outputs_of(network.model, examples)).loss
    batches = network.test[: -(-options.test_examples // 250)]
    return {"divergence": divergence, "accuracy": 100 * accuracy_and_loss(model, batches)[0]}


@STUDY.step(lambda o: grid(network=[o.network], choice=[*(n for names in MENUS.values() for n in names), *VARIANTS]))
def uniform(options: Options, choice: str, **_: str) -> Record:
    """One choice for all kernels, with and without recovery of the statistics."""
    network = network_of(options)
    plan, size = planned(network, choice)
    return {"kernel_bytes": size, "error": error_of(network, choice), **applied(network, plan, options)}


def applied(network: Network, plan: qc.Plan, options: Options) -> dict[str, float]:
    """Figures of a plan, applied and recovered."""
    small = plan.apply(network.model)
    repaired = qc.recover(small, network.calibration, network.model, max_examples=options.examples, progress=False)
    recovered = {f"recovered_{name}": value for name, value in figures(network, repaired, options).items()}
    return figures(network, small, options) | recovered


@lru_cache(maxsize=1)
def measured(options: Options) -> qc.SensitivityTable:
    """The table of all four families."""
    network = network_of(options)
    names = [name for family in MENUS.values() for name in family]
    vectors = [parse("fold(bits=16)"), parse("cast(bits=16)"), parse("fold(bits=8)"), parse("cast(bits=8)")]
    cache = options.cache and f"{options.cache}/frequency_{network.name}_{options.examples}"
    return qc.measure(
        network.model, network.calibration, menu=qc.Menu([*map(parse, names), *vectors]), loss="kl",
        max_examples=options.examples, cache=cache, progress=options.progress,
    )  # fmt: skip


def front(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The points that no other beats in both bytes and loss, by bytes."""
    best: list[tuple[int, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def loss_at(points: list[tuple[int, float]], size: int) -> float:
    """Log-linear interpolation of a front at a number of bytes; NaN outside."""
    sizes, losses = np.array(front(points)).T
    if not sizes[0] <= size <= sizes[-1]:
        return float("nan")
    return float(np.exp(np.interp(size, sizes, np.log(np.maximum(losses, 1e-9)))))


def layers_at(options: Options) -> Iterator[Record]:
    """Every kernel layer at every ratio."""
    names = [group.name for group in kernels_of(measured(options).layout)]
    return grid(network=[options.network], group=names, ratio=options.ratios)


@STUDY.step(layers_at, again=True)
def layers(options: Options, group: str, ratio: float, **_: str) -> Record:
    """Loss of each family's front at a share of the layer's 32-bit bytes."""
    found = measured(options)
    number = found.group_names.index(group)
    offset, sizes = found.offsets[number], found.costs["bytes"]
    fronts: dict[str, list[tuple[int, float]]] = {}
    for family, names in MENUS.items():
        at = [offset + found.choices[number].index(name) for name in names]
        fronts[family] = [(int(sizes[i]), float(found.linear[i])) for i in at]
    fronts["space"] = fronts["quantized"] + fronts["pruned"]
    size = int(found.layout.groups[number].nbytes / ratio)
    return {family: loss_at(points, size) for family, points in fronts.items()}


@STUDY.step(lambda o: grid(network=[o.network], ratio=o.ratios, menu=JOINT), again=True)
def solve(options: Options, ratio: float, menu: str, **_: str) -> Record:
    """Menus with and without frequencies, solved jointly."""
    found = measured(options)
    vectors = [name for name in found.menu_names if name.startswith(("fold", "cast"))]
    narrow = found.narrowed([*(name for family in JOINT[menu] for name in MENUS[family]), *vectors])
    plan = narrow.plan(qc.solve(narrow.problem(qc.Budget(ratio=ratio)), time_limit=options.time_limit))
    picked = {family: sum(c in names for c in plan.choices.values()) for family, names in MENUS.items()}
    said = {"bytes": plan.bytes, "predicted": plan.predicted_loss, "picked": picked}
    return said | applied(network_of(options), plan, options)


def tunings(options: Options) -> Iterator[Record]:
    """Every choice and learning rate, with fixed masks and with masks that move."""
    return grid(
        network=[options.network], choice=options.tuned, learning_rate=options.learning_rates, moving=[False, True],
        seed=[options.seed], examples=[options.tuning_examples],
    )  # fmt: skip


@STUDY.step(tunings, again=True)
def splicing(options: Options, choice: str, learning_rate: float, moving: bool, seed: int, **_: Any) -> Record:
    """One epoch with fixed masks, or with masks that move."""
    network = network_of(options)
    small = planned(network, choice)[0].apply(network.model)
    started = time.perf_counter()
    tuned = qc.recover(
        small, network.train, network.model, epochs=1, learning_rate=learning_rate, splicing=moving, seed=seed,
        max_examples=options.tuning_examples, progress=options.progress,
    )  # fmt: skip
    return {"seconds": time.perf_counter() - started, **figures(network, tuned, options)}


@STUDY.table
def tables(options: Options) -> str:
    """All records of a network."""
    scores = {"divergence": "{divergence:.4f}", "top-1 %": "{accuracy:.2f}"}
    recovered = {"recovered top-1 %": "{recovered_accuracy:.2f}"}
    columns = {"kernels as": "{choice}", "bytes": "{kernel_bytes}", "error": "{error:.4f}", **scores}
    columns |= {"recovered divergence": "{recovered_divergence:.4f}", **recovered}
    found = sorted(STUDY.records("uniform", network=options.network), key=lambda r: r["kernel_bytes"])
    text = table(found, columns) + "\n" + _layers_text(options.network)
    columns = {"ratio": "{ratio:g}x", "menu": "{menu}", "predicted": "{predicted:.4f}", **scores, **recovered}
    columns["picked"] = lambda r: ", ".join(f"{family} {count}" for family, count in r["picked"].items() if count)
    solved = newest(STUDY.records("solve", network=options.network), "ratio", "menu")
    text += "\n" + table(sorted(solved, key=lambda r: (r["ratio"], list(JOINT).index(r["menu"]))), columns)
    columns = {"kernels as": "{choice}", "learning rate": "{learning_rate:g}", "seed": "{seed}", "images": "{examples}"}
    columns |= {"masks": lambda r: "move" if r["moving"] else "fixed", **scores}
    return text + "\n" + table(STUDY.records("splicing", network=options.network), columns)


def _layers_text(network: str) -> str:
    """Per ratio: geometric mean of each family's loss relative to the best in space, and layers where it is ahead."""
    records = newest(STUDY.records("layers", network=network), "group", "ratio")
    rows = []
    for cell in grid(ratio=sorted({r["ratio"] for r in records}), family=("pruned", "bands", "frequencies")):
        ratio, family = cell.values()
        both = [(r[family], r["space"]) for r in records if r["ratio"] == ratio]
        both = [pair for pair in both if np.isfinite(pair).all()]
        if both:
            mean = float(np.exp(np.mean([np.log(max(a, 1e-9) / max(b, 1e-9)) for a, b in both])))
            rows.append([f"{ratio:g}x", family, f"{mean:.2f}", f"{sum(a < b for a, b in both)} of {len(both)}"])
    return markdown(["layer at", "family", "loss, of best in space", "layers ahead"], rows)


if __name__ == "__main__":
    STUDY.main()
