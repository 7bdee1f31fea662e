"""Displacements of all choices, parameter by parameter, as a layer's gradients meet them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.groups import Member
from qubo_compress.problem import IntArray
from qubo_compress.sensitivity.task import MeasureTask

KEPT_BYTES = 600_000_000
"""Displacements up to this many bytes stay in memory; beyond, those of a layer are made again for every slice."""


@dataclass(frozen=True, eq=False)
class Block:
    """The choices of one group that change one parameter.

    Attributes:
        choices: (K,) their numbers among all choices.
        member: what they change of it.
        values: (K, *shape) float32: the whole parameter as the network holds it, or the member's rows, outputs first.
    """

    choices: IntArray
    member: Member
    values: Tensor

    @property
    def whole(self) -> bool:
        """Whether the choices change the whole parameter."""
        return self.member.rows is None

    def products(self, gradients: Tensor) -> Tensor:
        """(K, n) inner products with (n, *parameter shape) gradients."""
        parts = gradients if self.whole else self.member.part(gradients, leading=1)
        return self.values.flatten(1) @ parts.reshape(gradients.shape[0], -1).T


class Displacements:
    """What every choice adds to every parameter; choices that change nothing are left out.

    Args:
        task: the measurement.
        changeable: parameters whose gradients can be had; a choice that changes anything else is refused.
    """

    def __init__(self, task: MeasureTask, changeable: frozenset[str]) -> None:
        self._task, self._changeable = task, changeable
        self._owners: dict[str, list[int]] = {}
        total = 0
        for number, group in enumerate(task.layout.groups):
            total += 4 * group.numel * (len(task.choices[number]) - 1)
            for name in dict.fromkeys(member.name for member in group.members):
                self._owners.setdefault(name, []).append(number)
        self._keeps = total <= KEPT_BYTES
        self._kept: dict[str, tuple[Block, ...]] = {}

    def of(self, name: str) -> tuple[Block, ...]:
        """The blocks of a parameter, on the network's device."""
        if name in self._kept:
            return self._kept[name]
        made = tuple(block for group in self._owners.get(name, ()) for block in self._blocks(group, name))
        if self._keeps:
            self._kept[name] = made
        return made

    def _blocks(self, number: int, name: str) -> list[Block]:
        task = self._task
        group, start = task.layout.groups[number], int(task.offsets[number])
        rows = task.displacements(number)
        found = []
        for position, member in enumerate(group.members):
            if member.name != name or not member.dtype.is_floating_point:
                continue
            changing = [k for k, row in enumerate(rows) if bool(row[position].any())]
            if not changing:
                continue
            if name not in self._changeable:
                choice = list(task.choices[number])[changing[0]]
                raise InvalidMenu(
                    f"{choice} changes {name}, whose effect on the outputs is not linear; "
                    "take it off the menu, or measure with metric='gauss-newton'"
                )
            values = [rows[k][position].float() for k in changing]
            held = values if member.rows is not None else [member.in_network_order(value) for value in values]
            found.append(Block(start + np.array(changing, dtype=np.int64), member, torch.stack(held).to(task.device)))
        return found
