"""Real-valued numbers behind the stored ones; gradients pass straight through the rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qubo_compress.menu.fold import attribute
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group, Member
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression

STATISTICS = ("running_mean", "running_var")


class Latent:
    """What is trained in place of codes: the members' values, or the numbers that they are made of.

    A group whose stored form has parameters trains its factors or coefficients.

    Args:
        compression: what the compressed module carries.
        held: what the compressed module holds.
    """

    def __init__(self, compression: Compression, held: NetworkTensors) -> None:
        self._compression, self._held = compression, held
        #: Group name -> stored form that values are projected with; a mask that moves is moved here.
        self.stored: dict[str, Stored] = dict(compression.stored)
        self._values: dict[str, list[Tensor]] = {}
        for group in compression.layout.groups:
            packed = self.stored[group.name]
            numbers = packed.parameters()
            if numbers:
                self._values[group.name] = [n.to(held.device, torch.float32).clone().requires_grad_() for n in numbers]
                continue
            # Clones: some stored forms hand out the very tensors that they hold. Statistics are not trained.
            self._values[group.name] = [
                value.to(held.device, torch.float32).clone().requires_grad_(attribute(member.name) not in STATISTICS)
                if value.is_floating_point()
                else value.to(held.device)
                for member, value in zip(group.members, packed.tensors(), strict=True)
            ]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that are trained."""
        return self._compression.layout.groups

    def leaves(self) -> list[Tensor]:
        """Everything that an optimizer may move."""
        return [v for values in self._values.values() for v in values if v.requires_grad]

    def values(self, group: str) -> list[Tensor]:
        """The real-valued numbers of a group: its members' values, or its parameters."""
        return self._values[group]

    def packed(self) -> dict[str, Stored]:
        """Group name -> what would be stored now."""
        return {
            name: self.stored[name].store([value.detach().cpu() for value in values], refit=True)
            for name, values in self._values.items()
        }

    def tensors(self, disturb: Callable[[Group, Stored], tuple[Tensor, ...] | None] | None = None) -> dict[str, Tensor]:
        """First name -> whole tensor whose value is what is stored and whose gradient reaches the latent numbers.

        Args:
            disturb: (group, stored) -> random errors to be added to the members' values, or None for none.
        """
        packed = self.packed()
        parts: list[tuple[Member, Tensor]] = []
        for group in self.groups:
            errors = None if disturb is None else disturb(group, packed[group.name])
            values = self._passed(group, packed[group.name])
            for number, (member, value) in enumerate(zip(group.members, values, strict=True)):
                if errors is not None:
                    value = value + errors[number].to(value.device, value.dtype)
                parts.append((member, value))
        return self._held.assembled(parts)

    def _passed(self, group: Group, stored: Stored) -> list[Tensor]:
        """The members' values with straight-through gradients."""
        latent = self._values[group.name]
        numbers = stored.parameters()
        if numbers:
            made = stored.assemble(
                [
                    old + (new.to(old.device, torch.float32) - old).detach()
                    for old, new in zip(latent, numbers, strict=True)
                ]
            )
            return [value.to(member.dtype) for member, value in zip(group.members, made, strict=True)]
        rows = []
        for member, old, value in zip(group.members, latent, stored.tensors(), strict=True):
            value = value.to(old.device)
            passed = old + (value.float() - old).detach() if old.requires_grad else value
            rows.append(passed.to(member.dtype))
        return rows
