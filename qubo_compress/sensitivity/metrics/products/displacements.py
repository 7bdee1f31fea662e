"""Displacements of all choices, parameter by parameter, in the layout of the layers' gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.storage.many import Rows
from qubo_compress.network.groups import Member, outputs_first
from qubo_compress.network.rounding import InputRange
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.sensitivity.costs import siblings
from qubo_compress.sensitivity.subject import Subject, apart

KEPT_BYTES = 600_000_000
"""Displacements up to this many bytes stay in memory; those of other layers are rebuilt in every pass."""


@dataclass(frozen=True, eq=False)
class Block:
    """The choices of one group that change one parameter.

    Attributes:
        choices: (K,) their numbers among all choices.
        member: the part of the parameter that they change.
        values: (K, *shape) float32: the whole parameter in the network's layout, or the member's rows, outputs first.
        rounds: whether these choices round the layer's inputs otherwise than the network at present.
        range: to which they round them, then; None: they do not.
    """

    choices: IntArray
    member: Member
    values: Tensor
    rounds: bool = False
    range: InputRange | None = None

    @property
    def whole(self) -> bool:
        """Whether the choices change the whole parameter."""
        return self.member.rows is None

    def products(self, gradients: Tensor) -> Tensor:
        """(K, n) inner products with (n, *parameter shape) gradients."""
        parts = gradients if self.whole else self.member.part(gradients, leading=1)
        return self.values.flatten(1) @ parts.reshape(gradients.shape[0], -1).T


@dataclass(frozen=True, eq=False)
class RowBlock:
    """The choices of many groups that are one row each of one parameter, such as the filters of a layer.

    One matrix product serves them all: thousands of small ones would take longer than the gradients.

    Attributes:
        choices: (R * K,) their numbers among all choices, group by group.
        inputs_first: see :class:`~qubo_compress.network.groups.Member`.
        rows: (R,) the rows, or None for all in order.
        values: (R, K, D) float32.
    """

    choices: IntArray
    inputs_first: int
    rows: Tensor | None
    values: Tensor

    whole: ClassVar[bool] = False
    rounds: ClassVar[bool] = False
    range: ClassVar[InputRange | None] = None

    def products(self, gradients: Tensor) -> Tensor:
        """(R * K, n) inner products with (n, *parameter shape) gradients."""
        rows = outputs_first(gradients, self.inputs_first, leading=1).flatten(2)
        if self.rows is not None:
            rows = rows[:, self.rows]
        return (self.values @ rows.permute(1, 2, 0)).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class ColumnBlock:
    """Choices that set all weights at some indices along one axis to zero, such as those that read a channel.

    Attributes:
        choices: (K,) their numbers among all choices.
        axis: of the parameter.
        indices: (I,) indices along the axis that some choice sets to zero.
        owners: (I,) position among the choices of the one that does.
        values: the whole parameter, in float32.
    """

    choices: IntArray
    axis: int
    indices: Tensor
    owners: Tensor
    values: Tensor

    whole: ClassVar[bool] = False
    rounds: ClassVar[bool] = False

    def products(self, gradients: Tensor) -> Tensor:
        """(K, n) inner products with (n, *parameter shape) gradients."""
        read = (gradients * self.values).movedim(self.axis + 1, 1).flatten(2).sum(2)
        found = read.new_zeros(len(self.choices), len(read))
        return found.index_add_(0, self.owners, read[:, self.indices].T, alpha=-1)


class Displacements:
    """The displacement of every parameter by every choice, without choices that change nothing, and without twins.

    A twin is another choice of its group, only coded: it has the other's rows, see :meth:`with_twins`.

    Args:
        subject: the measurement.
        changeable: parameters whose gradients are available; a choice that changes any other one is refused.
    """

    def __init__(self, subject: Subject, changeable: frozenset[str]) -> None:
        self._subject, self._changeable = subject, changeable
        self._owners: dict[str, list[int]] = {}
        for number, group in enumerate(subject.layout.groups):
            for name in dict.fromkeys(member.name for member in group.members):
                self._owners.setdefault(name, []).append(number)
        self._kept: dict[str, tuple[Block | RowBlock, ...]] = {}
        self._kept_bytes = 0
        # A layer's blocks are requested several times in a row.
        self._latest: tuple[str, tuple[Block | RowBlock, ...]] = ("", ())
        pairs = [
            (first + number, first + other)
            for group, first in enumerate(subject.offsets[:-1].tolist())
            for number, other in subject.choices.twins(group).items()
        ]
        self._twins = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)

    def of(self, name: str) -> tuple[Block | RowBlock, ...]:
        """The blocks of a parameter, on the network's device."""
        if name in self._kept:
            return self._kept[name]
        if name == self._latest[0]:
            return self._latest[1]
        owners = self._owners.get(name, [])
        made: tuple[Block | RowBlock, ...]
        if len(owners) > 1 and all(siblings(self._subject, owners[0], number) for number in owners):
            made = self._rows(owners, name)
        else:
            made = tuple(block for group in owners for block in self._blocks(group, name))
        size = sum(block.values.numel() * block.values.element_size() for block in made)
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[name] = made
            self._kept_bytes += size
        else:
            self._latest = name, made
        return made

    def with_twins(self, rows: Tensor) -> Tensor:
        """(V, ...) rows of all choices, including the twins."""
        rows[self._twins[:, 0]] = rows[self._twins[:, 1]]
        return rows

    def _blocks(self, number: int, name: str) -> list[Block]:
        subject = self._subject
        group, start = subject.layout.groups[number], int(subject.offsets[number])
        twins = subject.choices.twins(number)
        left = [k for k in range(len(subject.choices[number])) if k not in twins]
        rows = dict(zip(left, subject.displacements(number, without=twins), strict=True))
        every, found = subject.choices.ranges(number), []
        for position, member in enumerate(group.members):
            if member.name != name or not member.dtype.is_floating_point:
                continue
            present = subject.tensors.range_of(name)
            # Choices that round the inputs alike share a block; the network's own rounding changes nothing.
            ranges = {k: every[k][position] if every[k] else present for k in rows}
            changing = [k for k, row in rows.items() if ranges[k] != present or bool(row[position].any())]
            for wanted in dict.fromkeys(ranges[k] for k in changing):
                alike = [k for k in changing if ranges[k] == wanted]
                self._refuse_unchangeable(name, list(subject.choices[number])[alike[0]])
                values = [rows[k][position].float() for k in alike]
                held = values if member.rows is not None else [member.in_network_order(value) for value in values]
                stacked = torch.stack(held).to(subject.device)
                numbers = start + np.array(alike, dtype=np.int64)
                found.append(Block(numbers, member, stacked, wanted != present, wanted))
        return found

    def _rows(self, numbers: list[int], name: str) -> tuple[RowBlock, ...]:
        """All groups of a parameter in one block; they are rows of the same layer."""
        subject = self._subject
        members = [subject.layout.groups[number].members[0] for number in numbers]
        if not members[0].dtype.is_floating_point:
            return ()
        stored = Rows(torch.cat([subject.choices.part(member).reshape(1, -1) for member in members]))
        before = torch.cat([subject.references(number)[0].reshape(1, -1) for number in numbers])
        found, changing = [], []
        twins = subject.choices.twins(numbers[0])
        for position, (choice, operator) in enumerate(subject.choices[numbers[0]].items()):
            if position in twins:
                continue
            change = apart(stored.stored(operator), before).float()
            if bool(change.any()):
                self._refuse_unchangeable(name, choice)
                found.append(change)
                changing.append(position)
        if not found:
            return ()
        starts = subject.offsets[numbers][:, None]
        owned = [member.rows[0] for member in members if member.rows is not None]
        rows = None if owned == list(range(members[0].shape[0])) else torch.tensor(owned, device=subject.device)
        values = torch.stack(found, dim=1).to(subject.device)
        return (RowBlock((starts + np.array(changing)).reshape(-1), members[0].inputs_first, rows, values),)

    def _refuse_unchangeable(self, name: str, choice: str) -> None:
        if name not in self._changeable:
            raise InvalidMenu(
                f"{choice} changes {name}, whose effect on the outputs is not linear; "
                "take it off the menu, or measure with metric='gauss-newton'"
            )
