"""Weights in phase-change cells: is the expected loss right, and how many cells does a joint choice save?

    python -m benchmarks.studies.unreliable_storage --part expected
    python -m benchmarks.studies.unreliable_storage --part cells
    python -m benchmarks.studies.unreliable_storage --part training

``expected``: the closed-form cost of noise, 1/2 sum h v, and the whole predicted loss change against the mean over
noisy reads, on the calibration images, over plans and noise levels, as KL divergence and as cross-entropy.
``cells``: one table holds reliable and
unreliable choices; over budgets in cells, the joint choice against the same analog protection everywhere, reliable
quantization chosen layer by layer, and 8-bit reliable storage; loss and accuracy are means over noisy reads of the
test images. ``training``: one epoch of fine-tuning with and without fresh noise. All cells are those of one channel:
an error-free bit costs what the best BCH code over multi-level cells takes. Records go to
``benchmarks/results/unreliable_storage.jsonl``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

import qubo_compress as qc
from benchmarks.networks import Batches, Network, accuracy_and_loss, load
from benchmarks.records import RESULTS, append, environment, markdown, read
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.statistics import Calibration
from qubo_compress.calibration.statistics.curvature import Curvature
from qubo_compress.menu.operator import parse
from qubo_compress.network.losses.classification import make_loss, rows_of
from qubo_compress.plan import compression_of
from qubo_compress.sensitivity.noise import expected_loss, priced_in_cells

PATH = RESULTS / "unreliable_storage.jsonl"
VECTORS = ("fold(bits=16)", "cast(bits=16)")
RELIABLE = tuple(f"quantize(bits={bits})" for bits in (2, 3, 4, 5, 6, 8))
NOISY = (
    "analog", "analog(cells=2)", "analog(cells=3)", "analog(cells=4)", "analog(cells=6)", "analog(cells=8)",
    "analog(sign=False)", "analog(cells=2,sign=False)",
    "analog(small=0.25)", "analog(cells=2,small=0.25)",
    "analog(sparsity=0.5)", "analog(cells=2,sparsity=0.5)", "analog(cells=4,sparsity=0.5)", "analog(sparsity=0.3)",
    "analog(cells=1.5,redundancy='curvature')", "analog(cells=2,redundancy='curvature')",
    "analog(cells=3,redundancy='curvature')", "analog(cells=4,redundancy='curvature')",
    "analog(cells=2,sparsity=0.5,redundancy='curvature')",
)  # fmt: skip


def named(name: str, noise: float) -> str:
    """The choice of that name on cells of another noise."""
    operator: Any = parse(name)
    if name.startswith("digital"):  # variances of flips grow with their rate
        operator = replace(operator, flip_rate=operator.flip_rate * noise**2)
    return qc.menu.choice_name(replace(operator, noise=noise) if name.startswith("analog") else operator)


def first(batches: Batches, examples: int) -> Batches:
    """The first examples, channels last."""
    inputs, targets = (torch.cat(tensors)[:examples] for tensors in zip(*batches, strict=True))
    moved = inputs.contiguous(memory_format=torch.channels_last)
    return list(zip(moved.split(250), targets.split(250), strict=True))


def measured(
    network: Network, names: list[str], options: argparse.Namespace, noise: float, **metric: str
) -> qc.SensitivityTable:
    """Table of the choices, cells priced for the channel."""
    menu = qc.Menu([parse(name) for name in dict.fromkeys([*names, *VECTORS])])
    table = qc.measure(network.model, first(network.calibration, options.examples), menu=menu, progress=False, **metric)
    return priced_in_cells(table, qc.channels.AnalogChannel.noisier(qc.channels.channels.get("pcm"), noise))


def everywhere(table: qc.SensitivityTable, name: str) -> qc.Plan:
    """One choice for all weights, 16 bits for vectors."""
    return table.plan(
        {
            g: next(c for c in (name, *VECTORS) if c in choices)
            for g, choices in zip(table.group_names, table.choices, strict=True)
        }
    )


def cells_of(table: qc.SensitivityTable, plan: qc.Plan) -> int:
    """Cells of a plan, header included."""
    chosen = table.offsets[:-1] + table.assignment(plan.choices)
    return int(table.fixed_costs["cells"] + table.costs["cells"][chosen].sum())


def reads(small: nn.Module, batches: Batches, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and loss of noisy reads."""
    found = [accuracy_and_loss(qc.read_unreliably(small, seed), batches) for seed in range(count)]
    accuracy, loss = np.array(found).T
    return accuracy, loss


