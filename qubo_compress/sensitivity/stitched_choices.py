"""The tensors of every choice of a table, put into a copy of its network together."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress.errors import InvalidAssignment
from qubo_compress.menu.operator import parse, stored_as
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group
from qubo_compress.network.rounding import InputRange
from qubo_compress.network.tensors import NetworkTensors

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 2_000_000_000
"""Bytes of compressed tensors that are kept in memory; choices beyond are made again whenever they are needed."""


class StitchedChoices:
    """The stored values of every choice, decoded once, and a network into which an assignment's are put.

    Args:
        held: the tensors of a private copy of the network that the table was measured for.
        table: its groups and open choices.
        memory_limit: bytes of compressed tensors kept; see :data:`MEMORY_LIMIT`.
    """

    def __init__(self, held: NetworkTensors, table: SensitivityTable, memory_limit: int = MEMORY_LIMIT) -> None:
        self.groups, self.payloads = table.layout.groups, table.payloads
        self.held = held
        allowed = np.split(table.allowed, table.offsets[1:-1])
        self.names = [
            [name for name, is_open in zip(names, open_ones, strict=True) if is_open]
            for names, open_ones in zip(table.choices, allowed, strict=True)
        ]
        self.fits, self.numbers = (
            table.fits,
            np.split(np.flatnonzero(table.allowed), np.cumsum([*map(len, self.names)])[:-1]),
        )
        self.kept: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        #: The groups that have choices with rounded inputs.
        self.rounding = [
            number for number, names in enumerate(self.names) if any(parse(name).activation_bits for name in names)
        ]
        self.known_ranges: dict[tuple[int, int], dict[str, InputRange | None]] = {}
        self.whole: dict[str, Tensor] = {}
        self.present: dict[int, int] = {}
        used = 0
        sizes = [
            sum(member.nbytes for member in group.members) * len(names)
            for group, names in zip(self.groups, self.names, strict=True)
        ]
        for number in np.argsort(sizes, kind="stable"):
            if used + sizes[number] > memory_limit:
                logger.info(
                    "the tensors of all choices take %d bytes and %d are allowed; some choices are made again each "
                    "time they are needed", sum(sizes), memory_limit,
                )  # fmt: skip
                break
            used += sizes[number]
            for choice in range(len(self.names[number])):
                self.kept[int(number), choice] = self._made(int(number), choice)

    def stitched(self, assignment: npt.ArrayLike) -> contextlib.AbstractContextManager[None]:
        """The model with the choices of an assignment in it."""
        checked = self._checked(assignment)
        with torch.no_grad():
            tensors = self._tensors(checked)
        for name, tensor in tensors.items():
            # A product takes another kernel for a weight that needs no gradient, which rounds otherwise.
            tensor.requires_grad_(self.held[name].requires_grad)
        ranges = {
            name: found for number in self.rounding for name, found in self._ranges(number, checked[number]).items()
        }
        return self.held.swapped(tensors, ranges)

    def _checked(self, assignment: npt.ArrayLike) -> list[int]:
        local = np.asarray(assignment)
        if local.shape != (len(self.groups),) or not np.issubdtype(local.dtype, np.integer):
            raise InvalidAssignment(
                f"an assignment has shape ({len(self.groups)},) and integer type; got {local.shape} {local.dtype}"
            )
        for group, names, index in zip(self.groups, self.names, local, strict=True):
            if not 0 <= index < len(names):
                raise InvalidAssignment(f"group {group.name!r} has {len(names)} open choices; got index {index}")
        return [int(index) for index in local]

    def _tensors(self, assignment: list[int]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for number, choice in enumerate(assignment):
            group = self.groups[number]
            values: tuple[Tensor, ...] | None = None
            for position, member in enumerate(group.members):
                if member.rows is not None and self.present.get(number) == choice:
                    tensors[member.name] = self.whole[member.name]
                    continue
                if values is None:
                    values = self._values(number, choice)
                tensors[member.name] = self._joined(group, position, values[position])
            self.present[number] = choice
        return tensors

    def _joined(self, group: Group, position: int, value: Tensor) -> Tensor:
        """A whole tensor; groups that own some of its rows share one, rewritten only where their choices changed."""
        member = group.members[position]
        if member.rows is None:
            return value
        if member.name not in self.whole:
            self.whole[member.name] = self.held[member.name].detach().clone()
        whole = self.whole[member.name]
        member.write(whole, value)
        return whole

    def _values(self, number: int, choice: int) -> tuple[Tensor, ...]:
        found = self.kept.get((number, choice))
        return self._made(number, choice) if found is None else found

    def _ranges(self, number: int, choice: int) -> dict[str, InputRange | None]:
        """Weight -> range to which one choice rounds the inputs of its layers, or None."""
        if (number, choice) not in self.known_ranges:
            group, name = self.groups[number], self.names[number][choice]
            rounds = parse(name).activation_bits is not None
            ranges = self._stored(number, choice).input_ranges if rounds else (None,) * len(group.members)
            self.known_ranges[number, choice] = dict(zip((m.name for m in group.members), ranges, strict=True))
        return self.known_ranges[number, choice]

    def _stored(self, number: int, choice: int) -> Stored:
        group, name = self.groups[number], self.names[number][choice]
        fit = None if self.fits is None else self.fits.of(int(self.numbers[number][choice]))
        return stored_as(name, group, self.held.parts(group), self.payloads.get((group.name, name)), fit)

    def _made(self, number: int, choice: int) -> tuple[Tensor, ...]:
        """The stored values of one choice, laid out in memory as the model's own tensors are."""
        group, stored = self.groups[number], self._stored(number, choice).tensors()
        made = []
        for member, value in zip(group.members, stored, strict=True):
            whole, tensor = member.rows is None, self.held[member.name].detach()
            home = torch.empty_like(tensor if whole else member.part(tensor))
            made.append(home.copy_(member.in_network_order(value) if whole else value))
        return tuple(made)
