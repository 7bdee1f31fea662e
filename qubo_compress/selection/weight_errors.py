"""The plan with the least squared error of the weights, which no examples have a part in.

One step for all weights is the simple way that is hardest to beat: where many steps are on the menu, it has about the
least squared error of all plans of its bytes. Examples may be too few to tell the layers apart, as 32 images of a
network with depthwise convolutions: the plan with the least squared error is then as good as the table's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from qubo_compress.menu.operator import stored_as
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.sensitivity.table import SensitivityTable


def weight_errors(model: nn.Module, table: SensitivityTable) -> FloatArray:
    """(V,) squared error of every choice of a group of weights; NaN for choices of normalisations and biases.

    Args:
        model: the uncompressed network.
        table: of that network; choices made from its data are read from the table.
    """
    tensors = NetworkTensors(model)
    errors = np.full(table.linear.size, np.nan)
    with torch.no_grad():
        for number, group in enumerate(table.layout.groups):
            if group.kind != "weight":
                continue
            parts, first = tensors.parts(group), int(table.offsets[number])
            for v, choice in enumerate(table.choices[number], first):
                fit = None if table.fits is None else table.fits.of(v)
                stored = stored_as(choice, group, parts, table.payloads.get((group.name, choice)), fit)
                errors[v] = sum(_apart(one, other) for one, other in zip(stored.tensors(), parts, strict=True))
    return errors


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.cpu().double() - other.cpu().double()).square().sum())


def of_least_weight_errors(problem: ChoiceProblem, errors: FloatArray, usual: IntArray) -> ChoiceProblem:
    """The problem whose optimum has the least squared error of the weights.

    Normalisations and biases keep their linear terms. Squared errors are scaled so that those of a usual plan sum to
    its linear terms.

    Args:
        problem: whose costs and budgets stay.
        errors: (V,) of the problem's choices, NaN where the linear terms stay.
        usual: (G,) assignment of that plan.

    Example:
        >>> problem = ChoiceProblem([0.0, 4.0, 0.0, 1.0], [0, 2, 4], costs=[[8, 1, 8, 1]], limits=[9])
        >>> of_least_weight_errors(problem, np.array([0.0, 0.5, np.nan, np.nan]), np.array([1, 0])).linear.tolist()
        [0.0, 4.0, 0.0, 1.0]
    """
    chosen = problem.group_offsets[:-1] + usual
    weighed = chosen[~np.isnan(errors[chosen])]
    total, harm = float(errors[weighed].sum()), float(problem.linear[weighed].sum())
    scale = harm / total if harm > 0 and total > 0 else 1.0
    linear = np.where(np.isnan(errors), problem.linear, scale * np.nan_to_num(errors))
    return replace(problem, linear=linear, factor=None, pairs=None)
