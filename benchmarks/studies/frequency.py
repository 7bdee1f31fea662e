"""Kernels pruned and quantized by their frequencies, against the same in space: error and loss at equal bytes.

    python -m benchmarks.studies.frequency --uniform   # one choice for all 3 x 3 convolutions
    python -m benchmarks.studies.frequency --layers    # every choice of single layers, and who is ahead at equal bytes
    python -m benchmarks.studies.frequency --solve     # menus with and without frequencies, solved at some ratios
    python -m benchmarks.studies.frequency --splicing  # masks that move in one epoch of recovery, against fixed ones
    python -m benchmarks.studies.frequency --table

Errors are shares of the squared norm of the weights, meant over layers; losses are KL divergences from the original
network on validation images, accuracies those of test images. Records are appended to
``benchmarks/results/frequency.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

import qubo_compress as qc
from benchmarks.networks import Network, accuracy_and_loss, channels_last, load
from benchmarks.records import RESULTS, append, environment, markdown, read
from qubo_compress.calibration.evaluation import outputs_of, score_examples
from qubo_compress.calibration.examples import read_examples
from qubo_compress.menu.operator import parse, stored_as

PATH = RESULTS / "frequency.jsonl"

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
"""Settings that are looked at once, with one choice for all layers."""

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


def figures(network: Network, model: Any, options: argparse.Namespace) -> dict[str, float]:
    """Divergence from the original on validation images, and test accuracy."""
    examples = read_examples(network.validation, options.examples)
    divergence = score_examples(model, examples, "kl", outputs_of(network.model, examples)).loss
    batches = network.test[: -(-options.test_examples // 250)]
    return {"divergence": divergence, "accuracy": 100 * accuracy_and_loss(model, batches)[0]}


def uniform_step(network: Network, options: argparse.Namespace) -> None:
    """One choice for all kernels, with and without recovery of the statistics."""
    done = {r["choice"] for r in read(PATH) if r["step"] == "uniform" and r["network"] == network.name}
    for choice in (*(name for names in MENUS.values() for name in names), *VARIANTS):
        if choice in done:
            continue
        plan, size = planned(network, choice)
        small = plan.apply(network.model)
        repaired = qc.recover(small, network.calibration, network.model, max_examples=options.examples, progress=False)
        record = {
            "step": "uniform", "network": network.name, "choice": choice, "kernel_bytes": size,
            "error": error_of(network, choice), **figures(network, small, options),
            **{f"recovered_{k}": v for k, v in figures(network, repaired, options).items()}, **environment(),
        }  # fmt: skip
        append(PATH, record)
        shown = {k: round(v, 4) for k, v in record.items() if isinstance(v, float)}
        print(choice, size, shown, flush=True)


def measured(network: Network, options: argparse.Namespace) -> qc.SensitivityTable:
    """The table of all four families."""
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


def layers_step(network: Network, options: argparse.Namespace) -> None:
    """For every kernel layer: loss of each family's front at shares of the 32-bit bytes."""
    table = measured(network, options)
    offsets, sizes = table.offsets, table.costs["bytes"]
    for number, group in enumerate(table.layout.groups):
        if group not in kernels_of(table.layout):
            continue
        fronts: dict[str, list[tuple[int, float]]] = {}
        for family, names in MENUS.items():
            at = [offsets[number] + table.choices[number].index(name) for name in names]
            fronts[family] = [(int(sizes[i]), float(table.linear[i])) for i in at]
        fronts["space"] = fronts["quantized"] + fronts["pruned"]
        for ratio in options.ratios:
            losses = {family: loss_at(points, int(group.nbytes / ratio)) for family, points in fronts.items()}
            append(PATH, {"step": "layers", "network": network.name, "group": group.name, "ratio": ratio, **losses})
    print(layers_text(network.name))


def solve_step(network: Network, options: argparse.Namespace) -> None:
    """Menus with and without frequencies, solved jointly."""
    table = measured(network, options)
    vectors = [name for name in table.menu_names if name.startswith(("fold", "cast"))]
    for ratio in options.ratios:
        for menu, families in JOINT.items():
            narrow = table.narrowed([*(name for family in families for name in MENUS[family]), *vectors])
            solution = qc.solve(narrow.problem(qc.Budget(ratio=ratio)), time_limit=options.time_limit)
            plan = narrow.plan(solution)
            small = plan.apply(network.model)
            repaired = qc.recover(
                small, network.calibration, network.model, max_examples=options.examples, progress=False
            )
            picked = {family: sum(c in names for c in plan.choices.values()) for family, names in MENUS.items()}
            record = {
                "step": "solve", "network": network.name, "ratio": ratio, "menu": menu, "bytes": plan.bytes,
                "predicted": plan.predicted_loss, **figures(network, small, options), "picked": picked,
                **{f"recovered_{k}": v for k, v in figures(network, repaired, options).items()}, **environment(),
            }  # fmt: skip
            append(PATH, record)
            shown = {k: round(v, 4) for k, v in record.items() if isinstance(v, float)}
            print(menu, plan.bytes, shown, picked, flush=True)


