"""Steps of trellis-coded groups, trained while their codes stay.

Codes of a trellis depend on each other, and one step between them is far more than a step of training. Four ways to let
them follow trained values were tried on ResNet-20, at 24x, with 2,000 images and three epochs: the nearest codes; codes
of least error plus price of bits; codes of least output error around values that started from the stored ones, and from
the original's. Each lowered the objective on the examples that it learned from, and none on others: the divergence rose
from 0.070 to between 0.07 and 0.12, and from 0.11 to 0.40 on a GPT. Even weights that need not be stored got no further
than 0.065. The steps, and all that has no codes, are few numbers and learn no examples by heart.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qubo_compress.menu.coding.coded import CodedGroup
from qubo_compress.menu.coding.trellis.stored import TrellisTensors
from qubo_compress.menu.quantize import half_scale
from qubo_compress.menu.storage.stored import Stored


def has_trained_steps(stored: Stored) -> bool:
    """Whether these are codes of a trellis behind the entropy coder."""
    return isinstance(stored, CodedGroup) and isinstance(stored.inner, TrellisTensors)


class TrellisSteps:
    """A group whose steps are trained.

    Args:
        stored: the group; see :func:`has_trained_steps`.
        device: of what is trained.

    Attributes:
        factors: one trained number per member: its step, relative to the stored one.
    """

    def __init__(self, stored: Stored, device: torch.device) -> None:
        assert isinstance(stored, CodedGroup) and isinstance(stored.inner, TrellisTensors)  # noqa: S101
        self._stored, self._parts = stored, stored.inner.parts
        self._values = [part.value().to(device, torch.float32) for part in self._parts]
        self.factors = [torch.ones((), device=device, requires_grad=True) for _ in self._parts]

    def passed(self) -> list[Tensor]:
        """The members' values in float32, which pass their gradients to the factors."""
        pairs = zip(self._values, self._parts, self.factors, self._steps(), strict=True)
        return [
            value * (factor + (step.to(factor.device).float() / part.step.item() - factor).detach())
            for value, part, factor, step in pairs
        ]

    def packed(self) -> CodedGroup:
        """The same codes with the present steps; with the old ones, should these not fit into the bytes of the plan."""
        parts = tuple(replace(part, step=step) for part, step in zip(self._parts, self._steps(), strict=True))
        found = self._stored.holding(TrellisTensors(parts))
        return self._stored if found is None else found

    def _steps(self) -> list[Tensor]:
        """Steps as they are stored."""
        pairs = zip(self._parts, self.factors, strict=True)
        return [half_scale((part.step.float() * factor.detach().cpu()).reshape(())) for part, factor in pairs]
