"""Forward sweeps: the network's loss and output changes for every choice of every group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.network.losses.classification import class_targets, target_rows
from qubo_compress.network.rounding import InputRange, ranges_of
from qubo_compress.network.scores import predicted
from qubo_compress.network.tensor_bytes import raw_bytes
from qubo_compress.problem.choice_problem import FactorArray, FloatArray
from qubo_compress.sensitivity.cache import Unit
from qubo_compress.sensitivity.ranks import Arrays
from qubo_compress.sensitivity.subject import Subject


@dataclass(frozen=True)
class ForwardSweep:
    """Measured single choices.

    Attributes:
        linear: (V,) weighted mean loss change.
        divergence: (V,) change of the mean divergence from the uncompressed network in the loss's geometry, which is
            KL for class outputs; around a plan it is 0 for the plan's own choices.
        halves: (2, V) the loss change on each half of the examples.
        features: (V, columns) float32, or None.
        flips: (V,) change of the weighted share of rows that the uncompressed network gets right and the network
            with the choice gets wrong; None without class labels, or if a cached part lacks it.
        second_half: (columns,) which columns of the features belong to odd examples.
    """

    linear: FloatArray
    divergence: FloatArray
    halves: FloatArray
    features: FactorArray | None
    flips: FloatArray | None = None
    second_half: npt.NDArray[np.bool_] | None = None


def forward_sweep(subject: Subject, unit: str, with_features: bool) -> ForwardSweep:
    """Measure every choice of every group once; each group is one unit of the cache."""
    units = [
        Unit(f"{unit}_{group:05d}", partial(_measure_group, subject, group, with_features), len(subject.choices[group]))
        for group in range(len(subject.layout.groups))
    ]
    parts = subject.gather(units)
    joined = {key: np.concatenate([part[key] for part in parts]).astype(np.float64) for key in ("loss", "divergence")}
    joined["divergence"] = joined["divergence"] - _base_divergence(subject)
    features = np.concatenate([part["features"] for part in parts]) if with_features else None
    halves = np.stack([(half / _half_weights(subject)).T for half in joined.values()])
    counted = all("flips" in part for part in parts)
    flips = np.concatenate([part["flips"] for part in parts]).astype(np.float64) if counted else None
    return ForwardSweep(
        joined["loss"].sum(axis=1), joined["divergence"].sum(axis=1), halves, features, flips,  # type: ignore[arg-type]
        second_half(subject) if with_features else None,
    )  # fmt: skip


def _base_divergence(subject: Subject) -> FloatArray:
    """(2,) contributions of even and odd examples to the base model's divergence from the uncompressed one."""
    total = torch.zeros(2, dtype=torch.float64)
    for number, part in subject.slices():
        apart = subject.loss.divergence(subject.outputs[number], part.targets, subject.reference[number]).double()
        total += _by_half(apart * subject.row_weights(number), len(part))
    return np.asarray(total.numpy(), dtype=np.float64)


def _half_weights(subject: Subject) -> FloatArray:
    totals = torch.zeros(2, dtype=torch.float64)
    for number, part in subject.slices():
        totals += _by_half(subject.row_weights(number).double(), len(part))
    return np.asarray(totals.clamp(min=1e-12).numpy(), dtype=np.float64)


def _by_half(rows: Tensor, examples: int) -> Tensor:
    """(2,) sums over the output rows of even and of odd examples; all rows of an example are in one half."""
    each = rows.reshape(examples, -1).sum(1)
    return torch.stack([each[::2].sum(), each[1::2].sum()]).cpu()