def splicing_step(network: Network, options: argparse.Namespace) -> None:
    """One epoch with fixed masks, and one with masks that move."""
    for choice in options.tuned:
        small = planned(network, choice)[0].apply(network.model)
        for rate in options.learning_rates:
            for moving in (False, True):
                started = time.perf_counter()
                tuned = qc.recover(
                    small, network.train, network.model, epochs=1, learning_rate=rate, splicing=moving,
                    seed=options.seed, max_examples=options.tuning_examples, progress=options.progress,
                )  # fmt: skip
                record = {
                    "step": "splicing", "network": network.name, "choice": choice, "learning_rate": rate,
                    "moving": moving, "seed": options.seed, "examples": options.tuning_examples,
                    "seconds": time.perf_counter() - started, **figures(network, tuned, options), **environment(),
                }  # fmt: skip
                append(PATH, record)
                print(
                    choice,
                    rate,
                    moving,
                    {k: round(v, 4) for k, v in record.items() if isinstance(v, float)},
                    flush=True,
                )


def layers_text(network: str) -> str:
    """Per ratio: geometric mean of each family's loss relative to the best in space, and layers where it is ahead."""
    records = [r for r in read(PATH) if r["step"] == "layers" and r["network"] == network]
    latest = {(r["group"], r["ratio"]): r for r in records}
    rows = []
    for ratio in sorted({ratio for _, ratio in latest}):
        found = [r for (_, other), r in latest.items() if other == ratio]
        for family in ("pruned", "bands", "frequencies"):
            both = [(r[family], r["space"]) for r in found if np.isfinite([r[family], r["space"]]).all()]
            if both:
                mean = float(np.exp(np.mean([np.log(max(a, 1e-9) / max(b, 1e-9)) for a, b in both])))
                ahead = sum(a < b for a, b in both)
                rows.append([f"{ratio:g}x", family, f"{mean:.2f}", f"{ahead} of {len(both)}"])
    return markdown(["layer at", "family", "loss, of best in space", "layers ahead"], rows)


def table_text(network: str) -> str:
    """All records of a network as markdown."""
    records = [r for r in read(PATH) if r["network"] == network]
    uniform = sorted((r for r in records if r["step"] == "uniform"), key=lambda r: r["kernel_bytes"])
    header = ["kernels as", "bytes", "error", "divergence", "top-1 %", "recovered divergence", "recovered top-1 %"]
    rows = [
        [r["choice"], str(r["kernel_bytes"]), f"{r['error']:.4f}", f"{r['divergence']:.4f}", f"{r['accuracy']:.2f}",
         f"{r['recovered_divergence']:.4f}", f"{r['recovered_accuracy']:.2f}"]
        for r in uniform
    ]  # fmt: skip
    text = markdown(header, rows) + "\n" + layers_text(network)
    solved = {(r["ratio"], r["menu"]): r for r in records if r["step"] == "solve"}
    header = ["ratio", "menu", "predicted", "divergence", "top-1 %", "recovered top-1 %", "picked"]
    rows = [
        [f"{r['ratio']:g}x", r["menu"], f"{r['predicted']:.4f}", f"{r['divergence']:.4f}", f"{r['accuracy']:.2f}",
         f"{r['recovered_accuracy']:.2f}", ", ".join(f"{f} {n}" for f, n in r["picked"].items() if n)]
        for _, r in sorted(solved.items(), key=lambda item: (item[0][0], list(JOINT).index(item[0][1])))
    ]  # fmt: skip
    text += "\n" + markdown(header, rows)
    header = ["kernels as", "learning rate", "seed", "images", "masks", "divergence", "top-1 %"]
    rows = [
        [r["choice"], f"{r['learning_rate']:g}", str(r["seed"]), str(r["examples"]),
         "move" if r["moving"] else "fixed", f"{r['divergence']:.4f}", f"{r['accuracy']:.2f}"]
        for r in records if r["step"] == "splicing"
    ]  # fmt: skip
    return text + "\n" + markdown(header, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cifar10-resnet20")
    parser.add_argument("--examples", type=int, default=1000, help="calibration and validation images")
    parser.add_argument("--test-examples", type=int, default=10_000)
    parser.add_argument("--ratios", type=float, nargs="+", default=[8.0, 12.0, 16.0])
    parser.add_argument("--time-limit", type=float, default=5.0)
    parser.add_argument("--tuned", nargs="+", default=list(TUNED))
    parser.add_argument("--tuning-examples", type=int, default=4000)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cache", default="out/tables")
    parser.add_argument("--progress", action="store_true")
    steps = {"uniform": uniform_step, "layers": layers_step, "solve": solve_step, "splicing": splicing_step}
    for step in (*steps, "table"):
        parser.add_argument(f"--{step}", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = [step for name, step in steps.items() if getattr(options, name)]
    if chosen:
        network = channels_last(load(options.network, calibration_examples=options.examples))
        for step in chosen:
            step(network, options)
    text = table_text(options.network)
    (RESULTS / f"frequency_{options.network}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
