"""What each choice costs under every budget."""

from __future__ import annotations

import numpy as np
from torch import nn

from qubo_compress.menu.groups import Group, state_entries
from qubo_compress.problem import IntArray
from qubo_compress.sensitivity.replay import CallTrace
from qubo_compress.sensitivity.task import MeasureTask

ACTIVATION_BITS = 32
"""Activations stay in float32: only weights are compressed."""


def price_choices(task: MeasureTask) -> dict[str, IntArray]:
    """Budget name -> (V,) cost: stored bytes, multiplications, bit operations, one-bit cells."""
    names = ("bytes", "macs", "bit_operations", "cells")
    rows: dict[str, list[int]] = {name: [] for name in names}
    for number, group in enumerate(task.layout.groups):
        positions = multiplications_per_value(task.base, group, task.trace)
        for packed in task.packed(number):
            macs = packed.nonzeros * positions
            values = (packed.nbytes, macs, macs * packed.weight_bits * ACTIVATION_BITS, 8 * packed.nbytes)
            for name, value in zip(names, values, strict=True):
                rows[name].append(value)
    return {name: np.array(values, dtype=np.int64) for name, values in rows.items()}


def multiplications_per_value(model: nn.Module, group: Group, trace: CallTrace | None) -> int:
    """How often each weight of a group multiplies per example: the output positions of its modules."""
    if trace is None or group.kind != "weight":
        return 0
    entries = state_entries(model)[0]
    owners = {id(m) for m, _ in entries[group.members[0].name].owners if not isinstance(m, nn.Embedding)}
    rows = group.members[0].shape[0]
    calls = zip(trace.modules, trace.positions, strict=True)
    return sum(values // rows for module, values in calls if id(module) in owners)
