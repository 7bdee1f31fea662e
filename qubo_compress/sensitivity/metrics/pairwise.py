"""The reference metric: measures every pair of choices in V^2 / 2 runs (CLADO, Deng et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse

from qubo_compress.sensitivity.cache import Unit
from qubo_compress.sensitivity.forward_sweep import forward_sweep
from qubo_compress.sensitivity.ranks import Arrays
from qubo_compress.sensitivity.task import MeasureTask, MetricResult, metrics


@metrics.register
@dataclass(frozen=True)
class Pairwise:
    """Q[v, w] = L(v, w) - L(v) - L(w) + L(0), all measured. No clipping to positive semidefinite."""

    metric_name: ClassVar[str] = "pairwise"
    counts_flips: ClassVar[bool] = True

    def evaluations(self, task: MeasureTask) -> float:
        """One per choice and one per pair of choices of different groups."""
        sizes = np.diff(task.offsets).astype(float)
        return float(sizes.sum() + (sizes.sum() ** 2 - (sizes**2).sum()) / 2)

    def measure(self, task: MeasureTask) -> MetricResult:
        """Run every choice, then every pair; one choice with all later ones is one unit of the cache."""
        singles = forward_sweep(task, "linear", with_features=False)
        offsets, total = task.offsets, int(task.offsets[-1])
        pairs = np.zeros((total, total))
        units = [
            Unit(f"pairs_{group:05d}", partial(_pair_losses, task, group), len(names) * (total - offsets[group + 1]))
            for group, names in enumerate(task.choices[:-1])
        ]
        for group, made in enumerate(task.cache.gather(units, task.advance)):
            first, last = offsets[group], offsets[group + 1]
            joint = made["loss"].astype(np.float64)
            pairs[first:last, last:] = joint - singles.linear[first:last, None] - singles.linear[None, last:]
        # The network's own choices do not interact, except for rounding.
        unchanged = task.cache.gather([Unit("unchanged", lambda: {"choices": _unchanged(task)})])[0]["choices"]
        pairs[unchanged] = 0.0
        pairs[:, unchanged] = 0.0
        pairs += pairs.T
        evaluations = int(self.evaluations(task)) + 1
        return MetricResult(
            singles.linear, None, sparse.csr_array(pairs), evaluations, singles.divergence, singles.halves,
            singles.flips,
        )  # fmt: skip


def _unchanged(task: MeasureTask) -> np.ndarray:
    """(V,) which choices the network already has."""
    groups = range(len(task.layout.groups))
    return np.array([task.is_base(group, v) for group in groups for v in task.variants(group)], dtype=bool)


def _pair_losses(task: MeasureTask, group: int) -> Arrays:
    """(K, later choices) loss changes with a choice of this group and one of a later group."""
    total, stop = int(task.offsets[-1]), int(task.offsets[group + 1])
    variants = task.variants(group)
    names = [member.name for member in task.layout.groups[group].members]
    joint = np.zeros((len(variants), total - stop))
    for k, variant in enumerate(variants):
        with task.tensors.swapped(dict(zip(names, variant, strict=True))):
            for other in range(group + 1, len(task.layout.groups)):
                # Built again each time: two groups may be rows of one tensor, which then has to hold both.
                choices = task.variants(other)
                start = int(task.offsets[other]) - stop
                joint[k, start : start + len(choices)] = _losses(task, other, choices)
    return {"loss": joint}


def _losses(task: MeasureTask, group: int, choices: list[tuple[torch.Tensor, ...]]) -> np.ndarray:
    sweep = task.sweep(group)
    losses = torch.zeros(len(choices), dtype=torch.float64)
    for number, part in task.slices():
        outputs = sweep.outputs(part.inputs, choices, task.rows_per_pass)
        reference, weights = task.reference[number], task.row_weights(number)
        before = task.loss.values(task.outputs[number], part.targets, reference)
        for k, rows in enumerate(outputs):
            losses[k] += ((task.loss.values(rows, part.targets, reference) - before).double() * weights).sum().cpu()
    task.require_finite(losses[:, None], group)
    return losses.numpy()
