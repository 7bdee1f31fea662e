"""Second-order pruning by the empirical Fisher: WoodFisher and WoodTaylor.

Source: Singh & Alistarh, "WoodFisher: Efficient Second-Order Approximation for Neural Network Compression",
NeurIPS 2020. With F the damped empirical Fisher of one block of weights w (d,) and mean gradient g (d,):

    saliency of weight q      w_q^2 / (2 [F^-1]_qq)                              second order (WoodFisher)
                              (w_q - [F^-1 g]_q)^2 / (2 [F^-1]_qq)               with the gradient (WoodTaylor)
    survivors, all pruned at once (Q pruned, S kept):   F_SS d_S = F_SQ w_Q  (- g_S with the gradient)
    sum of single updates, as the authors' code does:   d = - sum_q  w_q F^-1 e_q / [F^-1]_qq
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from qubo_compress.calibration.statistics.gradients import GradientRows, Gradients
from qubo_compress.calibration.statistics.inverse_fisher import (
    block_slices,
    inverse_fisher_blocks,
    survivors_answer,
    survivors_answers,
)
from qubo_compress.calibration.statistics.statistic import Statistic
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.families import offer
from qubo_compress.menu.operator import Operator, needs_data, operators
from qubo_compress.menu.prune import Prune, PrunedTensors, check_sparsity, survivor_count, survivors_of
from qubo_compress.menu.quantize import QuantizedTensor, QuantizedTensors, fit_scale, round_to_codes
from qubo_compress.menu.storage.streams import Reader
from qubo_compress.network.groups import Group, Member

logger = logging.getLogger(__name__)

Update = Literal["joint", "independent", "none"]
UPDATES = ("joint", "independent", "none")
ORDERS = ("second", "first")

DECADES = range(-6, 5)
"""Dampings to try, as powers of ten of the mean Fisher diagonal."""

FLAT = 1.05
"""Dampings with a held-out error within this factor of the least are equally good."""

FEWEST = 4
"""With fewer gradients there is no split in halves."""

PUBLISHED_DAMPING = 1e-5


@dataclass(frozen=True)
class FisherSettings:
    """Settings of second-order pruning.

    Attributes:
        damping: added to its diagonal.
        block: weights per block.
        update: what happens to the survivors.
        with_gradient: whether the mean gradient counts (WoodTaylor).
    """

    damping: float
    block: int = 2000
    update: Update = "joint"
    with_gradient: bool = False


def check_damping(damping: float | None) -> None:
    """Raise :class:`InvalidMenu` unless the damping is a finite number above zero, or None."""
    fits = damping is None or (isinstance(damping, (int, float)) and 0 < damping < math.inf)
    if not fits:
        raise InvalidMenu(f"damping must be a finite number above zero, or None to have it chosen; got {damping!r}")


def saliencies(values: Tensor, rows: GradientRows, settings: FisherSettings) -> Tensor:
    """(n,) float64 loss change of removing each weight and compensating for it, block by block.

    Args:
        values: (n,) weights.
        rows: their gradients.
        settings: see :class:`FisherSettings`.
    """
    found = torch.empty(values.numel(), dtype=torch.float64)
    flat = values.double().reshape(-1)
    for where, inverse in inverse_fisher_blocks(rows.values, settings.damping, settings.block):
        shifted = flat[where]
        if settings.with_gradient:
            mean = rows.values[:, where].double().T @ rows.roots.double() / rows.roots.numel()
            shifted = shifted - inverse.times(mean)
        found[where] = shifted**2 / (2.0 * inverse.diagonal)
    return found


def compensated(values: Tensor, mask: Tensor, rows: GradientRows, settings: FisherSettings) -> Tensor:
    """(n,) float64 weights after pruning: zero where the mask is False, survivors updated as the settings say.

    Args:
        values: (n,) weights.
        mask: (n,) survivors.
        rows: their gradients.
        settings: see :class:`FisherSettings`.
    """
    flat = values.double().reshape(-1)
    moved = flat * mask
    if settings.update == "none":
        return moved
    for where in block_slices(flat.numel(), settings.block):
        gradients = rows.values[:, where].double()
        gone, weights = ~mask[where], flat[where]
        if settings.update == "joint":
            target = gradients @ (weights * gone)
            if settings.with_gradient:
                target = target - rows.roots.double()
            moved[where] += survivors_answer(gradients, settings.damping, gone, target)
            continue
        _, inverse = next(inverse_fisher_blocks(gradients, settings.damping, settings.block))
        change = -inverse.times(weights * gone / inverse.diagonal)
        moved[where] += change * mask[where]
    return moved


def damping_candidates(mean_diagonal: float) -> tuple[float, ...]:
    """Powers of ten around the mean Fisher diagonal, from 10^-6 to 10^4 of it; if that is zero, the published 1e-5.

    Example:
        >>> damping_candidates(2e-3)[0], damping_candidates(2e-3)[-1]
        (1e-09, 10.0)
    """
    if not mean_diagonal > 0:
        return (PUBLISHED_DAMPING,)
    nearest = round(math.log10(mean_diagonal))
    return tuple(float(f"1e{nearest + k}") for k in DECADES)


def unseen_changes(
    values: Tensor, rows: GradientRows, sparsity: float, dampings: Sequence[float], settings: FisherSettings
) -> Tensor:
    """(dampings + 1, N) float64: g_n . d for updates d computed without example n; the last row is without update.

    Each half of the gradients gives the joint update of the survivors of magnitude pruning, block by block; the other
    half gives the first-order change of its own examples' loss.

    Args:
        values: (n,) weights.
        rows: their gradients.
        sparsity: share of weights pruned.
        dampings: to try.
        settings: block, and whether the mean gradient counts; its damping is not used.
    """
    flat = values.double().reshape(-1)
    mask = largest(flat.abs(), survivor_count(flat.numel(), sparsity))
    count = rows.values.shape[0]
    found = torch.zeros(len(dampings) + 1, count, dtype=torch.float64)
    halves = torch.arange(0, count, 2), torch.arange(1, count, 2)
    for seen, unseen in (halves, halves[::-1]):
        for where in block_slices(flat.numel(), settings.block):
            gone, lost = ~mask[where], flat[where] * ~mask[where]
            known, other = rows.values[seen, where].double(), rows.values[unseen, where].double()
            target = known @ lost
            if settings.with_gradient:
                target = target - rows.roots[seen].double()
            answers = survivors_answers(known, dampings, gone, target)
            found[:-1, unseen] += answers @ other.T
            found[:, unseen] -= other @ lost
    return found


def held_out_errors(changes: Tensor, roots: Tensor, with_gradient: bool = False) -> Tensor:
    """(dampings,) error of each damping's updates on unseen gradients, relative to that of no update.

    The quadratic model of the loss on unseen examples is mean_n (g_n . d)^2 / 2, with the mean gradient
    mean_n [(1 + g_n . d)^2 - 1] / 2.

    Args:
        changes: of :func:`unseen_changes`; of several tensors, their sum.
        roots: (N,) of the gradients.
        with_gradient: whether the mean gradient counts.
    """
    offset = roots.double() if with_gradient else torch.zeros(changes.shape[1], dtype=torch.float64)
    errors = (changes + offset).square().mean(1)
    return errors[:-1] / errors[-1].clamp(min=1e-300)


def best_damping(dampings: Sequence[float], errors: Tensor) -> tuple[float, float]:
    """The damping of least held-out error, and that error; in a flat minimum, the largest within 5 % of it.

    Example:
        >>> best_damping((1e-6, 1e-5, 1e-4), torch.tensor([0.31, 0.30, 0.50]))[0]
        1e-05
    """
    near = torch.nonzero(errors <= FLAT * errors.min()).reshape(-1)
    best = max((int(number) for number in near), key=lambda number: dampings[number])
    return dampings[best], float(errors[best])


def chosen_damping(
    values: Tensor, rows: GradientRows, sparsity: float, block: int = 2000, with_gradient: bool = False
) -> tuple[float, float]:
    """The damping for a single tensor, and its relative held-out error: see :func:`best_damping`.

    Args:
        values: (n,) weights.
        rows: their gradients.
        sparsity: share of weights pruned.
        block: weights per block.
        with_gradient: whether the mean gradient counts.
    """
    dampings = damping_candidates(squared_norm(rows.values) / rows.values.numel())
    if rows.values.shape[0] < FEWEST or len(dampings) == 1:
        return dampings[len(dampings) // 2], 1.0
    changes = unseen_changes(values, rows, sparsity, dampings, FisherSettings(1.0, block, "joint", with_gradient))
    return best_damping(dampings, held_out_errors(changes, rows.roots, with_gradient))


def squared_norm(values: Tensor) -> float:
    """Sum of squares in float64, without a float64 copy."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def without_zeros(values: Tensor, rows: GradientRows) -> GradientRows:
    """The gradients, set to zero for weights that are already zero.

    A pruned weight cannot make up for others, and with its gradient WoodTaylor would revive it.
    """
    there = values.reshape(-1) != 0
    return rows if bool(there.all()) else GradientRows(rows.values * there, rows.roots)


