"""Second moments of a layer's inputs: what an error in its weights does to its outputs.

A linear layer or convolution computes W x for columns x of unfolded inputs, so an error E of the weights changes
the outputs by E x, and the mean squared change is

    mean |E x|^2 = sum_rows e S e^T,     S = mean x x^T     (D, D),  D = inputs per output row

which is the layer-wise objective of optimal brain compression (Frantar & Alistarh, NeurIPS 2022) and GPTQ
(Frantar et al., ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_compress.errors import InvalidMenu, QuboCompressError
from qubo_compress.menu.groups import Group, Member, state_entries
from qubo_compress.statistics.statistic import Calibration

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

SILENT = 1e-200
"""Inputs whose mean moment is not above this count as none: their inverse would overflow."""

PATCH_VALUES = 8_000_000
"""Unfolded inputs are multiplied in parts of up to this many values."""


@dataclass(eq=False)
class Moments:
    """Second moments of the inputs of one member.

    Attributes:
        blocks: one (D, D) float64 matrix per group of a convolution; a single one elsewhere.
        first_row: of the member's rows in the whole tensor.
        total_rows: of the whole tensor; they are shared evenly between the blocks.
        factors: (block, damping) -> factor of the inverse; filters of one layer share them.
    """

    blocks: tuple[Tensor, ...]
    first_row: int
    total_rows: int
    factors: dict[tuple[int, float], Tensor] = field(default_factory=dict)

    def block_of(self, row: int) -> int:
        """Which matrix belongs to a row of the member."""
        return (self.first_row + row) // (self.total_rows // len(self.blocks))

    def spans(self, rows: int) -> list[tuple[int, int, int]]:
        """(block, first row, last row but one) over ``rows`` rows of the member."""
        found: list[tuple[int, int, int]] = []
        for row in range(rows):
            block = self.block_of(row)
            if found and found[-1][0] == block:
                found[-1] = (block, found[-1][1], row + 1)
            else:
                found.append((block, row, row + 1))
        return found

    def damped(self, block: int, damping: float) -> Tensor:
        """(D, D) moments with ``damping`` times their mean diagonal added to it; dead inputs get a small one."""
        matrix = self.blocks[block].clone()
        mean = float(matrix.diagonal().mean())
        matrix.diagonal().add_(damping * mean if mean > SILENT else 1.0)
        return matrix

    def inverse_factor(self, block: int, damping: float) -> Tensor:
        """(D, D) upper triangular U with U^T U the inverse of the damped moments; kept for the next choice."""
        key = (block, damping)
        if key not in self.factors:
            share = damping
            for _ in range(8):
                lower, failed = torch.linalg.cholesky_ex(self.damped(block, share))
                if int(failed) == 0:
                    inverse = torch.cholesky_inverse(lower)
                    upper, failed = torch.linalg.cholesky_ex((inverse + inverse.T) / 2, upper=True)
                if int(failed) == 0 and bool(torch.isfinite(upper).all()):
                    break
                tried, share = share, 10.0 * share
            else:
                raise InvalidMenu(f"the input moments cannot be inverted, even with damping {tried:g}; give another")
            self.factors[key] = upper
        return self.factors[key]


@dataclass(frozen=True)
class InputMoments:
    """Gathers :class:`Moments` of every member of a group, over all calibration examples with their weights."""

    statistic_name: ClassVar[str] = "input-moments"
    watches_inputs: ClassVar[bool] = True
    """It hooks the layer: one that never runs as a module of its own cannot be looked at."""
    watched_modules: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, *CONVOLUTIONS)
    """Every module that owns the tensor must be one of these."""

    def collect(self, calibration: Calibration, group: Group) -> tuple[Moments, ...]:
        """Run the network up to the layer that owns each member."""
        return tuple(self._member(calibration, member) for member in group.members)

    def _member(self, calibration: Calibration, member: Member) -> Moments:
        # Filters of one layer share its moments and what is made of them.
        blocks, factors = calibration.remembered(
            self.statistic_name, member.name, lambda: (_gathered(calibration, member.name), {})
        )
        first = 0 if member.rows is None else member.rows[0]
        return Moments(blocks, first, member.shape[0], factors)

    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[Moments, ...]:
        """Moments of random correlated inputs."""
        found = []
        for member in group.members:
            size = member.numel // member.part_shape[0]
            mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
            inputs = torch.randn(4 * size, size, generator=generator, dtype=torch.float64) @ mixing
            first = 0 if member.rows is None else member.rows[0]
            found.append(Moments((inputs.T @ inputs / inputs.shape[0],), first, member.shape[0]))
        return tuple(found)


class _Reached(QuboCompressError):
    """Raised behind the layer that is looked at: the rest of the network need not run."""


def _gathered(calibration: Calibration, name: str) -> tuple[Tensor, ...]:
    """(D, D) moments per convolution group, over every module that owns the tensor and every call of it."""
    owners = {id(module): module for module, _ in state_entries(calibration.model)[0][name].owners}
    for module in owners.values():
        if not isinstance(module, InputMoments.watched_modules):
            raise InvalidMenu(
                f"{name} also belongs to {type(module).__name__}, whose inputs have no moments; "
                "keep it out of choices that look at inputs, with a grouping that leaves it alone"
            )
    sums: list[Tensor] = []
    weights = torch.ones(1)
    calls: dict[int, int] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], _: Any) -> None:
        found = _second_moments(module, (args[0] if args else named["input"]).detach(), weights)
        if sums:
            for total, part in zip(sums, found, strict=True):
                total += part
        else:
            sums.extend(found)
        calls[id(module)] = calls.get(id(module), 0) + 1
        if len(owners) == 1 and stop_early:
            raise _Reached

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in owners.values()]
    stop_early = False
    try:
        with torch.no_grad():
            for number, part in enumerate(calibration.examples.slices):
                weights = part.weights
                try:
                    calibration.run(part.inputs)
                except _Reached:
                    continue
                # A module that is called once per run need not see the rest of the network again.
                stop_early = number == 0 and set(calls.values()) == {1}
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise InvalidMenu(f"the layer that owns {name} never ran on the calibration data; leave it alone")
    return tuple((total + total.T) / 2 for total in sums)


def _second_moments(module: nn.Module, inputs: Tensor, weights: Tensor) -> list[Tensor]:
    """Weighted sums of x x^T over examples and positions, one per convolution group."""
    if isinstance(module, nn.Linear):
        batch = inputs if inputs.ndim > 1 else inputs[None]
        scale = _row_weights(weights, batch.shape[0]).to(batch.device).double().sqrt()
        rows = batch.double() * scale.reshape(-1, *[1] * (batch.ndim - 1))
        flat = rows.reshape(-1, batch.shape[-1])
        return [(flat.T @ flat).cpu()]
    convolution: Any = module
    batch = inputs if inputs.ndim == len(convolution.kernel_size) + 2 else inputs[None]
    return _convolved(convolution, batch, _row_weights(weights, batch.shape[0]).to(batch.device).sqrt())


def _row_weights(weights: Tensor, count: int) -> Tensor:
    """(count,) weights along the first axis of a layer's inputs, for (n,) example weights.

    Networks that fold time or windows into the first axis have several rows per example, one after the other.
    A single row serves all examples. Other counts belong to no example in particular.
    """
    held = weights.clamp(min=0)
    if count % held.numel() == 0:
        return held.repeat_interleave(count // held.numel())
    return (held.sum() if count == 1 else held.mean()).expand(count)


def _convolved(module: Any, inputs: Tensor, root: Tensor) -> list[Tensor]:
    patches_of = unfolder(module)
    # Half precision would lose digits of the sums; double keeps what float64 networks have.
    exact = inputs if inputs.dtype == torch.float64 else inputs.float()
    size = module.in_channels // module.groups * _product(module.kernel_size)
    totals = [torch.zeros(size, size, dtype=torch.float64) for _ in range(module.groups)]
    step = max(1, PATCH_VALUES // max(1, patches_of(exact[:1]).numel()))
    for start in range(0, exact.shape[0], step):
        part = exact[start : start + step]
        scale = root[start : start + step].to(part.dtype).reshape(-1, *[1] * (part.ndim - 1))
        patches = patches_of(part * scale)
        for number, total in enumerate(totals):
            total += (patches[number] @ patches[number].T).double().cpu()
    return totals


def unfolder(module: Any) -> Callable[[Tensor], Tensor]:
    """Inputs (N, C, *size) -> (groups, D, positions): every column is what one output position sees."""
    dimensions = len(module.kernel_size)

    def patches(inputs: Tensor) -> Tensor:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        for axis in range(dimensions):
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
            padded = padded.unfold(2 + axis, reach, module.stride[axis])[..., :: module.dilation[axis]]
        channels = padded.shape[1]
        kernel = list(range(2 + dimensions, 2 + 2 * dimensions))
        moved = padded.permute(1, *kernel, 0, *range(2, 2 + dimensions))
        return moved.reshape(module.groups, channels // module.groups * _product(module.kernel_size), -1)

    return patches


def _product(values: Sequence[int]) -> int:
    found = 1
    for value in values:
        found *= value
    return found