LOSSES = ("kl", "cross-entropy")


class Reads:
    """Losses of noisy reads on some images: divergence from the uncompressed network, and cross-entropy."""

    def __init__(self, original: nn.Module, batches: Batches) -> None:
        self.batches = batches
        self.reference = self._scores(original)

    def _scores(self, net: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([net(inputs) for inputs, _ in self.batches]).log_softmax(-1)

    def losses(self, net: nn.Module) -> np.ndarray:
        """(2,) changes against the uncompressed network, in the order of LOSSES."""
        change = (self.reference - self._scores(net)).double()
        targets = torch.cat([targets for _, targets in self.batches])
        divergence = (self.reference.double().exp() * change).sum(-1).mean()
        return np.array([divergence, change.gather(1, targets[:, None]).mean()])

    def gradients(self, net: nn.Module) -> list[list[torch.Tensor]]:
        """Gradients of both losses with respect to the parameters, in the order of LOSSES."""
        total = [[torch.zeros_like(p) for p in net.parameters()] for _ in LOSSES]
        start, count = 0, len(self.reference)
        for inputs, targets in self.batches:
            rows = self.reference[start : start + len(inputs)].exp()
            start += len(inputs)
            scores = net(inputs).log_softmax(-1)
            goals = rows, nn.functional.one_hot(targets, scores.shape[1]).to(scores)
            for sums, goal in zip(total, goals, strict=True):
                found = torch.autograd.grad(-(goal * scores).sum() / count, list(net.parameters()), retain_graph=True)
                for whole, part in zip(sums, found, strict=True):
                    whole += part
        return total

    def without_slope(self, small: nn.Module, count: int, first_seed: int) -> np.ndarray:
        """(count, 2) losses less their linear part, gradient . errors, whose mean is zero."""
        slopes, found = self.gradients(small), []
        for seed in range(first_seed, first_seed + count):
            noisy = qc.read_unreliably(small, seed)
            errors = [
                (there - mean).detach() for there, mean in zip(noisy.parameters(), small.parameters(), strict=True)
            ]
            linear = [sum(float((g * e).sum()) for g, e in zip(slope, errors, strict=True)) for slope in slopes]
            found.append(self.losses(noisy) - np.array(linear))
        return np.array(found)


def expected(network: Network, options: argparse.Namespace) -> None:
    """Predicted against Monte-Carlo loss on the calibration images."""
    batches = first(network.calibration, options.examples)
    run = lambda inputs: rows_of(network.model(inputs))  # noqa: E731
    examples = read_examples(batches, options.examples)
    calibration = Calibration(network.model, examples, make_loss("kl"), run, seed=0)
    played = Reads(network.model, batches)
    for noise in options.noise:
        for name in (named(n, noise) for n in options.plans):
            metrics: Any = [{"loss": loss} for loss in LOSSES] if options.whole else [{"metric": "magnitude"}]
            plans = [everywhere(measured(network, [name], options, noise, **metric), name) for metric in metrics]
            small = plans[0].apply(network.model)
            losses = played.without_slope(small, options.reads, first_seed=10_000)
            means = played.losses(small)
            term = noise_of(calibration, plans[0])
            for k, loss in enumerate(LOSSES):
                record = {
                    "part": "expected", "noise": noise, "plan": name, "loss": loss, "noise_term": term,
                    "mean_network": means[k], "monte_carlo": losses[:, k].mean(),
                    "standard_error": losses[:, k].std(ddof=1) / len(losses) ** 0.5,
                    "predicted": plans[k].predicted_loss if options.whole else None,
                    "reads": options.reads, "examples": options.examples, **environment(),
                }  # fmt: skip
                append(PATH, record)
                print(" | ".join(expected_row(record)), flush=True)


def expected_row(record: dict[str, Any]) -> list[str]:
    """One line of the table: the noise term and the whole change, each with predicted / measured."""
    paid = record["monte_carlo"] - record["mean_network"]
    error, term, whole = record["standard_error"], record["noise_term"], record["predicted"]
    return [
        f"{record['noise']:g}", record["plan"], record["loss"], f"{term:.4f}", f"{paid:.4f} +- {error:.4f}",
        f"{term / paid:.2f} +- {error * term / paid**2:.2f}",
        f"{whole:.4f}" if whole else "-", f"{record['monte_carlo']:.4f}",
        f"{whole / record['monte_carlo']:.2f}" if whole else "-", str(record["reads"]), str(record["examples"]),
    ]  # fmt: skip


def noise_of(calibration: Calibration, plan: qc.Plan) -> float:
    """The closed-form noise term of a plan: what its stored groups' variances cost."""
    compression = compression_of(plan.apply(calibration.model))
    return sum(
        expected_loss(compression.stored[g.name].variances(), Curvature().collect(calibration, g))
        for g in compression.layout.groups
        if compression.stored[g.name].unreliable
    )


def cells(network: Network, options: argparse.Namespace) -> None:
    """Cells against accuracy."""
    test = first(network.test, options.test)
    table = measured(network, [*RELIABLE, *(named(n, options.level) for n in NOISY)], options, options.level)
    accuracy, loss = accuracy_and_loss(network.model, test)
    say(options, "original", "float32", table.layout.original_bytes * 8, accuracy, loss, 0.0, 0.0)
    for name in (*RELIABLE[2:], *(named(n, options.level) for n in NOISY)):
        family = "uniform reliable" if name.startswith("quantize") else "uniform analog"
        score_plan(network, table, everywhere(table, name), family, name, test, options)
    families = {
        "joint": table,
        "reliable only": table.narrowed([*RELIABLE, *VECTORS]),
        "analog only": table.narrowed([*(named(n, options.level) for n in NOISY), *VECTORS]),
    }
    for per_weight in options.budgets:
        limit = int(per_weight * table.layout.parameters)
        for family, offered in families.items():
            problem = offered.problem(qc.Budget(ratio=0.5, cells=limit))
            try:
                solution = qc.solve(problem, "annealer", time_limit=options.time_limit)
            except qc.errors.InfeasibleBudget:
                print(family, per_weight, "does not fit")
                continue
            score_plan(network, offered, offered.plan(solution), family, f"{per_weight:g} cells", test, options)


def score_plan(
    network: Network, table: qc.SensitivityTable, plan: qc.Plan, family: str, name: str, test: Batches, options: Any
) -> None:
    """Accuracy and loss of noisy reads, recorded."""
    small = plan.apply(network.model)
    noisy = any(c.startswith("analog") for c in plan.choices.values())
    accuracy, loss = reads(small, test, options.reads if noisy else 1)
    counts = {c: list(plan.choices.values()).count(c) for c in sorted(set(plan.choices.values()))}
    say(
        options, family, name, cells_of(table, plan), float(accuracy.mean()), float(loss.mean()),
        float(accuracy.std()), plan.predicted_loss, table.layout.parameters, counts,
    )  # fmt: skip


def say(
    options: Any, family: str, name: str, used: int, accuracy: float, loss: float, spread: float, predicted: float,
    parameters: int = 1, counts: dict[str, int] | None = None,
) -> None:  # fmt: skip
    """Record and print one plan."""
    record = {
        "part": "cells", "family": family, "plan": name, "level": options.level, "cells": used,
        "cells_per_weight": used / parameters, "accuracy": 100 * accuracy, "spread": 100 * spread, "loss": loss,
        "predicted": predicted, "test": options.test, "reads": options.reads, "choices": counts, **environment(),
    }  # fmt: skip
    append(PATH, record)
    print(
        f"{family:17} {name:55} {used / parameters:6.3f} cells/weight {100 * accuracy:6.2f} % loss {loss:.4f}",
        flush=True,
    )


def training(network: Network, options: argparse.Namespace) -> None:
    """Fine-tuning with and without noise."""
    test = first(network.test, options.test)
    data = first(network.train, options.train)
    for noise in options.noise:
        for plan_name in options.plans:
            name = named(plan_name, noise)
            table = measured(network, [name], options, noise)
            small = everywhere(table, name).apply(network.model)
            nets = {"none": small}
            for kind, flag in (("plain", False), ("noisy", True)):
                nets[kind] = qc.recover(
                    small, data, network.model, epochs=1, max_examples=options.train, noise=flag, progress=False,
                    learning_rate=options.learning_rate,
                )  # fmt: skip
            for kind, net in nets.items():
                accuracy, loss = reads(net, test, options.reads)
                record = {
                    "part": "training", "noise": noise, "plan": name, "tuning": kind, "accuracy": 100 * accuracy.mean(),
                    "spread": 100 * accuracy.std(), "loss": loss.mean(), "train": options.train,
                    "learning_rate": options.learning_rate,
                    "mean_network_accuracy": 100 * accuracy_and_loss(net, test)[0], **environment(),
                }  # fmt: skip
                append(PATH, record)
                print(
                    f"x{noise:g} {name} {kind:6} {record['accuracy']:.2f} % (+-{record['spread']:.2f}) "
                    f"loss {record['loss']:.4f} mean network {record['mean_network_accuracy']:.2f} %",
                    flush=True,
                )


def table_text() -> str:
    """The records as markdown."""
    parts = []
    found = [r for r in read(PATH) if r["part"] == "expected"]
    heads = ["noise", "plan", "loss", "1/2 sum h v", "measured", "ratio", "predicted, all", "measured, all", "ratio"]
    parts.append(markdown([*heads, "reads", "images"], [expected_row(r) for r in found]))
    found = [r for r in read(PATH) if r["part"] == "cells"]
    rows = [
        [r["family"], r["plan"], f"{r['cells_per_weight']:.3f}", f"{r['accuracy']:.2f}", f"{r['loss']:.4f}"]
        for r in sorted(found, key=lambda r: (r["family"], r["cells"]))
    ]
    parts.append(markdown(["family", "plan", "cells per weight", "top-1 %", "test loss"], rows))
    found = [r for r in read(PATH) if r["part"] == "training"]
    rows = [
        [
            f"{r['noise']:g}",
            r["plan"],
            r["tuning"],
            f"{r['train']:,}",
            f"{r.get('learning_rate', 1e-3):g}",
            f"{r['accuracy']:.2f}",
            f"{r['spread']:.2f}",
            f"{r['loss']:.4f}",
        ]
        for r in found
    ]
    parts.append(
        markdown(
            ["noise", "plan", "tuning", "images", "learning rate", "top-1 %", "s.d. over reads", "test loss"], rows
        )
    )
    return "\n".join(parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("expected", "cells", "training", "table"), default="table")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--reads", type=int, default=20)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--level", type=float, default=1.0, help="noise factor of part cells")
    parser.add_argument("--plans", nargs="+", default=["analog", "analog(cells=4)", "analog(sign=False)"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.25, 1.5, 1.75, 2.0, 2.5, 3.0])
    parser.add_argument("--time-limit", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--whole", action="store_true", help="part expected: the table's prediction too, which takes minutes"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part != "table":
        network = load("cifar10-resnet20", calibration_examples=options.examples)
        {"expected": expected, "cells": cells, "training": training}[options.part](network, options)
    text = table_text()
    (RESULTS / "unreliable_storage.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
