"""Compares what another program computes with what a network computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qubo_compress.errors import ExportRefused
from qubo_compress.network.inputs import Inputs, map_tensors
from qubo_compress.network.replay import run_model

TOLERANCE = 1e-4
"""Largest difference of a file's outputs from the module's, as a share of the largest output."""

COARSE_TOLERANCE = 1e-2
"""The same for networks in float16, whose programs sum in various orders and widths."""


@dataclass(frozen=True)
class Difference:
    """How far a file's outputs are from a module's.

    Attributes:
        largest: difference, as a share of the largest output.
        agreement: share of equal answers: of the class with the largest output or, without classes, of outputs within
            the tolerance.
        examples: that were run.
    """

    largest: float
    agreement: float
    examples: int


def answers(model: nn.Module, batches: Sequence[Inputs]) -> list[list[Tensor]]:
    """The floating-point outputs of a module on every batch."""
    with torch.no_grad():
        return [floating(pytree.tree_leaves(run_model(model, inputs))) for inputs in batches]


ROUNDED_TOLERANCE = 5e-2
"""The same for networks that round activations: the last digit of a sum may decide between two levels."""


def allowed(wanted: Sequence[Sequence[Tensor]], rounds: bool = False) -> float:
    """The tolerance for outputs of these dtypes, of a network that rounds activations or none."""
    if rounds:
        return ROUNDED_TOLERANCE
    coarse = any(one.dtype in (torch.float16, torch.bfloat16) for outputs in wanted for one in outputs)
    return COARSE_TOLERANCE if coarse else TOLERANCE


def single(inputs: Inputs) -> Inputs:
    """The first example alone."""
    found: Inputs = map_tensors(inputs, lambda tensor: tensor[:1])
    return found


def compared(
    run: Callable[[Inputs], Sequence[Any]], batches: Sequence[Inputs], wanted: Sequence[Sequence[Tensor]]
) -> Difference:
    """The outputs of another program against those of the network.

    Args:
        run: that program, on the inputs of one batch.
        batches: inputs.
        wanted: the network's outputs on them, of :func:`answers`.

    Raises:
        ExportRefused: when the outputs have other shapes.
    """
    largest, scale, equal, total, examples = 0.0, 0.0, 0.0, 0, 0
    for inputs, want in zip(batches, wanted, strict=True):
        found = floating(run(inputs))
        if [one.shape for one in found] != [one.shape for one in want]:
            raise ExportRefused(
                f"what was exported gives outputs of the shapes {[tuple(one.shape) for one in found]}, the network "
                f"{[tuple(one.shape) for one in want]}: its forward depends on more than its inputs. "
                "Nothing was written"
            )
        for one, other in zip(found, want, strict=True):
            if other.numel():
                largest = max(largest, float((one.double() - other.double()).abs().nan_to_num(np.inf).max()))
                scale = max(scale, float(other.double().abs().max()))
        same = _same(found[0], want[0], scale)
        equal, total = equal + float(same.sum()), total + same.numel()
        examples += len(want[0])
    return Difference(largest / max(scale, 1e-30), equal / max(1, total), examples)


def _same(found: Tensor, want: Tensor, scale: float) -> Tensor:
    """Which answers are equal."""
    if want.ndim < 2 or want.shape[_class_axis(want)] == 1:
        return (found.double() - want.double()).abs() <= TOLERANCE * scale
    axis = _class_axis(want)
    return found.argmax(axis) == want.argmax(axis)


def _class_axis(want: Tensor) -> int:
    """The axis of classes: pictures have it second, texts last."""
    return 1 if want.ndim >= 4 else want.ndim - 1


def floating(values: Sequence[Any]) -> list[Tensor]:
    """The floating-point tensors among some values, on the CPU."""
    return [value.detach().cpu() for value in values if isinstance(value, Tensor) and value.is_floating_point()]
