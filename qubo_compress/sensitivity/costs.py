"""The cost of each choice under every budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qubo_compress.menu.low_rank.factored import left_dense
from qubo_compress.menu.low_rank.stages import stage_positions
from qubo_compress.menu.storage.many import Fits, Rows, prices_rows
from qubo_compress.menu.storage.stored import FLOAT_BITS, Stored
from qubo_compress.network.groups import Group, Member
from qubo_compress.network.replay import CallTrace
from qubo_compress.network.tensors import NetworkTensors, Place
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.sensitivity.ranks import Arrays
from qubo_compress.sensitivity.subject import Subject

DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules in which every weight multiplies once per output position."""


UNIT = "prices_3"
"""Name of the cached unit. The number increases whenever an operator changes its stored form."""

BUDGETS = ("bytes", "macs", "bit_operations", "cells")


@dataclass(frozen=True, eq=False)
class Prices:
    """The results of storing all choices.

    Attributes:
        costs: budget name -> (V,) cost.
        fits: the search results of encoding.
        unreliable: (V,) which choices are read back with errors.
    """

    costs: dict[str, IntArray]
    fits: Fits
    unreliable: npt.NDArray[np.bool_]


def price_choices(subject: Subject, advance: Callable[[float], None] = lambda _: None) -> Prices:
    """The cost of every choice: stored bytes, multiplications, bit operations, memory cells.

    Every choice is stored here for the first time, and the prices include the results of its encoding's search;
    nothing is stored if the prices come from the cache. ``advance`` is called once per group. The multiplications of
    low-rank choices are those of ``plan.apply(model, factored=True)``.

    With several ranks, each makes the choices of some groups from the data. All ranks then store every choice, because
    they need its values anyway, and take the prices of rank 0.
    """
    subject.choices.share_from_data(subject.cache)
    found = subject.cache.get(UNIT, lambda: _priced(subject, advance))
    arrays = subject.cache.ranks.first(lambda: found)
    for number in range(len(subject.layout.groups)):
        subject.choices.make_from_data(number, subject.cache)  # their bytes belong to the table
    return Prices(
        {name: arrays[name].astype(np.int64) for name in BUDGETS},
        Fits(arrays["fits"].astype(np.uint8), arrays["fit_ends"].astype(np.int64)),
        arrays["unreliable"],
    )


def _priced(subject: Subject, advance: Callable[[float], None]) -> Arrays:
    found: list[_Priced] = []
    for run in _runs(subject):
        for number in run:
            subject.choices.make_from_data(number, subject.cache)
        found.append(_rows_priced(subject, run) if len(run) > 1 else _group_priced(subject, run[0]))
        advance(len(run))
    costs = np.concatenate([np.zeros((0, len(BUDGETS)), dtype=np.int64), *(priced.costs for priced in found)])
    fits = Fits.joined([fit for priced in found for fit in priced.fits])
    return {
        **{name: costs[:, number] for number, name in enumerate(BUDGETS)},
        "fits": fits.data,
        "fit_ends": fits.ends,
        "unreliable": np.array([noisy for priced in found for noisy in priced.unreliable], dtype=bool),
    }


@dataclass(frozen=True)
class _Priced:
    """The results of storing some choices.

    Attributes:
        costs: (n, 4), in the order of ``BUDGETS``.
        fits: n entries of :class:`Fits`.
        unreliable: (n,) whether they are read back with errors.
    """

    costs: IntArray
    fits: list[bytes]
    unreliable: list[bool]


def _group_priced(subject: Subject, number: int) -> _Priced:
    costs, fits, unreliable = [], [], []
    calls = layer_calls(subject.tensors, subject.layout.groups[number], subject.trace)
    positions = [sum(call.positions for call in made) for made in calls]
    # Where channels leave, multiplications count that are done, and a weight that is zero is multiplied with, too.
    dense = subject.settings.about_channels
    sizes = [member.numel for member in subject.layout.groups[number].members]
    for packed, operator in zip(subject.choices.stored(number), subject.choices[number].values(), strict=True):
        if packed.stages(0):
            macs = factored_multiplications(packed, calls)
        elif dense:
            macs = sum(size * times for size, times in zip(sizes, positions, strict=True))
        elif len(set(positions)) == 1:
            macs = packed.nonzeros * positions[0]
        else:
            counts = [int(torch.count_nonzero(values)) for values in packed.tensors()]
            macs = sum(count * times for count, times in zip(counts, positions, strict=True))
        nbytes = packed.nbytes
        cells = packed.cells if packed.unreliable else 8 * nbytes  # counting bytes a second time would take as long
        costs.append((nbytes, macs, macs * packed.weight_bits * packed.activation_bits, cells))
        fits.append(operator.fit(packed))
        unreliable.append(packed.unreliable)
    return _Priced(np.array(costs, dtype=np.int64), fits, unreliable)


