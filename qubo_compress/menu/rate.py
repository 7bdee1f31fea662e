"""Codes that weigh bits against error, under the models that a coder uses.

The least of  sum (w - code x step)^2 + price x bits(code)  is had code by code. When a number of bits has to be given
up, the codes whose squared error rises least per bit move first, which is the same minimum at the price that fits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.menu.entropy_contexts import Shape
from qubo_compress.menu.entropy_writer import Coding, Numbers, fitted, recorded
from qubo_compress.menu.operator import values_of
from qubo_compress.menu.quantize import QuantizedTensors, half_scale, least_squares_scale
from qubo_compress.menu.streams import Streamed

ROUNDS = 3
SMALLEST_SAVING = 1e-3
"""Bits: below, a move is not worth its error."""

Floats = npt.NDArray[np.float64]


@runtime_checkable
class Gridded(Protocol):
    """Stored whole numbers times steps."""

    @property
    def codes(self) -> Tensor:
        """(R, D) whole numbers."""
        ...

    def steps(self) -> Tensor:
        """(R, 1) or (1, 1) float32."""
        ...

    def stored_codes(self) -> Tensor:
        """(n,) the codes that are written, row by row."""
        ...

    def with_codes(self, codes: Tensor) -> Self:
        """Other codes of the same range and places."""
        ...


def grids_of(stored: Any) -> list[Gridded]:
    """All grids in a stored group, in the order of its fields."""
    if isinstance(stored, tuple):
        return [grid for item in stored for grid in grids_of(item)]
    if not dataclasses.is_dataclass(stored) or isinstance(stored, type):
        return []
    if isinstance(stored, Gridded):
        return [stored]
    return [grid for item in dataclasses.fields(stored) for grid in grids_of(getattr(stored, item.name))]


def with_grids(stored: Any, grids: Iterator[Gridded]) -> Any:
    """A stored group with other grids in the same places."""
    if isinstance(stored, tuple):
        return tuple(with_grids(item, grids) for item in stored) if grids_of(stored) else stored
    if not grids_of(stored):
        return stored
    if isinstance(stored, Gridded):
        return next(grids)
    changed = {item.name: getattr(stored, item.name) for item in dataclasses.fields(stored)}
    changed = {name: with_grids(value, grids) for name, value in changed.items() if grids_of(value)}
    return dataclasses.replace(stored, **changed)


@dataclasses.dataclass(frozen=True)
class _Moves:
    """One code each, a step towards zero.

    Attributes:
        places: (n,) among the written codes of a grid.
        saving: (n,) bits.
        error: (n,) rise of the squared error.
    """

    places: npt.NDArray[np.int64]
    saving: Floats
    error: Floats


def cheaper(
    near: Streamed, goal: Sequence[Tensor], codings: Sequence[Coding], shapes: Mapping[int, Shape], excess: float
) -> Streamed | None:
    """Codes moved towards zero, at most one step each, until so many bits are saved at the least squared error.

    Args:
        near: the nearest codes.
        goal: what they shall be near to; the error counts from there where the grids' values are these, and from the
            codes themselves where they are something else, such as the values of which factors are stored.
        codings: of every part of ``near``.
        shapes: of the group's members.
        excess: bits to be saved, as the models of the codes that stand now count them.

    Returns:
        None when no code can be moved.
    """
    grids = grids_of(near)
    streams = [
        (part, coding)
        for part, coding in zip(recorded(near, shapes), codings, strict=True)
        if isinstance(part, Numbers) and not part.of_mask and coding.models and not part.shift
    ]
    known = len(goal) == len(grids) and all(g.numel() == grid.codes.numel() for g, grid in zip(goal, grids, strict=True))
    moves = []
    for number, grid in enumerate(grids):
        written = grid.stored_codes().numpy()
        at = next((i for i, (part, _) in enumerate(streams) if np.array_equal(part.values, written)), None)
        if at is None:
            moves.append(_Moves(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)))
            continue
        part, coding = streams.pop(at)
        moves.append(_moves(grid, part, coding, goal[number] if known else None))
    share = _dearest(moves, excess)
    if share is None:
        return None
    changed = iter([_taken(grid, move, share) for grid, move in zip(grids, moves, strict=True)])
    return cast(Streamed, with_grids(near, changed))


def _moves(grid: Gridded, part: Numbers, coding: Coding, goal: Tensor | None) -> _Moves:
    symbols = part.symbols
    signs = np.sign(part.values)
    table = coding.bits
    where = part.in_context(coding)
    inward = np.clip(symbols - signs, 0, table.shape[1] - 1)
    saving = table[where, symbols] - table[where, inward]
    places = np.flatnonzero((signs != 0) & (inward != symbols) & (saving > SMALLEST_SAVING))
    steps = _written(grid, grid.steps().float().expand(grid.codes.shape))[places]
    beyond: Any = 0.0
    if goal is not None:
        target = _written(grid, values_of(goal).reshape(grid.codes.shape))[places]
        beyond = np.clip(np.abs(target) * (np.sign(target) == signs[places]) / steps, 0, None)
        beyond = beyond - np.abs(part.values[places])
    error = steps * steps * np.maximum(1.0 + 2.0 * beyond, 0.0)
    return _Moves(places, saving[places], error)


def _written(grid: Gridded, values: Tensor) -> Floats:
    """Values at the places of the written codes."""
    mask = getattr(grid, "mask", None)
    found = values.reshape(-1) if mask is None else values[mask]
    return found.numpy().astype(np.float64)


def _dearest(moves: Sequence[_Moves], excess: float) -> float | None:
    """The error per bit up to which moves are taken."""
    saving = np.concatenate([m.saving for m in moves]) if moves else np.zeros(0)
    if not saving.size:
        return None
    ratio = np.concatenate([m.error / m.saving for m in moves])
    order = np.argsort(ratio)
    enough = int(np.searchsorted(np.cumsum(saving[order]), excess))
    return float(ratio[order[min(enough, order.size - 1)]])


def _taken(grid: Gridded, moves: _Moves, share: float) -> Gridded:
    codes = grid.stored_codes().numpy().copy()
    places = moves.places[moves.error <= share * moves.saving]
    codes[places] -= np.sign(codes[places])
    written = torch.from_numpy(codes).to(grid.codes.dtype)
    mask = getattr(grid, "mask", None)
    if mask is None:
        return grid.with_codes(written.reshape(grid.codes.shape))
    whole = torch.zeros_like(grid.codes)
    whole[mask] = written
    return grid.with_codes(whole)


def rate_aware(
    stored: QuantizedTensors, parts: Sequence[Tensor], rate: float, shapes: Mapping[int, Shape]
) -> QuantizedTensors:
    """Codes, scales and models in turn, with bits weighed against the error.

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
            codes = _weighed(grid, part, fitted(part), _written(grid, value), price)
            changed = grid.with_codes(codes)
            kept = value if grid.mask is None else value * grid.mask
            scale = half_scale(least_squares_scale(kept, changed.codes.float(), grid.scale.float()))
            moved.append(dataclasses.replace(changed, scale=scale))
        stored = QuantizedTensors(tuple(moved))
    return stored


def _weighed(grid: Gridded, part: Numbers, coding: Coding, target: Floats, price: float) -> Tensor:
    """Of the nearest code, one and two steps towards zero, and zero, the one of the least error plus price of bits."""
    steps = _written(grid, grid.steps().float().expand(grid.codes.shape))
    level = part.high
    near = np.clip(np.round(target / steps), -level, level)
    tried = np.stack([np.sign(near) * np.maximum(np.abs(near) - less, 0) for less in (0, 1, 2, 2 * level)])
    cost = (target - tried * steps) ** 2
    if coding.models:
        where = part.in_context(coding)
        cost = cost + price * coding.bits[where, (tried.astype(np.int64) - part.low) >> part.shift]
    codes = np.take_along_axis(tried, cost.argmin(0)[None], 0)[0]
    mask = getattr(grid, "mask", None)
    whole = torch.zeros(grid.codes.shape, dtype=grid.codes.dtype)
    written = torch.from_numpy(codes).to(grid.codes.dtype)
    if mask is None:
        return written.reshape(whole.shape)
    whole[mask] = written
    return whole
