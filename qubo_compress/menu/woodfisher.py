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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.families import offer
from qubo_compress.menu.groups import Group, Member
from qubo_compress.menu.operator import needs_data, operators
from qubo_compress.menu.prune import Prune, PrunedTensors, check_sparsity, survivor_count
from qubo_compress.menu.quantize import QuantizedTensor, QuantizedTensors, fit_scale, round_to_codes
from qubo_compress.menu.streams import Reader, plain_read
from qubo_compress.statistics.gradients import GradientRows, Gradients
from qubo_compress.statistics.inverse_fisher import block_slices, inverse_fisher_blocks, survivors_answer
from qubo_compress.statistics.statistic import Statistic

logger = logging.getLogger(__name__)

Update = Literal["joint", "independent", "none"]
UPDATES = ("joint", "independent", "none")
ORDERS = ("second", "first")

DAMPINGS = tuple(10.0**k for k in range(-4, 4))
"""Dampings that are tried, in units of the mean Fisher diagonal."""

PUBLISHED_DAMPING = 1e-5


@dataclass(frozen=True)
class Settings:
    """How the Fisher is used.

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


def saliencies(values: Tensor, rows: GradientRows, settings: Settings) -> Tensor:
    """(n,) float64 loss change of removing each weight and compensating for it, block by block.

    Args:
        values: (n,) weights.
        rows: their gradients.
        settings: see :class:`Settings`.
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


