"""The choice problem in which layers choose their bits and channels choose to stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.problem.pair_costs import without_negative
from qubo_compress.sensitivity.coupled.layer_prices import UNIT, LayerPrices

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable


def mixed_problem(
    table: SensitivityTable, prices: LayerPrices, limits: Mapping[str, int], around: IntArray, interactions: bool
) -> ChoiceProblem:
    """The problem expanded around a plan.

    A layer's rounding errors count in proportion to the weights that the plan leaves of it: half of a layer at three
    bits adds half of the noise.

    Args:
        table: with the layers' choices in front of the decisions.
        prices: of the layers.
        limits: by budget name.
        around: (G,) position of the plan's choice in each group.
        interactions: False: only linear terms.
    """
    offsets = table.offsets
    index = np.flatnonzero(table.allowed)
    group_of = np.repeat(np.arange(len(table.choices)), np.diff(offsets))
    names = [name for group in table.choices for name in group]
    scale = prices.weights_left(around)[group_of]
    factor = None
    if interactions and table.factor is not None:
        factor = np.asarray(table.factor * np.sqrt(scale)[:, None].astype(np.float32), dtype=np.float32)[index]
    found = {name: prices.expanded(name, table.choices, around) for name in limits}
    counts = np.bincount(group_of[index], minlength=len(table.choices))
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    costs, fixed = without_negative(
        np.stack([each.costs[index] for each in found.values()]),
        np.array([each.fixed for each in found.values()], dtype=np.int64),
        bounds,
    )
    return ChoiceProblem(
        linear=(table.linear * scale)[index],
        group_offsets=bounds,
        costs=costs,
        limits=np.array([UNIT * limit for limit in limits.values()], dtype=np.int64),
        fixed_costs=fixed,
        factor=factor,
        group_names=table.group_names,
        choice_names=tuple(names[i] for i in index),
        budget_names=tuple(f"{name} / {UNIT}" for name in limits),
        pair_costs=tuple(each.pairs[index][:, index] for each in found.values()),
        constant=table.constant,
    )
