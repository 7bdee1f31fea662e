"""Forward sweeps: the network's loss and output changes for every choice of every group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qubo_compress.menu.keep import raw_bytes
from qubo_compress.problem import FactorArray, FloatArray
from qubo_compress.sensitivity.cache import Arrays
from qubo_compress.sensitivity.losses import KullbackLeibler
from qubo_compress.sensitivity.task import MeasureTask


@dataclass(frozen=True)
class ForwardSweep:
    """Measured single choices.

    Attributes:
        linear: (V,) weighted mean loss change.
        divergence: (V,) mean KL divergence from the uncompressed network.
        halves: (2, V) the same loss change on either half of the examples.
        features: (V, columns) float32, or None.
    """

    linear: FloatArray
    divergence: FloatArray
    halves: FloatArray
    features: FactorArray | None


def forward_sweep(task: MeasureTask, unit: str, with_features: bool) -> ForwardSweep:
    """Measure every choice of every group once; each group is one unit of the cache."""
    parts = []
    for group in range(len(task.layout.groups)):
        name = f"{unit}_{group:05d}"
        parts.append(task.cache.get(name, lambda group=group: _measure_group(task, group, with_features)))  # type: ignore[misc]
        task.advance(len(task.choices[group]))
    joined = {key: np.concatenate([part[key] for part in parts]) for key in ("loss", "divergence")}
    features = np.concatenate([part["features"] for part in parts]) if with_features else None
    half = joined["loss"].astype(np.float64)
    weight = _half_weights(task)
    linear = half.sum(axis=1)
    halves = (half / weight).T
    return ForwardSweep(linear, joined["divergence"].astype(np.float64).sum(axis=1), halves, features)  # type: ignore[arg-type]


def _half_weights(task: MeasureTask) -> FloatArray:
    totals = np.zeros(2)
    for number, _ in task.slices():
        weights = task.row_weights(number).double().cpu().numpy()
        totals += [weights[::2].sum(), weights[1::2].sum()]
    return np.maximum(totals, 1e-12)


def _measure_group(task: MeasureTask, group: int, with_features: bool) -> Arrays:
    every = task.variants(group)
    # The choice that the base model already holds changes nothing and need not be run, and choices that store
    # the same values in other bytes are run once.
    same_as = _first_alike(every)
    changing = [k for k, variant in enumerate(every) if same_as[k] == k and not task.is_base(group, variant)]
    variants = [every[k] for k in changing]
    if not variants:
        changing, variants = [0], every[:1]
    sweep = task.sweep(group)
    divergence_of = KullbackLeibler()
    losses = torch.zeros(len(every), 2, dtype=torch.float64)
    divergences = torch.zeros(len(every), 2, dtype=torch.float64)
    columns = []
    for number, part in task.slices():
        outputs = sweep.outputs(part.inputs, variants, task.rows_per_pass)
        base, reference = task.outputs[number], task.reference[number]
        weights = task.row_weights(number)
        before = task.loss.values(base, part.targets, reference)
        still = divergence_of.values(base, None, reference).double() * weights
        divergences += torch.stack([still[::2].sum(), still[1::2].sum()]).cpu()
        for k, rows in zip(changing, outputs, strict=True):
            change = (task.loss.values(rows, part.targets, reference) - before).double() * weights
            apart = divergence_of.values(rows, None, reference).double() * weights - still
            # Even and odd examples are two halves, for choosing the shrinkage by held-out prediction.
            losses[k] += torch.stack([change[::2].sum(), change[1::2].sum()]).cpu()
            divergences[k] += torch.stack([apart[::2].sum(), apart[1::2].sum()]).cpu()
        task.require_finite(losses, group)
        if with_features:
            rows = task.loss.features(outputs - base, base, part.targets) * weights.sqrt().float()[:, None]
            spread = torch.zeros(len(every), rows[0].numel(), dtype=rows.dtype, device=rows.device)
            spread[changing] = rows.reshape(len(variants), -1)
            columns.append(compact(task, number, spread))
    made: Arrays = {"loss": losses.numpy()[same_as], "divergence": divergences.numpy()[same_as]}
    if with_features:
        joined = sum(columns[1:], columns[0]) if _sketched(task) else torch.cat(columns, dim=1)
        made["features"] = joined.cpu().numpy()[same_as]
    return made


def _first_alike(variants: Sequence[tuple[Tensor, ...]]) -> list[int]:
    """For every variant the number of the first one with the same values."""
    first: dict[bytes, int] = {}
    found = []
    for number, tensors in enumerate(variants):
        digest = hashlib.sha256(b"".join(raw_bytes(tensor) for tensor in tensors)).digest()
        found.append(first.setdefault(digest, number))
    return found


def total_columns(task: MeasureTask) -> int:
    """Columns of an unreduced feature row: output rows times classes."""
    return sum(rows.numel() for rows in task.outputs)


def _sketched(task: MeasureTask) -> bool:
    return total_columns(task) > task.max_columns


def compact(task: MeasureTask, number: int, rows: Tensor) -> Tensor:
    """(K, columns) features, hashed with random signs into ``max_columns`` when there are more.

    Inner products of sketched rows are unbiased; their relative error is about 1 / sqrt(max_columns).
    """
    if not _sketched(task):
        return rows
    generator = torch.Generator().manual_seed(task.seed * 1_000_003 + number)
    count = rows.shape[1]
    buckets = torch.randint(task.max_columns, (count,), generator=generator).to(rows.device)
    signs = (torch.randint(2, (count,), generator=generator) * 2 - 1).to(rows.device, rows.dtype)
    out = torch.zeros(rows.shape[0], task.max_columns, dtype=rows.dtype, device=rows.device)
    return out.index_add_(1, buckets, rows * signs)
