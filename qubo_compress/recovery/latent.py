"""Real-valued numbers behind the stored ones, trained with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from qubo_compress.menu.fold import attribute
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Group, Member
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.plan import Compression
from qubo_compress.recovery.trellis_steps import TrellisSteps, has_trained_steps

STATISTICS = ("running_mean", "running_var")


class Latent:
    """The trainable numbers behind the codes: the members' values, or their parameters.

    A group whose stored form has parameters trains its factors or coefficients, and codes of a trellis their steps.

    Args:
        compression: carried by the compressed module.
        held: the tensors of the compressed module.
        frozen: names of the groups that stay as they are stored.
    """

    def __init__(self, compression: Compression, held: NetworkTensors, frozen: Collection[str] = frozenset()) -> None:
        self._compression, self._held, self._frozen = compression, held, frozen
        #: Group name -> stored form that values are projected with; a mask that moves is moved here.
        self.stored: dict[str, Stored] = dict(compression.stored)
        self._values: dict[str, list[Tensor]] = {}
        self._steps: dict[str, TrellisSteps] = {}
        for group in compression.layout.groups:
            packed = self.stored[group.name]
            numbers = packed.parameters()
            if group.name in frozen:
                self._values[group.name] = [value.to(held.device) for value in packed.tensors()]
                continue
            if has_trained_steps(packed):
                self._steps[group.name] = TrellisSteps(packed, held.device)
                self._values[group.name] = self._steps[group.name].factors
                continue
            if numbers:
                self._values[group.name] = [n.to(held.device, torch.float32).clone().requires_grad_() for n in numbers]
                continue
            # Clones: some stored forms return their own tensors. Statistics are not trained.
            self._values[group.name] = [
                value.to(held.device, torch.float32).clone().requires_grad_(attribute(member.name) not in STATISTICS)
                if value.is_floating_point()
                else value.to(held.device)
                for member, value in zip(group.members, packed.tensors(), strict=True)
            ]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The names of the groups that are trained."""
        return self._compression.layout.groups

    def leaves(self) -> list[Tensor]:
        """All tensors that the optimizer may move."""
        return [v for values in self._values.values() for v in values if v.requires_grad]

    def values(self, group: str) -> list[Tensor]:
        """The real-valued numbers of a group: its members' values, its parameters, or the factors of its steps."""
        return self._values[group]

    def packed(self) -> dict[str, Stored]:
        """Group name -> the stored form of the present values, in the bytes of the plan."""
        return self._present() | {name: steps.packed() for name, steps in self._steps.items()}

    def _present(self) -> dict[str, Stored]:
        """The same, but with the first form of groups whose steps are trained: counting bytes takes time."""
        return {
            name: self.stored[name]
            if name in self._frozen or name in self._steps
            else self.stored[name].store([value.detach().cpu() for value in values], refit=True)
            for name, values in self._values.items()
        }

    def tensors(self, disturb: Callable[[Group, Stored], tuple[Tensor, ...] | None] | None = None) -> dict[str, Tensor]:
        """First name -> whole tensor that has the stored value and passes its gradient to the latent numbers.

        Args:
            disturb: (group, stored) -> random errors to add to the members' values, or None for none.
        """
        packed = self._present()
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
        if group.name in self._frozen:
            return [value.to(member.dtype) for member, value in zip(group.members, latent, strict=True)]
        if group.name in self._steps:
            found = self._steps[group.name].passed()
            return [value.to(member.dtype) for member, value in zip(group.members, found, strict=True)]
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
