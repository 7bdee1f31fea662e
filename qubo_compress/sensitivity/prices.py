"""What each choice costs under every budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from qubo_compress.menu.groups import Group, state_entries
from qubo_compress.menu.operator import Unreliable
from qubo_compress.problem import IntArray
from qubo_compress.sensitivity.replay import CallTrace
from qubo_compress.sensitivity.task import MeasureTask

ACTIVATION_BITS = 32
"""Activations stay in float32: only weights are compressed."""


def price_choices(task: MeasureTask, advance: Callable[[float], None] = lambda _: None) -> dict[str, IntArray]:
    """Budget name -> (V,) cost: stored bytes, multiplications, bit operations, memory cells.

    Every choice is stored here for the first time; ``advance`` is called once per group.
    """
    names = ("bytes", "macs", "bit_operations", "cells")
    rows: dict[str, list[int]] = {name: [] for name in names}
    for number, group in enumerate(task.layout.groups):
        positions = multiplications_per_value(task.base, group, task.trace)
        advance(1)
        for packed in task.packed(number):
            if len(set(positions)) == 1:
                macs = packed.nonzeros * positions[0]
            else:
                counts = [int(torch.count_nonzero(values)) for values in packed.tensors()]
                macs = sum(count * times for count, times in zip(counts, positions, strict=True))
            cells = packed.cells if isinstance(packed, Unreliable) else 8 * packed.nbytes
            values = (packed.nbytes, macs, macs * packed.weight_bits * ACTIVATION_BITS, cells)
            for name, value in zip(names, values, strict=True):
                rows[name].append(value)
    return {name: np.array(values, dtype=np.int64) for name, values in rows.items()}


def multiplications_per_value(model: nn.Module, group: Group, trace: CallTrace | None) -> tuple[int, ...]:
    """How often each weight of each member multiplies per example: the output positions of its modules."""
    if trace is None or group.kind != "weight":
        return (0,) * len(group.members)
    entries = state_entries(model)[0]
    found = []
    for member in group.members:
        owners = {id(module) for module, _ in entries[member.name].owners if not isinstance(module, nn.Embedding)}
        calls = zip(trace.modules, trace.positions, strict=True)
        found.append(sum(values // member.shape[0] for module, values in calls if id(module) in owners))
    return tuple(found)
