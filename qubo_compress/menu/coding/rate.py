"""Codes that trade bits against error, under the models that a coder uses.

The minimum of  sum (w - code x step)^2 + price x bits(code)  is found code by code. If a number of bits must be saved,
the codes whose squared error rises least per bit move first, which is the same minimum at the price that fits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.menu.coding.contexts import Shape
from qubo_compress.menu.coding.parts import Coding, Numbers, Sized, fitted, recorded
from qubo_compress.menu.operator import values_of
from qubo_compress.menu.quantize import QuantizedTensors, half_scale, least_squares_scale
from qubo_compress.menu.storage.stored import Grid, Stored

ROUNDS = 3
SMALLEST_SAVING = 1e-3
"""A step that saves fewer bits is not worth its error."""

SMALLEST_FACTOR = 1.0 + 2.0**-9
"""The least factor that surely widens a float16 step."""

WIDER = 2 * math.log(2) / 12
"""Squared error per bit of wider steps, in squared steps: the error is step^2 / 12 and bits are -log2 step."""

ON_GRID = 1 / 24
"""Limit of the mean squared distance from the codes, in squared steps; off the grid it is 1 / 12."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Codes = TypeVar("Codes", bound=Grid)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Single moves of codes, one step up or down.

    Attributes:
        places: (n,) among the written codes of a grid.
        way: (n,) +1 or -1.
        saving: (n,) bits.
        error: (n,) rise of the squared error.
        size: (n,) of the grid's steps.
        coded: whether the grid's codes are entropy-coded.
        on_grid: whether the goal is on the grid, or so near that wider steps would lose more.
    """

    places: Integers = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    way: Integers = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    saving: Floats = dataclasses.field(default_factory=lambda: np.zeros(0))
    error: Floats = dataclasses.field(default_factory=lambda: np.zeros(0))
    size: Floats = dataclasses.field(default_factory=lambda: np.zeros(0))
    coded: bool = False
    on_grid: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Moves:
    """Ways to save bits in a stored group: one step of each code, or wider steps for all.

    Attributes:
        stored: the group.
        grids: its grids.
        steps: of every grid.
    """

    stored: Stored
    grids: tuple[Grid, ...]
    steps: tuple[Steps, ...]

    @classmethod
    def of(cls, stored: Stored, sizes: Sequence[Sized], goal: Sequence[Tensor]) -> Moves:
        """The moves of a group.

        Args:
            stored: the nearest codes.
            sizes: of its parts.
            goal: the values that the codes should approximate. If the grids hold something else, such as coefficients,
                the error of a move is measured from the middle between two codes.
        """
        grids = stored.grids()
        streams = [(size, size.part) for size in sizes if isinstance(size.part, Numbers) and not size.part.of_mask]
        matched = len(goal) == len(grids)
        known = matched and all(g.numel() == grid.codes.numel() for g, grid in zip(goal, grids, strict=True))
        found = []
        for number, grid in enumerate(grids):
            written = grid.stored_codes().numpy()
            at = next((i for i, (_, part) in enumerate(streams) if np.array_equal(part.values, written)), None)
            size, part = (None, None) if at is None else streams.pop(at)
            if size is None or part is None or size.where is None or size.bits is None or part.shift:
                found.append(Steps())
            else:
                found.append(_steps(grid, part, size.bits, size.where, goal[number] if known else None))
        return cls(stored, grids, tuple(found))

    @property
    def any(self) -> bool:
        """Whether any code can be moved."""
        return any(moves.places.size for moves in self.steps)

    @property
    def codes(self) -> int:
        """The number of entropy-coded codes."""
        pairs = zip(self.grids, self.steps, strict=True)
        return sum(grid.stored_codes().numel() for grid, moves in pairs if moves.coded)

    def saved_cheaply(self) -> float:
        """Bits saved by the moves that cost less error per bit than wider steps."""
        return sum(
            float(m.saving.sum() if m.on_grid else m.saving[m.error <= WIDER * m.size**2 * m.saving].sum())
            for m in self.steps
        )

    def widened(self, bits: float) -> Stored | None:
        """The group with steps widened to save about this many bits; codes must be refitted. None without steps."""
        coded = [grid.stored_codes().numel() for grid, moves in zip(self.grids, self.steps, strict=True) if moves.coded]
        if not coded:
            return None
        factor = max(2.0 ** min(bits / sum(coded), 1.0), SMALLEST_FACTOR)
        pairs = zip(self.grids, self.steps, strict=True)
        wider = iter([grid.with_steps(grid.steps() * factor) if moves.coded else grid for grid, moves in pairs])
        return self.stored.with_grids(wider)

    def taken(self, bits: float) -> Stored:
        """The moves of least error per bit that save a number of bits."""
        saving = np.concatenate([m.saving for m in self.steps])
        ratio = np.concatenate([m.error / m.saving for m in self.steps])
        order = np.argsort(ratio)
        enough = int(np.searchsorted(np.cumsum(saving[order]), bits))
        price = float(ratio[order[min(enough, order.size - 1)]])
        pairs = zip(self.grids, self.steps, strict=True)
        return self.stored.with_grids(iter([_taken(grid, moves, price) for grid, moves in pairs]))


def _steps(grid: Grid, part: Numbers, bits: Floats, where: Integers, goal: Tensor | None) -> Steps:
    size = _written(grid, grid.steps().float().expand(grid.codes.shape))
    apart, on_grid = np.zeros(part.values.size), False
    if goal is not None:
        apart = _written(grid, values_of(goal).reshape(grid.codes.shape)) / size - part.values
        on_grid = float(np.square(apart.clip(-0.5, 0.5)).mean()) < ON_GRID
    flat, row, symbols = bits.reshape(-1), where * part.count, part.symbols
    stands = flat[row + symbols]
    # Towards zero, where numbers are more likely, or outwards if few are zero, as behind a mask.
    inward = np.clip(symbols - np.sign(part.values), 0, part.count - 1) - symbols
    saving = stands - flat[row + symbols + inward]
    outward = np.clip(symbols - np.where(inward == 0, 1, inward), 0, part.count - 1) - symbols
    other = stands - flat[row + symbols + outward]
    better = other > np.maximum(saving, SMALLEST_SAVING)
    way = np.where(better, outward, inward)
    saving = np.where(better, other, saving)
    places = np.flatnonzero((way != 0) & (saving > SMALLEST_SAVING))
    size = size[places]
    error = size * size * np.maximum(1.0 - 2.0 * way[places] * apart[places], 0.0)
    return Steps(places, way[places], saving[places], error, size, True, on_grid)


def _written(grid: Grid, values: Tensor) -> Floats:
    """Values at the places of the written codes."""
    whole = values.numpy()
    return (whole.reshape(-1) if grid.mask is None else whole[grid.mask.numpy()]).astype(np.float64)


def _placed(grid: Codes, written: npt.NDArray[Any]) -> Codes:
    """The grid with its written codes replaced."""
    codes = written.astype(grid.codes.numpy().dtype)
    if grid.mask is None:
        return grid.with_codes(torch.from_numpy(codes).reshape(grid.codes.shape))
    whole = np.zeros(grid.codes.shape, dtype=codes.dtype)
    whole[grid.mask.numpy()] = codes
    return grid.with_codes(torch.from_numpy(whole))


def _taken(grid: Grid, moves: Steps, price: float) -> Grid:
    codes = grid.stored_codes().numpy().copy()
    taken = moves.error <= price * moves.saving
    codes[moves.places[taken]] += moves.way[taken].astype(codes.dtype)
    return _placed(grid, codes)


def rate_aware(
    stored: QuantizedTensors, parts: Sequence[Tensor], rate: float, shapes: Mapping[int, Shape]
) -> QuantizedTensors:
    """Optimise codes, scales and models in turn, trading bits against the error.

    Args:
        stored: the nearest codes.
        parts: the weights.
        rate: of a bit, in units of 2 ln 2 times the mean squared error of ``stored``.
        shapes: of the group's members.
    """
    values = [values_of(part) for part in parts]
    error = sum(
        float((value * (grid.mask if grid.mask is not None else 1) - grid.codes * grid.steps()).square().sum())
        for value, grid in zip(values, stored.parts, strict=True)
    )
    price = rate * 2 * math.log(2) * error / sum(value.numel() for value in values)
    for _ in range(ROUNDS):
        streams = [p for p in recorded(stored, shapes) if isinstance(p, Numbers) and not p.of_mask]
        moved = []
        for grid, value, part in zip(stored.parts, values, streams, strict=True):
            changed = _placed(grid, _weighed(grid, part, fitted(part), value, price))
            kept = value if grid.mask is None else value * grid.mask
            scale = half_scale(least_squares_scale(kept, changed.codes.float(), grid.scale.float()))
            moved.append(dataclasses.replace(changed, scale=scale))
        stored = QuantizedTensors(tuple(moved))
    return stored


def _weighed(grid: Grid, part: Numbers, coding: Coding, value: Tensor, price: float) -> Integers:
    """The best of the nearest code, one and two steps towards zero, and zero, by error plus price of bits."""
    target = _written(grid, value)
    steps = _written(grid, grid.steps().float().expand(grid.codes.shape))
    level = part.high
    near = np.clip(np.round(target / steps), -level, level)
    tried = np.stack([np.sign(near) * np.maximum(np.abs(near) - less, 0) for less in (0, 1, 2, 2 * level)])
    cost = (target - tried * steps) ** 2
    if coding.models:
        where = part.in_context(coding)
        cost = cost + price * coding.bits[where, (tried.astype(np.int64) - part.low) >> part.shift]
    found: Integers = np.take_along_axis(tried, cost.argmin(0)[None], 0)[0].astype(np.int64)
    return found
