"""How far a compressed network's outputs are from the original's if they are numbers, not classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from qubo_compress.calibration.examples import Examples
from qubo_compress.errors import InvalidBatches
from qubo_compress.network.losses.classification import CallableLoss, Loss, SquaredError
from qubo_compress.network.losses.regression import value_rows


@dataclass(frozen=True)
class LargestChange:
    """One of the outputs that moved farthest.

    Attributes:
        row: number of the output row.
        column: of the output.
        before, after: the outputs of the two networks.
        target: the true value, or None.
    """

    row: int
    column: int
    before: float
    after: float
    target: float | None


@dataclass(frozen=True)
class RegressionChange:
    """Changes of all outputs between two networks, weighted like the examples.

    Attributes:
        mean_change: mean absolute change.
        root_mean_square_change: root of the mean squared change.
        spread: standard deviation of the original's outputs, for comparison.
        error_before, error_after: mean squared error from the targets; None without targets.
        explained_before, explained_after: R^2, share of the targets' variance explained; None without varying targets.
        largest: the outputs that moved most.
    """

    mean_change: float
    root_mean_square_change: float
    spread: float
    error_before: float | None
    error_after: float | None
    explained_before: float | None
    explained_after: float | None
    largest: tuple[LargestChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, ready for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(what, before, after, change) of every measure, as text."""
        relative = self.root_mean_square_change / self.spread if self.spread > 0 else math.nan
        found = [
            ("mean absolute change of an output", "", f"{self.mean_change:.4g}", ""),
            (
                "root mean square change", "", f"{self.root_mean_square_change:.4g}",
                "" if math.isnan(relative) else f"{100 * relative:.2f} % of the outputs' spread",
            ),
        ]  # fmt: skip
        pairs = (
            ("mean squared error", self.error_before, self.error_after),
            ("variance explained (R²)", self.explained_before, self.explained_after),
        )
        for name, before, after in pairs:
            if before is not None and after is not None:
                found.append((name, f"{before:.4g}", f"{after:.4g}", f"{after - before:+.4g}"))
        return found


def is_regression(loss: Loss, columns: int) -> bool:
    """Whether this loss treats outputs as numbers, which are neither right nor wrong."""
    return isinstance(loss, SquaredError) or (isinstance(loss, CallableLoss) and columns == 1)


def regression_change(
    examples: Examples, before: Sequence[Tensor], after: Sequence[Tensor], most: int
) -> RegressionChange:
    """Compare output rows of two networks on the same examples.

    Args:
        examples: with or without targets.
        before: (M, C) output rows of the original, slice by slice.
        after: (M, C) output rows of the compressed network.
        most: how many of the largest changes to list.

    Raises:
        InvalidBatches: when the targets do not fit the outputs.
    """
    first = torch.cat([rows.double().cpu() for rows in before])
    second = torch.cat([rows.double().cpu() for rows in after])
    if first.shape != second.shape:
        raise InvalidBatches(f"the networks' outputs differ in shape: {tuple(first.shape)}, {tuple(second.shape)}")
    pairs = zip(examples.slices, before, strict=True)
    weights = torch.cat([examples.row_weights(part, rows.shape[0]).cpu() for part, rows in pairs])
    weights = (weights / (weights.sum() * first.shape[1]))[:, None].expand_as(first)
    goal, counted = _goals(examples, before)
    change = second - first
    labelled = None if goal is None else weights * counted
    return RegressionChange(
        mean_change=float((weights * change.abs()).sum()),
        root_mean_square_change=float((weights * change.square()).sum().sqrt()),
        spread=float(_variance(first, weights).sqrt()),
        error_before=_error(first, goal, labelled),
        error_after=_error(second, goal, labelled),
        explained_before=_explained(first, goal, labelled),
        explained_after=_explained(second, goal, labelled),
        largest=_largest(first, second, goal, most),
    )


def _goals(examples: Examples, rows: Sequence[Tensor]) -> tuple[Tensor | None, Tensor]:
    found, known = [], []
    for part, outputs in zip(examples.slices, rows, strict=True):
        if part.targets is None or part.targets.numel() != outputs.numel():
            return None, torch.ones(())
        goal, counted = value_rows(part.targets.cpu(), outputs.cpu())
        found.append(goal.double())
        known.append(torch.ones_like(goal) if counted is None else counted.to(goal))
    return torch.cat(found), torch.cat(known).double()


def _variance(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted variance around each column's mean."""
    mean = (weights * values).sum(0) / weights.sum(0).clamp(min=1e-300)
    return (weights * (values - mean).square()).sum() / weights.sum().clamp(min=1e-300)


def _error(rows: Tensor, goal: Tensor | None, weights: Tensor | None) -> float | None:
    if goal is None or weights is None:
        return None
    return float((weights * (rows - goal).square()).sum() / weights.sum())


def _explained(rows: Tensor, goal: Tensor | None, weights: Tensor | None) -> float | None:
    error = _error(rows, goal, weights)
    if error is None or goal is None or weights is None:
        return None
    variance = float(_variance(goal, weights))
    return 1.0 - error / variance if variance > 0 else None


def _largest(before: Tensor, after: Tensor, goal: Tensor | None, most: int) -> tuple[LargestChange, ...]:
    change = (after - before).abs().reshape(-1)
    found = []
    for place in torch.argsort(change, descending=True, stable=True)[: max(0, most)].tolist():
        if change[place] == 0:
            break
        row, column = divmod(place, before.shape[1])
        target = None if goal is None else float(goal[row, column])
        found.append(LargestChange(row, column, float(before[row, column]), float(after[row, column]), target))
    return tuple(found)
