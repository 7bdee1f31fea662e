"""Quantization and pruning with errors compensated by the other weights of the same output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qubo_compress.calibration.statistics.input_moments import InputMoments, Moments
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.compensation.layer_error import Compensating
from qubo_compress.menu.compensation.moments import (
    MOST_DAMPING,
    Codebook,
    descended,
    output_error,
    propagated,
    pruned_mask,
    refitted,
)
from qubo_compress.menu.compensation.qubo import annealed
from qubo_compress.menu.families import offer
from qubo_compress.menu.operator import operators, values_of
from qubo_compress.menu.prune import Prune, PrunedTensors, check_sparsity, magnitude_mask, survivors_of
from qubo_compress.menu.quantize import (
    Quantize,
    QuantizedTensor,
    QuantizedTensors,
    half_scale,
    highest_level,
)
from qubo_compress.menu.storage.streams import Reader
from qubo_compress.network.groups import Group, Member

CLIPPING_SHARES = tuple(np.linspace(0.3, 1.0, 15))
"""Shares of a row's largest magnitude that are tried as the end of its grid."""

FINALISTS = 3
ALTERNATIONS = 2
DAMPING = 0.01
ROUNDINGS = ("descent", "qubo")


@operators.register
@dataclass(frozen=True)
class Compensate(Compensating):
    """Codes chosen by the layer's output error: column by column with compensation, then code by code.

    Codes are stored exactly as by ``quantize`` and ``prune``, and never with a larger error in the damped moments,
    the expected output error if inputs carry independent noise of that variance: if the plain
    choice is better in a row (in the tensor, if it is pruned), it is stored instead.

    Args:
        bits: bits per code, 2 to 16, or None: survivors keep the tensor's dtype.
        sparsity: share of weights set to zero, per tensor.
        damping: share of the mean input moment that is added to every input's moment, at least; more where there are
            few examples, see :mod:`qubo_compress.calibration.statistics.damping`.
        rounding: ``"descent"`` or ``"qubo"``, which then also rounds the weights of each output with the
            library's own annealer, see :mod:`qubo_compress.menu.compensation.qubo`; much slower.

    Raises:
        InvalidMenu: for settings out of range.

    Example:
        >>> Compensate(bits=3).needs
        (InputMoments(),)
    """

    operator_name: ClassVar[str] = "compensate"
    whole_numbers: ClassVar[bool] = True
    bits: int | None
    sparsity: float = 0.0
    damping: float = DAMPING
    rounding: str = "descent"

    def __post_init__(self) -> None:
        if self.bits is not None and not (isinstance(self.bits, int) and 2 <= self.bits <= 16):
            raise InvalidMenu(f"bits must be a whole number from 2 to 16, or None; got {self.bits!r}")
        check_sparsity(self.sparsity)
        if self.bits is None and self.sparsity == 0:
            raise InvalidMenu("without bits and without sparsity nothing is compressed; give one of them")
        if not (isinstance(self.damping, (int, float)) and 0 < self.damping <= MOST_DAMPING):
            raise InvalidMenu(f"damping must be above 0 and at most {MOST_DAMPING:g}; got {self.damping!r}")
        if self.rounding not in ROUNDINGS:
            raise InvalidMenu(f"rounding must be one of {', '.join(ROUNDINGS)}; got {self.rounding!r}")
        if self.bits is None and self.rounding != ROUNDINGS[0]:
            raise InvalidMenu(f"without bits nothing is rounded, so rounding={self.rounding!r} has no meaning")
        object.__setattr__(self, "sparsity", float(self.sparsity))

    @classmethod
    def samples(cls) -> tuple[Compensate, ...]:
        return cls(2), cls(3, 0.4), cls(2, 0.5), cls(None, 0.6), cls(8)

    @classmethod
    def faithful(cls) -> tuple[Compensate, float] | None:
        return cls(16), 1e-3

    def encode_with(
        self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]
    ) -> QuantizedTensors | PrunedTensors:
        """Store the mask, scales and codes with the least output error."""
        found = zip(group.members, parts, evidence[InputMoments()], strict=True)
        if self.bits is None:
            pruned = [self._with_enough(moments)._pruned(part, moments) for _, part, moments in found]
            masks, survivors = zip(*pruned, strict=True)
            return PrunedTensors(masks, survivors, tuple(tuple(part.shape) for part in parts))
        return QuantizedTensors(
            tuple(self._with_enough(moments)._one(member, part, moments) for member, part, moments in found)
        )

    def _with_enough(self, moments: Moments) -> Compensate:
        """The same with as much damping as the examples behind the moments call for."""
        return replace(self, damping=min(moments.at_least(self.damping), MOST_DAMPING))

    def _mask(self, values: Tensor, moments: Moments) -> Tensor | None:
        if self.sparsity == 0:
            return None
        blocks = moments.even_blocks(len(values))
        if blocks:
            moments.inverse_factors(blocks, self.damping)  # caches them
        factors = [
            (slice(a, b), moments.inverse_factor(block, self.damping)) for block, a, b in moments.spans(len(values))
        ]
        return pruned_mask(values, factors, survivors_of(values, self.sparsity))

    def _pruned(self, part: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        values = values_of(part).double()
        mask = self._mask(values, moments)
        assert mask is not None  # noqa: S101 - refused in __post_init__
        left = self._survivors(values, mask, moments)
        # Saliencies of single weights do not add up: at high sparsity, magnitudes may give the better mask.
        plain = magnitude_mask(part, self.sparsity).reshape(mask.shape)
        other = self._survivors(values, plain, moments)
        if _total(values, other, moments, self.damping) < _total(values, left, moments, self.damping):
            mask, left = plain, other
        largest = torch.finfo(part.dtype).max
        stored = left.clamp(-largest, largest).to(part.dtype).reshape(-1)
        return mask.reshape(-1), stored[mask.reshape(-1)]

    def _survivors(self, values: Tensor, mask: Tensor, moments: Moments) -> Tensor:
        left = torch.zeros_like(values)
        for block, a, b in moments.spans(len(values)):
            left[a:b] = solved(values[a:b], mask[a:b], moments.damped(block, self.damping))
        return left

    def _one(self, member: Member, part: Tensor, moments: Moments) -> QuantizedTensor:
        assert self.bits is not None  # noqa: S101 - the other branch of encode_with
        values = values_of(part)
        plain = Quantize(self.bits, self.sparsity)._one(member, part)
        mask = self._mask(values, moments)
        codes, scale = torch.zeros(values.shape), torch.zeros(len(values), 1, dtype=torch.float16)
        blocks = () if self.rounding == "qubo" else moments.even_blocks(len(values))
        if blocks:
            damped, uppers = moments.damped_stack(blocks, self.damping), moments.inverse_factors(blocks, self.damping)
            stack = len(blocks), -1, values.shape[1]
            kept = None if mask is None else mask.reshape(stack)
            found, steps = self._rows(values.double().reshape(stack), kept, damped, uppers)
            codes, scale = found.reshape(values.shape), steps.reshape(scale.shape)
        for block, a, b in () if blocks else moments.spans(len(values)):
            kept = None if mask is None else mask[a:b]
            damped, upper = moments.damped(block, self.damping), moments.inverse_factor(block, self.damping)
            codes[a:b], scale[a:b] = self._rows(values[a:b].double(), kept, damped, upper)
        if mask is None:
            codes, scale = _better(values, codes, scale, plain, moments, self.damping)
        elif _total(values, codes * scale.float(), moments, self.damping) > _total(
            values, plain.codes.float() * plain.scale.float(), moments, self.damping
        ):
            return plain
        return QuantizedTensor(member, self.bits, scale, codes.to(torch.int16), mask)

    def _rows(self, values: Tensor, mask: Tensor | None, damped: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and float16 scales of (R, D) rows that share their moments, or of (B, R, D) with moments per block."""
        assert self.bits is not None  # noqa: S101 - called with bits only
        book = codebook(self.bits, signs_only=mask is not None and self.bits == 2)
        level = highest_level(self.bits)
        target = values if mask is None else values * mask
        largest = target.abs().amax(-1, keepdim=True).clamp(min=1e-300)
        tried = []
        for share in CLIPPING_SHARES:
            scale = half_scale(share * largest / level).double()
            codes = book.nearest(target / scale)
            codes = codes if mask is None else codes * mask
            tried.append(output_error(values, codes * scale, damped))
        order = torch.stack(tried).argsort(dim=0, stable=True)[:FINALISTS]
        best_codes, best_scale = torch.zeros_like(values), torch.zeros(largest.shape, dtype=torch.float16)
        least = torch.full(values.shape[:-1], torch.inf, dtype=torch.float64)
        shares = torch.tensor(CLIPPING_SHARES, dtype=torch.float64)
        for rank in range(len(order)):
            scale = half_scale(shares[order[rank]][..., None] * largest / level)
            codes, scale = _settled(values, scale, mask, damped, upper, book)
            error = output_error(values, codes * scale.double(), damped)
            better = error < least
            best_codes[better], best_scale[better], least[better] = codes[better], scale[better], error[better]
        if self.rounding == "qubo":
            best_codes = annealed(values, best_codes, best_scale.double(), mask, damped, book)
            best_codes, best_scale = _alternated(values, best_codes, best_scale, mask, damped, book)
        return best_codes.float(), best_scale

    def read(self, group: Group, reader: Reader) -> QuantizedTensors | PrunedTensors:
        """Read the members in order, in the form of ``quantize`` and ``prune``."""
        if self.bits is None:
            return Prune(self.sparsity).read(group, reader)
        return Quantize(self.bits, self.sparsity).read(group, reader)


def codebook(bits: int, signs_only: bool) -> Codebook:
    """The codes of ``bits`` bits, or signs."""
    return Codebook(-highest_level(bits), highest_level(bits), signs_only)


def _settled(
    values: Tensor, scale: Tensor, mask: Tensor | None, damped: Tensor, upper: Tensor, book: Codebook
) -> tuple[Tensor, Tensor]:
    """Codes by propagation, then scale and codes alternately while the error falls."""
    codes = propagated(values, scale.double(), mask, upper, book)
    codes = descended(values, codes, scale.double(), mask, damped, book)
    return _alternated(values, codes, scale, mask, damped, book)


def _alternated(
    values: Tensor, codes: Tensor, scale: Tensor, mask: Tensor | None, damped: Tensor, book: Codebook
) -> tuple[Tensor, Tensor]:
    """Improve scale and codes alternately while the error falls."""
    codes, scale = codes.clone(), scale.clone()
    least = output_error(values, codes * scale.double(), damped)
    for _ in range(ALTERNATIONS):
        moved = half_scale(refitted(values, codes, damped, scale.double()).float())
        again = descended(values, codes, moved.double(), mask, damped, book)
        error = output_error(values, again * moved.double(), damped)
        better = error < least
        if not bool(better.any()):
            break
        codes[better], scale[better], least[better] = again[better], moved[better], error[better]
    return codes, scale


def solved(values: Tensor, mask: Tensor, damped: Tensor) -> Tensor:
    """(R, D) surviving weights with the least output error: S_kk q_k = (S w)_k for the survivors k of each row."""
    goal = values @ damped
    left = torch.zeros_like(values)
    for row in range(len(values)):
        kept = mask[row].nonzero()[:, 0]
        if kept.numel():
            left[row, kept] = torch.linalg.solve(damped[kept][:, kept], goal[row, kept])
    return left


def _better(
    values: Tensor, codes: Tensor, scale: Tensor, plain: QuantizedTensor, moments: Moments, damping: float
) -> tuple[Tensor, Tensor]:
    """For each row, the codes and scale with the lower output error."""
    ours = _errors(values, codes * scale.float(), moments, damping)
    theirs = _errors(values, plain.codes.float() * plain.scale.float(), moments, damping)
    worse = (theirs < ours)[:, None]
    return torch.where(worse, plain.codes.float(), codes), torch.where(worse, plain.scale, scale)


def _errors(values: Tensor, stored: Tensor, moments: Moments, damping: float) -> Tensor:
    """(R,) output errors in the damped moments."""
    blocks = moments.even_blocks(len(values))
    if blocks:
        stack = len(blocks), -1, values.shape[1]
        damped = moments.damped_stack(blocks, damping)
        return output_error(values.reshape(stack), stored.reshape(stack), damped).reshape(-1)
    spans = moments.spans(len(values))
    return torch.cat([output_error(values[a:b], stored[a:b], moments.damped(block, damping)) for block, a, b in spans])


def _total(values: Tensor, stored: Tensor, moments: Moments, damping: float) -> float:
    return float(_errors(values, stored, moments, damping).sum())


offer("compensate", *(f"compensate(bits={bits})" for bits in (2, 3, 4, 5)))
offer("compensate", *(f"compensate(bits={bits},sparsity={share})" for bits in (2, 3, 4) for share in (0.3, 0.5, 0.7)))
