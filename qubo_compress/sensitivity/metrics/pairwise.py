"""The reference metric: measures every pair of choices in V^2 / 2 runs (CLADO, Deng et al. 2023)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse

from qubo_compress.network.replay import GroupSweep
from qubo_compress.network.rounding import ranges_of
from qubo_compress.sensitivity.cache import Unit
from qubo_compress.sensitivity.forward_sweep import forward_sweep
from qubo_compress.sensitivity.metric import Metric, MetricResult, metrics
from qubo_compress.sensitivity.ranks import Arrays
from qubo_compress.sensitivity.subject import Subject


@metrics.register
@dataclass(frozen=True)
class Pairwise(Metric):
    """Q[v, w] = L(v, w) - L(v) - L(w) + L(0), all measured. No clipping to positive semidefinite."""

    metric_name: ClassVar[str] = "pairwise"
    counts_flips: ClassVar[bool] = True
    sees_inputs: ClassVar[bool] = True

    def evaluations(self, subject: Subject) -> float:
        """One per choice and one per pair of choices of different groups."""
        sizes = np.diff(subject.offsets).astype(float)
        return float(sizes.sum() + (sizes.sum() ** 2 - (sizes**2).sum()) / 2)

    def measure(self, subject: Subject) -> MetricResult:
        """Run every choice, then every pair; one choice with all later ones is one unit of the cache."""
        singles = forward_sweep(subject, "linear", with_features=False)
        sweep = functools.cache(subject.sweep)
        offsets, total = subject.offsets, int(subject.offsets[-1])
        pairs = np.zeros((total, total))
        later = total - offsets[1:]
        units = [
            Unit(f"pairs_{group:05d}", partial(_pair_losses, subject, sweep, group), len(names) * later[group])
            for group, names in enumerate(subject.choices[:-1])
        ]
        for group, made in enumerate(subject.gather(units)):
            first, last = offsets[group], offsets[group + 1]
            joint = made["loss"].astype(np.float64)
            pairs[first:last, last:] = joint - singles.linear[first:last, None] - singles.linear[None, last:]
        # The network's own choices do not interact, except for rounding.
        unchanged = subject.cache.gather([Unit("unchanged", lambda: {"choices": _unchanged(subject)})])[0]["choices"]
        pairs[unchanged] = 0.0
        pairs[:, unchanged] = 0.0
        pairs += pairs.T
        evaluations = int(self.evaluations(subject)) + 1
        return MetricResult(
            singles.linear, None, sparse.csr_array(pairs), evaluations, singles.divergence, singles.halves,
            singles.flips,
        )  # fmt: skip


def _unchanged(subject: Subject) -> np.ndarray:
    """(V,) which choices the network already has."""
    groups = range(len(subject.layout.groups))
    return np.array([subject.is_base(group, v) for group in groups for v in subject.variants(group)], dtype=bool)


def _pair_losses(subject: Subject, sweep: Callable[[int], GroupSweep], group: int) -> Arrays:
    """(K, later choices) loss changes with a choice of this group and one of a later group."""
    total, stop = int(subject.offsets[-1]), int(subject.offsets[group + 1])
    variants = subject.variants(group)
    names = [member.name for member in subject.layout.groups[group].members]
    sweeps = [sweep(other) for other in range(group + 1, len(subject.layout.groups))]
    joint = np.zeros((len(variants), total - stop))
    for k, variant in enumerate(variants):
        ranges = dict(zip(names, ranges_of(variant), strict=False))
        with subject.tensors.swapped(dict(zip(names, variant, strict=True)), ranges):
            for other, behind in enumerate(sweeps, start=group + 1):
                # Built again each time: two groups may be rows of one tensor, which then has to hold both.
                choices = subject.variants(other)
                start = int(subject.offsets[other]) - stop
                joint[k, start : start + len(choices)] = _losses(subject, behind, other, choices)
    return {"loss": joint}


def _losses(subject: Subject, sweep: GroupSweep, group: int, choices: list[tuple[torch.Tensor, ...]]) -> np.ndarray:
    losses = torch.zeros(len(choices), dtype=torch.float64)
    for number, part in subject.slices():
        outputs = sweep.outputs(part.inputs, choices, subject.rows_per_pass)
        reference, weights = subject.reference[number], subject.row_weights(number)
        before = subject.loss.values(subject.outputs[number], part.targets, reference)
        for k, rows in enumerate(outputs):
            losses[k] += ((subject.loss.values(rows, part.targets, reference) - before).double() * weights).sum().cpu()
    subject.require_finite(losses[:, None], group)
    return losses.numpy()