def compensated(values: Tensor, mask: Tensor, rows: GradientRows, settings: Settings) -> Tensor:
    """(n,) float64 weights after pruning: zero where the mask is False, the survivors moved as asked.

    Args:
        values: (n,) weights.
        mask: (n,) survivors.
        rows: their gradients.
        settings: see :class:`Settings`.
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


def chosen_damping(values: Tensor, rows: GradientRows, sparsity: float, block: int = 2000) -> tuple[float, float]:
    """The damping whose joint update predicts best on gradients that it has not seen, and its error.

    The update of the survivors is a ridge regression of the pruned weights' share in every gradient,
    t_n = g_n,Q . w_Q, on the survivors' gradients. Each half of the gradients predicts t on the other; the error is
    the mean of (t - G_S d_S)^2, relative to the mean of t^2: 1 is what no update at all would give.

    Args:
        values: (n,) weights.
        rows: their gradients; at least four.
        sparsity: share of weights pruned, by w^2 times the Fisher diagonal.
        block: weights per block.

    Returns:
        The damping and its relative held-out error.
    """
    flat = values.double().reshape(-1)
    diagonal = rows.values.double().square().mean(0)
    mean = float(diagonal.mean())
    if mean <= 0 or rows.values.shape[0] < 4 or sparsity == 0:
        return max(mean, 1.0) * PUBLISHED_DAMPING, 1.0
    mask = largest(flat**2 * (diagonal + 1e-12 * mean), survivor_count(flat.numel(), sparsity))
    halves = rows.values[::2].double(), rows.values[1::2].double()
    errors = torch.zeros(len(DAMPINGS), dtype=torch.float64)
    total = 0.0
    for seen, unseen in (halves, halves[::-1]):
        for where in block_slices(flat.numel(), block):
            gone, weights = ~mask[where], flat[where]
            goal, held = seen[:, where] @ (weights * gone), unseen[:, where] @ (weights * gone)
            total += float(held.square().sum())
            for number, share in enumerate(DAMPINGS):
                answer = survivors_answer(seen[:, where], share * mean, gone, goal)
                errors[number] += float((held - unseen[:, where] @ answer).square().sum())
    best = int(errors.argmin())
    return DAMPINGS[best] * mean, float(errors[best]) / max(total, 1e-300)


def largest(scores: Tensor, count: int) -> Tensor:
    """(n,) mask of the largest scores; ties go to the earlier.

    Example:
        >>> largest(torch.tensor([1.0, 3.0, 3.0]), 1).tolist()
        [False, True, False]
    """
    order = torch.argsort(scores, descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


@operators.register("woodfisher")
@dataclass(frozen=True)
class WoodFisher:
    """Prune by second-order saliency and let the survivors make up for what is gone.

    Stored exactly as ``prune`` and ``quantize`` store theirs.

    Args:
        sparsity: share of weights set to zero, per tensor.
        bits: bits per survivor, 2 to 16; None: their own precision.
        damping: added to the Fisher's diagonal; None: chosen by held-out prediction error, tensor by tensor.
        block: weights per block.
        gradients: how many per-example gradients.
        update: ``"joint"``, ``"independent"`` or ``"none"``.
        order: ``"second"`` (WoodFisher) or ``"first"`` (WoodTaylor: the mean gradient counts too).

    Raises:
        InvalidMenu: for settings out of range.

    Example:
        >>> WoodFisher(sparsity=0.5).needs
        (Gradients(count=400, batch=1),)
    """

    operator_name: ClassVar[str] = "woodfisher"
    sparsity: float
    bits: int | None = None
    damping: float | None = None
    block: int = 2000
    gradients: int = 400
    update: str = "joint"
    order: str = "second"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        object.__setattr__(self, "sparsity", float(self.sparsity))
        if self.bits is not None and not (isinstance(self.bits, int) and 2 <= self.bits <= 16):
            raise InvalidMenu(f"bits must be a whole number from 2 to 16, or None; got {self.bits!r}")
        if self.damping is not None and not self.damping > 0:
            raise InvalidMenu(f"damping must be above zero, or None to have it chosen; got {self.damping!r}")
        for name in ("block", "gradients"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise InvalidMenu(f"{name} must be a whole number of at least 1; got {value!r}")
        if self.update not in UPDATES:
            raise InvalidMenu(f"update must be one of {', '.join(UPDATES)}; got {self.update!r}")
        if self.order not in ORDERS:
            raise InvalidMenu(f"order must be 'second' or 'first'; got {self.order!r}")

    @classmethod
    def samples(cls) -> tuple[WoodFisher, ...]:
        """Settings that the conformance suite tries."""
        return (
            cls(0.5),
            cls(0.7, bits=3, block=16),
            cls(0.4, update="independent", damping=1e-3),
            cls(0.6, order="first", damping=1e-2),
        )

    @classmethod
    def faithful(cls) -> tuple[WoodFisher, float] | None:
        """Highest fidelity, and the largest relative displacement that it leaves."""
        return cls(0.0), 0.0

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """Gradients of the loss."""
        return (Gradients(self.gradients),)

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Suits weights only."""
        return None if group.kind == "weight" else f"{group.kind} vectors are not pruned"

    def encode(self, group: Group, parts: Sequence[Tensor]) -> PrunedTensors:
        """Refused: needs data."""
        raise needs_data(self)

    def encode_with(
        self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]
    ) -> PrunedTensors | QuantizedTensors:
        """Mask by saliency, then move the survivors."""
        found = [
            (member, part, *self._pruned(part, rows))
            for member, part, rows in zip(group.members, parts, evidence[Gradients(self.gradients)], strict=True)
        ]
        if self.bits is not None:
            return QuantizedTensors(tuple(self._quantized(member, left, mask) for member, _, mask, left in found))
        return PrunedTensors(
            tuple(mask for _, _, mask, _ in found),
            tuple(left[mask].to(part.dtype) for _, part, mask, left in found),
            tuple(tuple(part.shape) for part in parts),
        )

    def settings(self, values: Tensor, rows: GradientRows) -> Settings:
        """These settings with the damping that is used for a tensor."""
        damping = self.damping
        if damping is None:
            damping, error = chosen_damping(values, rows, self.sparsity, self.block)
            logger.info("damping %.3g chosen; held-out prediction error %.3f of no update's", damping, error)
        return Settings(damping, self.block, cast(Update, self.update), self.order == "first")

    def _pruned(self, part: Tensor, rows: GradientRows) -> tuple[Tensor, Tensor]:
        values = part.detach().cpu().reshape(-1)
        count = survivor_count(values.numel(), self.sparsity)
        if count == values.numel():
            return torch.ones(count, dtype=torch.bool), values.double()
        settings = self.settings(values, rows)
        mask = largest(saliencies(values, rows, settings), count)
        left = compensated(values, mask, rows, settings)
        limit = torch.finfo(part.dtype).max
        # A Fisher without signal may leave an update that no dtype holds: then the survivors stay as they were.
        sound = bool(torch.isfinite(left).all())
        return mask, (left if sound else values.double() * mask).clamp(-limit, limit)

    def _quantized(self, member: Member, left: Tensor, mask: Tensor) -> QuantizedTensor:
        assert self.bits is not None  # noqa: S101 - called with bits only
        rows = member.part_shape[0] if len(member.part_shape) > 1 else 1
        values, kept = left.float().reshape(rows, -1), mask.reshape(rows, -1)
        scale = fit_scale(values, kept, self.bits)
        codes = round_to_codes(values, scale, self.bits, signs_only=self.bits == 2) * kept
        return QuantizedTensor(member, self.bits, scale, codes.to(torch.int16), kept)

    def decode(self, group: Group, data: memoryview) -> tuple[PrunedTensors | QuantizedTensors, int]:
        """Read mask and survivors, member by member."""
        return cast(tuple[PrunedTensors, int], plain_read(self, group, data))

    def read(self, group: Group, reader: Reader) -> PrunedTensors | QuantizedTensors:
        """Read mask and survivors, as ``prune`` and ``quantize`` store them."""
        if self.bits is None:
            return Prune(self.sparsity).read(group, reader)
        members = tuple(QuantizedTensor.read(member, self.bits, True, reader) for member in group.members)
        return QuantizedTensors(members)


offer("woodfisher", *(f"woodfisher(sparsity={share},bits=4)" for share in (0.5, 0.7)))
