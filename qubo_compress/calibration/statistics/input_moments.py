"""Second moments of a layer's inputs, which turn errors of its weights into errors of its outputs.

A linear layer or convolution computes W x for columns x of unfolded inputs, so an error E of the weights changes
the outputs by E x, and the mean squared change is

    mean |E x|^2 = sum_rows e S e^T,     S = mean x x^T     (D, D),  D = inputs per output row

which is the layer-wise objective of optimal brain compression (Frantar & Alistarh, NeurIPS 2022) and GPTQ
(Frantar et al., ICLR 2023).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from qubo_compress.calibration.examples import Examples, Slice
from qubo_compress.calibration.statistics.damping import Validation, validated
from qubo_compress.calibration.statistics.statistic import Calibration, Statistic
from qubo_compress.errors import InvalidMenu, QuboCompressError
from qubo_compress.network.calls import Sliding, WeightCall, WeightCalls
from qubo_compress.network.discovery import LOOKED_UP
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.groups import Group, Member

SILENT = 1e-200
"""Inputs with at most this mean moment are treated as dead: their inverse would overflow."""

STACKED_VALUES = 4_000_000
"""Moments of several blocks are processed together up to this many values."""

AHEAD_BYTES = 200_000_000
"""Limit on the moments of later layers that a run gathers as well and keeps until needed.

A run for every layer would make the time grow with the square of the depth.
"""

PATCH_VALUES = 8_000_000
"""Unfolded inputs are multiplied in parts of at most this many values."""


@dataclass(eq=False)
class Moments:
    """Second moments of the inputs of one member.

    Attributes:
        blocks: one (D, D) float64 matrix per group of a convolution, and per packed projection of attention between
            different sequences; a single one elsewhere.
        first_row: of the member's rows in the whole tensor.
        total_rows: of the whole tensor; they are shared evenly between the blocks.
        factors: (block, damping) -> factor of the inverse; filters of one layer share them.
        halves: for every block, the share of every second example in it; empty where they are not known.
        validations: by the least damping; filters of one layer share them.
    """

    blocks: tuple[Tensor, ...]
    first_row: int
    total_rows: int
    factors: dict[tuple[int, float], Tensor] = field(default_factory=dict)
    halves: tuple[Tensor, ...] = ()
    validations: dict[float, Validation] = field(default_factory=dict)

    def validation(self, damping: float) -> Validation:
        """What halves of the examples say about at least this damping."""
        if damping not in self.validations:
            self.validations[damping] = validated(self.halves, self.blocks, damping)
        return self.validations[damping]

    def at_least(self, damping: float) -> float:
        """This damping, or more where compensation with one half of the examples fails on the other half.

        See :mod:`qubo_compress.calibration.statistics.damping`.
        """
        return self.validation(damping).damping

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
        """(D, D) moments with ``damping`` times their mean diagonal added; dead inputs get a small diagonal."""
        matrix = self.blocks[block].clone()
        mean = float(matrix.diagonal().mean())
        matrix.diagonal().add_(damping * mean if mean > SILENT else 1.0)
        return matrix

    def even_blocks(self, rows: int) -> tuple[int, ...]:
        """The blocks of ``rows`` rows of the member, if they are several, small, and have equally many rows."""
        spans = self.spans(rows)
        alike = len({last - first for _, first, last in spans}) == 1
        small = len(spans) * self.blocks[0].numel() <= STACKED_VALUES
        return tuple(block for block, _, _ in spans) if len(spans) > 1 and alike and small else ()

    def damped_stack(self, blocks: Sequence[int], damping: float) -> Tensor:
        """(B, D, D) stack of :meth:`damped` over the blocks."""
        stack = torch.stack([self.blocks[block] for block in blocks])
        mean = stack.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        stack.diagonal(dim1=1, dim2=2).add_(torch.where(mean > SILENT, damping * mean, torch.ones_like(mean)))
        return stack

    def inverse_factors(self, blocks: Sequence[int], damping: float) -> Tensor:
        """(B, D, D) stack of :meth:`inverse_factor` over the blocks."""
        if any((block, damping) not in self.factors for block in blocks):
            lower, failed = torch.linalg.cholesky_ex(self.damped_stack(blocks, damping))
            inverse = torch.cholesky_inverse(lower)
            uppers, again = torch.linalg.cholesky_ex((inverse + inverse.mT) / 2, upper=True)
            sound = (failed == 0) & (again == 0) & torch.isfinite(uppers).flatten(1).all(1)
            for block, upper, is_sound in zip(blocks, uppers, sound.tolist(), strict=True):
                if is_sound:
                    self.factors.setdefault((block, damping), upper)
        return torch.stack([self.inverse_factor(block, damping) for block in blocks])

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
class InputMoments(Statistic):
    """Gathers :class:`Moments` of every member of a group, over all calibration examples with their weights."""

    statistic_name: ClassVar[str] = "input-moments"
    watches_inputs: ClassVar[bool] = True

    def collect(self, calibration: Calibration, group: Group) -> tuple[Moments, ...]:
        """Run the network up to the layers that own the members, and gather later layers that fit into memory.

        An embedding has no inputs: it picks rows, whose entries count alike. So do inputs that are not observed.
        """
        if group.module_type in LOOKED_UP or any(member.name in calibration.unseen for member in group.members):
            return tuple(_alike(member) for member in group.members)
        return tuple(self._member(calibration, member) for member in group.members)

    def _member(self, calibration: Calibration, member: Member) -> Moments:
        # Filters of one layer share its moments and their factors.
        sums, factors, validations = calibration.remembered(
            self.statistic_name, member.name, lambda: (_taken(calibration, self.statistic_name, member.name), {}, {})
        )
        first = 0 if member.rows is None else member.rows[0]
        return Moments(sums.blocks, first, member.shape[0], factors, sums.halves, validations)

    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[Moments, ...]:
        found = []
        for member in group.members:
            size = member.numel // member.part_shape[0]
            mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
            inputs = torch.randn(4 * size, size, generator=generator, dtype=torch.float64) @ mixing
            first = 0 if member.rows is None else member.rows[0]
            found.append(Moments((inputs.T @ inputs / inputs.shape[0],), first, member.shape[0]))
        return tuple(found)


def _alike(member: Member) -> Moments:
    """The moments of independent inputs of equal strength."""
    size = member.numel // member.part_shape[0]
    first = 0 if member.rows is None else member.rows[0]
    return Moments((torch.eye(size, dtype=torch.float64),), first, member.shape[0])


class _Reached(QuboCompressError):
    """Raised after the last layer of interest: the rest of the network need not run."""


@dataclass(frozen=True, eq=False)
class _HalvedSums:
    """Moments of a parameter's inputs, and what every second example contributed, one matrix per share of its rows."""

    blocks: tuple[Tensor, ...]
    halves: tuple[Tensor, ...]

    @classmethod
    def of(cls, found: list[Tensor]) -> _HalvedSums:
        """From the matrices of every second example, followed by those of the others."""
        shares = len(found) // 2
        even = [(total + total.T) / 2 for total in found[:shares]]
        odd = [(total + total.T) / 2 for total in found[shares:]]
        return cls(tuple(one + other for one, other in zip(even, odd, strict=True)), tuple(even))


