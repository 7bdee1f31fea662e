"""What each choice costs under every budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from qubo_compress.factored import left_dense
from qubo_compress.menu.groups import Group, Member, state_entries
from qubo_compress.menu.operator import Packed, Unreliable
from qubo_compress.menu.stages import Staged, stage_positions, staged
from qubo_compress.problem import IntArray
from qubo_compress.sensitivity.replay import CallTrace
from qubo_compress.sensitivity.task import MeasureTask

DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose every weight multiplies once per output position."""

ACTIVATION_BITS = 32
"""Activations stay in float32: only weights are compressed."""


def price_choices(task: MeasureTask, advance: Callable[[float], None] = lambda _: None) -> dict[str, IntArray]:
    """Budget name -> (V,) cost: stored bytes, multiplications, bit operations, memory cells.

    Every choice is stored here for the first time; ``advance`` is called once per group. The multiplications of
    low-rank choices are those of ``plan.apply(model, factored=True)``.
    """
    names = ("bytes", "macs", "bit_operations", "cells")
    rows: dict[str, list[int]] = {name: [] for name in names}
    for number, group in enumerate(task.layout.groups):
        positions = multiplications_per_value(task.base, group, task.trace)
        calls = None
        advance(1)
        for packed in task.packed(number):
            form = staged(packed)
            if form is not None:
                calls = calls or layer_calls(task.base, group, task.trace)
                macs = factored_multiplications(form, packed, calls)
            elif len(set(positions)) == 1:
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
    """How often each weight of each member multiplies per example."""
    if trace is None or group.kind != "weight":
        return (0,) * len(group.members)
    return tuple(sum(call.positions for call in calls) for calls in layer_calls(model, group, trace))


@dataclass(frozen=True)
class LayerCall:
    """One call of a function that multiplies with a weight.

    Attributes:
        module: the innermost module that was running.
        positions: how often each value multiplies per example: output positions, of transposed convolutions input
            positions, of recurrent layers steps.
        inputs: sizes of its inputs along the spatial axes.
        outputs: sizes of its outputs along them.
    """

    module: nn.Module
    positions: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def layer_calls(model: nn.Module, group: Group, trace: CallTrace | None) -> list[list[LayerCall]]:
    """For every member of a group, the calls that it is used in; embeddings do not multiply."""
    if trace is None or group.kind != "weight":
        return [[] for _ in group.members]
    entries = state_entries(model)[0]
    found = []
    for member in group.members:
        seen = trace.weights.get(member.name)
        if seen:
            found.append([LayerCall(m, call.multiplies // trace.examples, *call.sizes) for m, call in seen])
        else:
            found.append(_calls_of_owners(entries[member.name].owners, member, trace))
    return found


def _calls_of_owners(owners: list[tuple[nn.Module, str]], member: Member, trace: CallTrace) -> list[LayerCall]:
    """Calls of the modules that own a weight which no known function was given itself: masked ones, for example."""
    known = {id(module) for module, _ in owners if isinstance(module, DENSE)}
    axes = slice(2 - len(member.shape), None) if len(member.shape) > 2 else slice(0, 0)
    return [
        LayerCall(module, values // member.shape[0], given[axes], made[axes])
        for module, values, (given, made) in zip(trace.modules, trace.positions, trace.shapes, strict=True)
        if id(module) in known
    ]


def factored_multiplications(form: Staged, packed: Packed, calls: list[list[LayerCall]]) -> int:
    """Multiplications per example of layers that compute in their factors; of whole weights where they cannot."""
    total = 0
    for number, made in enumerate(calls):
        stages = form.stages(number)
        counts = [int(torch.count_nonzero(stage.weight)) for stage in stages]
        for call in made:
            if left_dense(call.module) is not None:
                total += int(torch.count_nonzero(packed.tensors()[number])) * call.positions
                continue
            positions = stage_positions(stages, call.positions, call.inputs, call.outputs)
            total += sum(count * times for count, times in zip(counts, positions, strict=True))
    return total
