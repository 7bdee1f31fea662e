"""Weights in phase-change cells: is the expected loss right, and how many cells does a joint choice save?

    python -m benchmarks.studies.unreliable_storage expected
    python -m benchmarks.studies.unreliable_storage cells
    python -m benchmarks.studies.unreliable_storage training

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

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

import qubo_compress as qc
from benchmarks.networks import Batches, Network, accuracy_and_loss, load
from benchmarks.records import Record, table
from benchmarks.study import Option, Options, Study, grid
from qubo_compress.calibration.examples import read_examples
from qubo_compress.calibration.statistics import Calibration
from qubo_compress.calibration.statistics.curvature import Curvature
from qubo_compress.menu.operator import parse
from qubo_compress.network.losses.classification import make_loss, rows_of
from qubo_compress.plan import compression_of
from qubo_compress.sensitivity.noise import expected_loss, priced_in_cells

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

STUDY = Study(
    __doc__, "unreliable_storage", field="part", examples=1000, test=2000, train=3000, reads=20,
    noise=[0.25, 0.5, 1.0, 2.0], level=Option(1.0, "noise factor of step cells"),
    plans=["analog", "analog(cells=4)", "analog(sign=False)"], budgets=[1.25, 1.5, 1.75, 2.0, 2.5, 3.0],
    time_limit=3.0, learning_rate=1e-3, threads=1,
    whole=Option(False, "step expected: the table's prediction too, which takes minutes"),
)  # fmt: skip


@lru_cache(maxsize=1)
def network_of(examples: int) -> Network:
    """The network with that many calibration images."""
    return load("cifar10-resnet20", calibration_examples=examples)


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


def measured(network: Network, names: list[str], options: Options, noise: float, **metric: str) -> qc.SensitivityTable:
    """Table of the choices, cells priced for the channel."""
    menu = qc.Menu([parse(name) for name in dict.fromkeys([*names, *VECTORS])])
    found = qc.measure(network.model, first(network.calibration, options.examples), menu=menu, progress=False, **metric)
    return priced_in_cells(found, qc.channels.AnalogChannel.noisier(qc.channels.channels.get("pcm"), noise))


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


@STUDY.step(lambda o: grid(noise=o.noise, plan=o.plans), again=True)
def expected(options: Options, noise: float, plan: str) -> Iterator[Record]:
    """Predicted against Monte-Carlo loss on the calibration images."""
    network, name = network_of(options.examples), named(plan, noise)
    batches = first(network.calibration, options.examples)
    run = lambda inputs: rows_of(network.model(inputs))  # noqa: E731
    examples = read_examples(batches, options.examples)
    calibration = Calibration(network.model, examples, make_loss("kl"), run, seed=0)
    played = Reads(network.model, batches)
    metrics: Any = [{"loss": loss} for loss in LOSSES] if options.whole else [{"metric": "magnitude"}]
    plans = [everywhere(measured(network, [name], options, noise, **metric), name) for metric in metrics]
    small = plans[0].apply(network.model)
    losses = played.without_slope(small, options.reads, first_seed=10_000)
    means, term = played.losses(small), noise_of(calibration, plans[0])
    for k, loss in enumerate(LOSSES):
        yield {
            "plan": name, "loss": loss, "noise_term": term, "mean_network": means[k],
            "monte_carlo": losses[:, k].mean(), "standard_error": losses[:, k].std(ddof=1) / len(losses) ** 0.5,
            "predicted": plans[k].predicted_loss if options.whole else None,
            "reads": options.reads, "examples": options.examples,
        }  # fmt: skip


def noise_of(calibration: Calibration, plan: qc.Plan) -> float:
    """The closed-form noise term of a plan: what its stored groups' variances cost."""
    compression = compression_of(plan.apply(calibration.model))
    return sum(
        expected_loss(compression.stored[g.name].variances(), Curvature().collect(calibration, g))
        for g in compression.layout.groups
        if compression.stored[g.name].unreliable
    )


RELIABLE_FAMILY, NOISY_FAMILY, JOINT = "uniform reliable", "uniform analog", "joint"


def families(options: Options) -> dict[str, tuple[str, ...]]:
    """Family -> what it may choose from."""
    noisy = tuple(named(name, options.level) for name in NOISY)
    return {JOINT: (*RELIABLE, *noisy), "reliable only": RELIABLE, "analog only": noisy}


def cells_at(options: Options) -> Iterator[Record]:
    """The network itself, one choice everywhere, and the best plan of every family within every budget."""
    said = {"level": options.level, "test": options.test, "reads": options.reads}
    yield {"family": "original", "plan": "float32"} | said
    for name in (*RELIABLE[2:], *families(options)["analog only"]):
        yield {"family": RELIABLE_FAMILY if name.startswith("quantize") else NOISY_FAMILY, "plan": name} | said
    for budget in options.budgets:
        for family in families(options):
            yield {"family": family, "plan": f"{budget:g} cells"} | said