def _taken(calibration: Calibration, statistic: str, name: str) -> _HalvedSums:
    """A parameter's moments: gathered ahead, or by a new run that gathers others as well."""
    ahead = calibration.ahead.setdefault(statistic, {})
    if name not in ahead:
        ahead.clear()
        ahead.update(_gathered(calibration, name))
    return cast(_HalvedSums, ahead.pop(name))


@dataclass(eq=False)
class _Gathering:
    """Sums of one run over all examples.

    Attributes:
        asked: the parameter that must be gathered; others only if they are cheap.
        weights: of the examples that run.
        odd: which of them are every second one.
        sums: parameter -> one matrix per share of its output rows, first of even and then of odd examples.
        calls: parameter -> calls in this slice.
        left: parameters that are not gathered.
        once: whether every parameter was called exactly once in the first slice, so slices may end early.
    """

    asked: str
    weights: Tensor
    odd: Tensor
    sums: dict[str, list[Tensor]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    once: bool = False

    def add(self, name: str, call: WeightCall) -> None:
        """Add the inputs of one call; ends the run after the last one of interest."""
        if name in self.left:
            return
        try:
            self._add(name, _second_moments(call, self.weights, self.odd))
        except InvalidMenu:
            if name == self.asked:
                raise
            self._leave(name)
        if self.once and len(self.calls) == len(self.sums):
            raise _Reached

    def _add(self, name: str, found: list[Tensor]) -> None:
        known = self.sums.get(name)
        if known is None:
            self.sums[name] = found
        elif len(known) == len(found):
            self.sums[name] = [total + part for total, part in zip(known, found, strict=True)]
        else:
            raise InvalidMenu(f"{name} is used in several different ways; keep it out of choices that look at inputs")
        self.calls[name] = self.calls.get(name, 0) + 1
        held = sum(8 * total.numel() for other, sums in self.sums.items() if other != self.asked for total in sums)
        if name != self.asked and held > AHEAD_BYTES:
            self._leave(name)

    def _leave(self, name: str) -> None:
        self.left.add(name)
        self.sums.pop(name, None)
        self.calls.pop(name, None)

    def next_slice(self, first: bool) -> None:
        """Start another slice; after the first one it is known which parameters are called once."""
        if first:
            self.once = bool(self.sums) and set(self.calls.values()) == {1}
        self.calls.clear()


def _gathered(calibration: Calibration, name: str) -> dict[str, _HalvedSums]:
    """(D, D) moments per share of the output rows, over every call that gets the tensor itself.

    For the parameter, and for later ones in the network as far as they fit.
    """
    behind = itertools.dropwhile(lambda other: other[0] != name, calibration.tensors.items())
    watched = {other: tensor for other, tensor in behind if other == name or tensor.ndim > 1}
    gathering = _Gathering(name, torch.ones(1), torch.zeros(1, dtype=torch.bool))
    with every_layer_runs(), WeightCalls(watched, gathering.add, frozenset(watched)), torch.no_grad():
        for number, (odd, part) in enumerate(alternate(calibration.examples)):
            gathering.weights, gathering.odd = part.weights, odd
            with contextlib.suppress(_Reached):  # it has seen all that it needs
                calibration.run(part.inputs)
            gathering.next_slice(number == 0)
    if name not in gathering.sums:
        raise InvalidMenu(
            f"what {name} multiplies was not seen on the calibration data: no function that is known was given it; "
            "keep it out of choices that look at inputs, with a grouping that leaves it alone"
        )
    return {other: _HalvedSums.of(sums) for other, sums in gathering.sums.items()}


def _second_moments(call: WeightCall, weights: Tensor, odd: Tensor) -> list[Tensor]:
    """Weighted sums of x x^T over even examples and positions, one per share of the output rows; then over odd ones."""
    if not call.inputs:
        raise InvalidMenu(f"the inputs of {call.function} have no moments; leave its weight out of such choices")
    if call.sliding is not None:
        batch = call.inputs[0]
        root = row_weights(weights, batch.shape[0]).to(batch.device).sqrt()
        parts = parted(odd.to(batch.device), batch.shape[0])
        return [total for part in parts for total in _convolved(call.sliding, batch[part], root[part])]
    found: dict[int, list[Tensor]] = {}
    for batch in call.inputs:
        if id(batch) not in found:
            scale = row_weights(weights, batch.shape[0]).to(batch.device).double().sqrt()
            rows = batch.double() * scale.reshape(-1, *[1] * (batch.ndim - 1))
            flat = [rows[part].reshape(-1, batch.shape[-1]) for part in parted(odd.to(batch.device), len(rows))]
            found[id(batch)] = [(half.T @ half).cpu() for half in flat]
    shares = list(found.values()) if len(found) == 1 else [found[id(batch)] for batch in call.inputs]
    return [share[half] for half in range(2) for share in shares]


def alternate(examples: Examples) -> Iterator[tuple[Tensor, Slice]]:
    """Every slice, and which of its examples are every second one of all that count."""
    count = 0
    for part in examples.slices:
        counting = part.weights > 0  # the others must not leave one half empty
        yield (counting.cumsum(0) + count) % 2 == 0, part
        count += int(counting.sum())


def parted(odd: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of ``count`` rows belong to even and to odd examples; all to even ones if rows are not of examples."""
    of_examples = odd.numel() > 0 and count % odd.numel() == 0
    rows = odd.repeat_interleave(count // odd.numel()) if of_examples else odd.new_zeros(count)
    return ~rows, rows


def row_weights(weights: Tensor, count: int) -> Tensor:
    """(count,) weights along the first axis of a layer's inputs, for (n,) example weights.

    Networks that fold time or windows into the first axis have several consecutive rows per example. A single row
    serves all examples. Other counts belong to no particular example.
    """
    held = weights.clamp(min=0)
    if count % held.numel() == 0:
        return held.repeat_interleave(count // held.numel())
    return (held.sum() if count == 1 else held.mean()).expand(count)


def _convolved(sliding: Sliding, inputs: Tensor, root: Tensor) -> list[Tensor]:
    patches_of = unfolder(sliding)
    # Half precision would lose digits of the sums; double keeps those of float64 networks.
    exact = inputs if inputs.dtype == torch.float64 else inputs.float()
    size = inputs.shape[1] // sliding.groups * _product(sliding.kernel)
    totals = [torch.zeros(size, size, dtype=torch.float64) for _ in range(sliding.groups)]
    step = max(1, PATCH_VALUES // max(1, patches_of(exact[:1]).numel()))
    for start in range(0, exact.shape[0], step):
        part = exact[start : start + step]
        scale = root[start : start + step].to(part.dtype).reshape(-1, *[1] * (part.ndim - 1))
        patches = patches_of(part * scale)
        for number, total in enumerate(totals):
            total += (patches[number] @ patches[number].T).double().cpu()
    return totals


def unfolder(sliding: Sliding) -> Callable[[Tensor], Tensor]:
    """Inputs (N, C, *size) -> (groups, D, positions): each column has the inputs of one output position."""
    dimensions = len(sliding.kernel)
    # The last axis comes first for functional.pad.
    sides = [side for pair in reversed(sliding.padding) for side in pair]

    def patches(inputs: Tensor) -> Tensor:
        padded = functional.pad(inputs, sides)
        for axis in range(dimensions):
            reach = sliding.dilation[axis] * (sliding.kernel[axis] - 1) + 1
            padded = padded.unfold(2 + axis, reach, sliding.stride[axis])[..., :: sliding.dilation[axis]]
        channels = padded.shape[1]
        kernel = list(range(2 + dimensions, 2 + 2 * dimensions))
        moved = padded.permute(1, *kernel, 0, *range(2, 2 + dimensions))
        return moved.reshape(sliding.groups, channels // sliding.groups * _product(sliding.kernel), -1)

    return patches


def _product(values: Sequence[int]) -> int:
    found = 1
    for value in values:
        found *= value
    return found