def _rows_priced(subject: Subject, run: Sequence[int]) -> _Priced:
    """Price the filters of one layer, group by group."""
    groups = [subject.layout.groups[number] for number in run]
    rows = Rows(torch.cat([subject.choices.part(group.members[0]).reshape(1, -1) for group in groups]))
    times = multiplications_per_value(subject.tensors, groups[0], subject.trace)[0]
    costs, fits = [], []
    for operator in subject.choices[run[0]].values():
        made = rows.priced(operator)
        macs = made.nonzeros * times
        costs.append(np.stack([made.nbytes, macs, macs * made.weight_bits * FLOAT_BITS, 8 * made.nbytes], axis=1))
        fits.append(made.fits)
    joined = [fit for group in zip(*fits, strict=True) for fit in group]
    return _Priced(np.stack(costs, axis=1).reshape(len(joined), len(BUDGETS)), joined, [False] * len(joined))


def _runs(subject: Subject) -> Iterator[list[int]]:
    """Group numbers in order; single rows of one tensor with the same choices form one run."""
    run: list[int] = []
    for number in range(len(subject.layout.groups)):
        if run and not siblings(subject, run[0], number):
            yield run
            run = []
        run.append(number)
    yield from [run] if run else []


def siblings(subject: Subject, first: int, second: int) -> bool:
    """Whether two groups are single rows of one tensor with the same choices, which :class:`Rows` stores together."""
    (one, *others), (two, *more) = (subject.layout.groups[number].members for number in (first, second))
    return (
        not others
        and not more
        and one.name == two.name
        and all(member.rows is not None and member.rows[1] == member.rows[0] + 1 for member in (one, two))
        and list(subject.choices[first]) == list(subject.choices[second])
        and all(prices_rows(operator) for operator in subject.choices[second].values())
    )


def multiplications_per_value(tensors: NetworkTensors, group: Group, trace: CallTrace | None) -> tuple[int, ...]:
    """How often each weight of each member multiplies per example."""
    if trace is None or group.kind != "weight":
        return (0,) * len(group.members)
    return tuple(sum(call.positions for call in calls) for calls in layer_calls(tensors, group, trace))


@dataclass(frozen=True)
class LayerCall:
    """One call of a function that multiplies with a weight.

    Attributes:
        module: the innermost module that was running.
        positions: how often each value multiplies per example: output positions; for transposed convolutions input
            positions, for recurrent layers steps.
        inputs: sizes of its inputs along the spatial axes.
        outputs: sizes of its outputs along them.
    """

    module: nn.Module
    positions: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def layer_calls(tensors: NetworkTensors, group: Group, trace: CallTrace | None) -> list[list[LayerCall]]:
    """For every member of a group, the calls that use it; embeddings do not multiply."""
    if trace is None or group.kind != "weight":
        return [[] for _ in group.members]
    found = []
    for member in group.members:
        seen = trace.weights.get(member.name)
        if seen:
            found.append([LayerCall(m, call.multiplies // trace.examples, *call.sizes) for m, call in seen])
        else:
            found.append(_calls_of_owners(tensors.owners(member.name), member, trace))
    return found


def _calls_of_owners(owners: list[Place], member: Member, trace: CallTrace) -> list[LayerCall]:
    """Calls of the modules that own a weight, if no known function received it directly: masked ones, for example."""
    known = {id(module) for module, _ in owners if isinstance(module, DENSE)}
    axes = slice(2 - len(member.shape), None) if len(member.shape) > 2 else slice(0, 0)
    return [
        LayerCall(module, values // member.shape[0], given[axes], made[axes])
        for module, values, (given, made) in zip(trace.modules, trace.positions, trace.shapes, strict=True)
        if id(module) in known
    ]


def factored_multiplications(stored: Stored, calls: Sequence[Sequence[LayerCall]]) -> int:
    """Multiplications per example of layers computed in their factors, or with whole weights if they cannot be."""
    total = 0
    for number, made in enumerate(calls):
        stages = stored.stages(number)
        counts = [int(torch.count_nonzero(stage.weight)) for stage in stages]
        for call in made:
            if left_dense(call.module) is not None:
                total += int(torch.count_nonzero(stored.tensors()[number])) * call.positions
                continue
            positions = stage_positions(stages, call.positions, call.inputs, call.outputs)
            total += sum(count * times for count, times in zip(counts, positions, strict=True))
    return total