def _measure_group(subject: Subject, group: int, with_features: bool) -> Arrays:
    every = subject.variants(group)
    # The base model's own choice changes nothing and need not run, and choices that store the same values in different
    # bytes run once.
    same_as = _first_alike(every)
    changing = [k for k, variant in enumerate(every) if same_as[k] == k and not subject.is_base(group, variant)]
    variants = [every[k] for k in changing]
    if not variants:
        changing, variants = [0], every[:1]
    sweep = subject.sweep(group)
    losses = torch.zeros(len(every), 2, dtype=torch.float64)
    divergences = torch.zeros(len(every), 2, dtype=torch.float64)
    flips = torch.zeros(len(every), dtype=torch.float64)
    columns = []
    for number, part in subject.slices():
        outputs = sweep.outputs(part.inputs, variants, subject.rows_per_pass)
        base, reference = subject.outputs[number], subject.reference[number]
        weights = subject.row_weights(number)
        before = subject.loss.values(base, part.targets, reference)
        still = subject.loss.divergence(base, part.targets, reference).double() * weights
        divergences += _by_half(still, len(part))
        right = weights * _right(subject, number)
        answers = predicted(reference)
        already = (right * (predicted(base) != answers)).sum()
        for k, rows in zip(changing, outputs, strict=True):
            change = (subject.loss.values(rows, part.targets, reference) - before).double() * weights
            apart = subject.loss.divergence(rows, part.targets, reference).double() * weights - still
            # Even and odd examples are two halves, for choosing the shrinkage by held-out prediction.
            losses[k] += _by_half(change, len(part))
            divergences[k] += _by_half(apart, len(part))
            flips[k] += ((right * (predicted(rows) != answers)).sum() - already).cpu()
        subject.require_finite(losses, group)
        if with_features:
            rows = subject.loss.features(outputs - base, base, part.targets) * weights.sqrt().float()[:, None]
            spread = torch.zeros(len(every), rows[0].numel(), dtype=rows.dtype, device=rows.device)
            spread[changing] = rows.reshape(len(variants), -1)
            columns.append(compact(subject, number, spread))
    made: Arrays = {"loss": losses.numpy()[same_as], "divergence": divergences.numpy()[same_as]}
    if class_labelled(subject):
        made["flips"] = flips.numpy()[same_as]
    if with_features:
        joined = sum(columns[1:], columns[0]) if _sketched(subject) else torch.cat(columns, dim=1)
        made["features"] = joined.cpu().numpy()[same_as]
    return made


def class_labelled(subject: Subject) -> bool:
    """Whether every example has class labels, so that answers are right or wrong."""
    return class_targets(subject.loss) and all(
        part.targets is not None
        and not part.targets.is_floating_point()
        and part.targets.numel() == subject.reference[number].shape[0]
        for number, part in subject.slices()
    )


def base_flips(subject: Subject) -> float:
    """Weighted share of rows that the uncompressed network gets right and the base model gets wrong."""
    total = 0.0
    for number, _ in subject.slices():
        base, reference = subject.outputs[number], subject.reference[number]
        lost = _right(subject, number) & (predicted(base) != predicted(reference))
        total += float((subject.row_weights(number) * lost).sum())
    return total


def _right(subject: Subject, number: int) -> Tensor:
    """(M,) whether the uncompressed network's answer is the label; False without class labels."""
    reference = subject.reference[number]
    if not class_labelled(subject):
        return torch.zeros(reference.shape[0], dtype=torch.bool, device=reference.device)
    return predicted(reference) == target_rows(subject.examples.slices[number].targets, reference)


def _first_alike(variants: Sequence[tuple[Tensor, ...]]) -> list[int]:
    """For every variant, the number of the first one with the same values and ranges."""
    first: dict[tuple[bytes, tuple[InputRange | None, ...]], int] = {}
    found = []
    for number, tensors in enumerate(variants):
        digest = hashlib.sha256(b"".join(raw_bytes(tensor) for tensor in tensors)).digest()
        found.append(first.setdefault((digest, ranges_of(tensors)), number))
    return found


def total_columns(subject: Subject) -> int:
    """Columns of an unreduced feature row: output rows times classes."""
    return sum(rows.numel() for rows in subject.outputs)


def _sketched(subject: Subject) -> bool:
    return total_columns(subject) > subject.max_columns


def compact(subject: Subject, number: int, rows: Tensor) -> Tensor:
    """(K, columns) features, hashed with random signs into ``max_columns`` if there are more.

    Inner products of sketched rows are unbiased; their relative error is about 1 / sqrt(max_columns).
    """
    if not _sketched(subject):
        return rows
    generator = torch.Generator().manual_seed(subject.seed * 1_000_003 + number)
    count = rows.shape[1]
    # Odd examples go to odd columns, so that the two halves of the examples stay separate.
    half = subject.max_columns // 2
    odd = torch.arange(count) // (count // len(subject.examples.slices[number])) % 2
    buckets = (2 * torch.randint(half, (count,), generator=generator) + odd).to(rows.device)
    signs = (torch.randint(2, (count,), generator=generator) * 2 - 1).to(rows.device, rows.dtype)
    out = torch.zeros(rows.shape[0], 2 * half, dtype=rows.dtype, device=rows.device)
    return out.index_add_(1, buckets, rows * signs)


def second_half(subject: Subject) -> npt.NDArray[np.bool_]:
    """(columns,) which columns of the features from :func:`compact` belong to odd examples."""
    if _sketched(subject):
        odd: npt.NDArray[np.bool_] = np.arange(2 * (subject.max_columns // 2)) % 2 == 1
        return odd
    parts = [
        np.repeat(np.arange(len(part)) % 2 == 1, subject.outputs[number].numel() // len(part))
        for number, part in subject.slices()
    ]
    found: npt.NDArray[np.bool_] = np.concatenate(parts)
    return found