@lru_cache(maxsize=1)
def whole_table(options: Options) -> qc.SensitivityTable:
    """The table of everything that may be chosen."""
    return measured(network_of(options.examples), list(families(options)[JOINT]), options, options.level)


@STUDY.step(cells_at, again=True)
def cells(options: Options, family: str, plan: str, **_: float) -> Record | None:
    """Cells against accuracy: means over noisy reads."""
    network, found = network_of(options.examples), whole_table(options)
    test, parameters = first(network.test, options.test), found.layout.parameters
    if family == "original":
        accuracy, loss = accuracy_and_loss(network.model, test)
        used = found.layout.original_bytes * 8
        return _cells(used, 1, np.array([accuracy]), loss, 0.0) | {"choices": None}
    if family in families(options):
        found = found.narrowed([*families(options)[family], *VECTORS])
        limit = int(float(plan.partition(" ")[0]) * parameters)
        problem = found.problem(qc.Budget(ratio=0.5, cells=limit))
        try:
            chosen = found.plan(qc.solve(problem, "annealer", time_limit=options.time_limit))
        except qc.errors.InfeasibleBudget:
            print(family, plan, "does not fit")
            return None
    else:
        chosen = everywhere(found, plan)
    noisy = any(c.startswith("analog") for c in chosen.choices.values())
    accuracies, losses = reads(chosen.apply(network.model), test, options.reads if noisy else 1)
    figures = _cells(cells_of(found, chosen), parameters, accuracies, float(losses.mean()), chosen.predicted_loss)
    return figures | {"choices": dict(sorted(Counter(chosen.choices.values()).items()))}


def _cells(used: int, parameters: int, accuracies: np.ndarray, loss: float, predicted: float) -> Record:
    return {
        "cells": used, "cells_per_weight": used / parameters, "accuracy": 100 * float(accuracies.mean()),
        "spread": 100 * float(accuracies.std()), "loss": loss, "predicted": predicted,
    }  # fmt: skip


@STUDY.step(lambda o: grid(noise=o.noise, plan=o.plans), again=True)
def training(options: Options, noise: float, plan: str) -> Iterator[Record]:
    """Fine-tuning with and without noise."""
    network, name = network_of(options.examples), named(plan, noise)
    test, data = first(network.test, options.test), first(network.train, options.train)
    small = everywhere(measured(network, [name], options, noise), name).apply(network.model)
    nets = {"none": small}
    for kind, flag in (("plain", False), ("noisy", True)):
        nets[kind] = qc.recover(
            small, data, network.model, epochs=1, max_examples=options.train, noise=flag, progress=False,
            learning_rate=options.learning_rate,
        )  # fmt: skip
    for kind, net in nets.items():
        accuracy, loss = reads(net, test, options.reads)
        yield {
            "plan": name, "tuning": kind, "accuracy": 100 * accuracy.mean(), "spread": 100 * accuracy.std(),
            "loss": loss.mean(), "train": options.train, "learning_rate": options.learning_rate,
            "mean_network_accuracy": 100 * accuracy_and_loss(net, test)[0],
        }  # fmt: skip


@STUDY.table
def tables(options: Options) -> str:
    """All records; the noise term and the whole change stand beside what was measured, and their quotients."""
    paid = lambda r: r["monte_carlo"] - r["mean_network"]  # noqa: E731
    columns = {
        "noise": "{noise:g}", "plan": "{plan}", "loss": "{loss}", "1/2 sum h v": "{noise_term:.4f}",
        "measured": lambda r: f"{paid(r):.4f} +- {r['standard_error']:.4f}",
        "ratio": lambda r: (
            f"{r['noise_term'] / paid(r):.2f} +- {r['standard_error'] * r['noise_term'] / paid(r) ** 2:.2f}"
        ),
        "predicted, all": lambda r: f"{r['predicted']:.4f}" if r["predicted"] else "-",
        "measured, all": "{monte_carlo:.4f}",
        "ratio ": lambda r: f"{r['predicted'] / r['monte_carlo']:.2f}" if r["predicted"] else "-",
        "reads": "{reads}", "images": "{examples}",
    }  # fmt: skip
    parts = [table(STUDY.records("expected"), columns).replace("| ratio  |", "| ratio |")]
    columns = {
        "family": "{family}", "plan": "{plan}", "cells per weight": "{cells_per_weight:.3f}",
        "top-1 %": "{accuracy:.2f}", "test loss": "{loss:.4f}",
    }  # fmt: skip
    parts.append(table(sorted(STUDY.records("cells"), key=lambda r: (r["family"], r["cells"])), columns))
    columns = {
        "noise": "{noise:g}", "plan": "{plan}", "tuning": "{tuning}", "images": "{train:,}",
        "learning rate": lambda r: f"{r.get('learning_rate', 1e-3):g}", "top-1 %": "{accuracy:.2f}",
        "s.d. over reads": "{spread:.2f}", "test loss": "{loss:.4f}",
    }  # fmt: skip
    return "\n".join([*parts, table(STUDY.records("training"), columns)])


if __name__ == "__main__":
    STUDY.main()