def largest(scores: Tensor, count: int) -> Tensor:
    """(n,) mask of the largest scores; ties go to the earlier weight.

    Example:
        >>> largest(torch.tensor([1.0, 3.0, 3.0]), 1).tolist()
        [False, True, False]
    """
    order = torch.argsort(scores, descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


@operators.register
@dataclass(frozen=True)
class WoodFisher(Operator):
    """Prune by second-order saliency, and let the survivors make up for the pruned weights.

    Stored exactly like ``prune`` and ``quantize``.

    Args:
        sparsity: share of weights set to zero, per tensor.
        bits: bits per survivor, 2 to 16; None: their own precision.
        damping: added to the Fisher's diagonal; None: chosen by held-out prediction error, tensor by tensor.
        block: weights per block.
        gradients: how many per-example gradients.
        update: ``"joint"``, ``"independent"`` or ``"none"``.
        order: ``"second"`` (WoodFisher) or ``"first"`` (WoodTaylor: the mean gradient also counts, in the saliency
            and in the joint update; the sum of single updates ignores it).
        batch: number of examples averaged in each gradient.

    Raises:
        InvalidMenu: for settings out of range.

    Example:
        >>> WoodFisher(sparsity=0.5).needs
        (Gradients(count=400, batch=1),)
    """

    operator_name: ClassVar[str] = "woodfisher"
    whole_numbers: ClassVar[bool] = True
    sparsity: float
    bits: int | None = None
    damping: float | None = None
    block: int = 2000
    gradients: int = 400
    update: str = "joint"
    order: str = "second"
    batch: int = 1

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        object.__setattr__(self, "sparsity", float(self.sparsity))
        if self.bits is not None and not (isinstance(self.bits, int) and 2 <= self.bits <= 16):
            raise InvalidMenu(f"bits must be a whole number from 2 to 16, or None; got {self.bits!r}")
        check_damping(self.damping)
        for name in ("block", "gradients", "batch"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise InvalidMenu(f"{name} must be a whole number of at least 1; got {value!r}")
        if self.update not in UPDATES:
            raise InvalidMenu(f"update must be one of {', '.join(UPDATES)}; got {self.update!r}")
        if self.order not in ORDERS:
            raise InvalidMenu(f"order must be 'second' or 'first'; got {self.order!r}")

    @classmethod
    def samples(cls) -> tuple[WoodFisher, ...]:
        return (
            cls(0.5),
            cls(0.7, bits=3, block=16),
            cls(0.4, update="independent", damping=1e-3),
            cls(0.6, order="first", damping=1e-2),
        )

    @classmethod
    def faithful(cls) -> tuple[WoodFisher, float] | None:
        return cls(0.0), 0.0

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (Gradients(self.gradients, self.batch),)

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        return None if group.kind == "weight" else f"{group.kind} vectors are not pruned"

    def encode(self, group: Group, parts: Sequence[Tensor]) -> PrunedTensors:
        raise needs_data(self)

    def encode_with(
        self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]
    ) -> PrunedTensors | QuantizedTensors:
        """Mask by saliency, then update the survivors."""
        found = [
            (member, part, *self._pruned(part, rows))
            for member, part, rows in zip(group.members, parts, evidence[self.needs[0]], strict=True)
        ]
        if self.bits is not None:
            return QuantizedTensors(tuple(self._quantized(member, left, mask) for member, _, mask, left in found))
        return PrunedTensors(
            tuple(mask for _, _, mask, _ in found),
            tuple(left[mask].to(part.dtype) for _, part, mask, left in found),
            tuple(tuple(part.shape) for part in parts),
        )

    def settings(self, values: Tensor, rows: GradientRows) -> FisherSettings:
        """The settings, with the damping chosen for a tensor."""
        damping = self.damping
        if damping is None:
            damping, error = chosen_damping(values, rows, self.sparsity, self.block, self.order == "first")
            logger.info("damping %.3g chosen; held-out prediction error %.3f of no update's", damping, error)
        return FisherSettings(damping, self.block, cast(Update, self.update), self.order == "first")

    def _pruned(self, part: Tensor, rows: GradientRows) -> tuple[Tensor, Tensor]:
        values = part.detach().cpu().reshape(-1)
        if survivor_count(values.numel(), self.sparsity) == values.numel():
            return torch.ones(values.numel(), dtype=torch.bool), values.double()
        count = survivors_of(values, self.sparsity)
        rows = without_zeros(values, rows)
        settings = self.settings(values, rows)
        mask = largest(saliencies(values, rows, settings), count)
        left = compensated(values, mask, rows, settings)
        limit = torch.finfo(part.dtype).max
        # A Fisher without signal may give an update beyond the dtype's range: then the survivors keep their values.
        sound = bool(torch.isfinite(left).all())
        return mask, (left if sound else values.double() * mask).clamp(-limit, limit)

    def _quantized(self, member: Member, left: Tensor, mask: Tensor) -> QuantizedTensor:
        assert self.bits is not None  # noqa: S101 - called with bits only
        rows = member.part_shape[0] if len(member.part_shape) > 1 else 1
        values, kept = left.float().reshape(rows, -1), mask.reshape(rows, -1)
        scale = fit_scale(values, kept, self.bits)
        codes = round_to_codes(values, scale, self.bits, signs_only=self.bits == 2) * kept
        return QuantizedTensor(member, self.bits, scale, codes.to(torch.int16), kept)

    def read(self, group: Group, reader: Reader) -> PrunedTensors | QuantizedTensors:
        """Read mask and survivors, as ``prune`` and ``quantize`` store them."""
        if self.bits is None:
            return Prune(self.sparsity).read(group, reader)
        members = tuple(QuantizedTensor.read(member, self.bits, True, reader) for member in group.members)
        return QuantizedTensors(members)


offer("woodfisher", *(f"woodfisher(sparsity={share},bits=4,damping=1e-05)" for share in (0.5, 0.7)))
