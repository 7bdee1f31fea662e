"""The base of operators that choose codes by the layer's output error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from qubo_compress.calibration.statistics.input_moments import InputMoments
from qubo_compress.calibration.statistics.statistic import Statistic
from qubo_compress.menu.operator import Operator, needs_data
from qubo_compress.network.groups import Group


class Compensating(Operator):
    """Base of operators that compensate errors by the other weights of the same output."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (InputMoments(),)

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Accept only weights of convolutions and linear layers."""
        if group.kind != "weight":
            return f"{group.kind} vectors have no inputs to compensate with"
        if group.module_type == "Embedding":
            return "an embedding picks rows, so its inputs have no moments to compensate with"
        return None

    def encode(self, group: Group, parts: Sequence[Tensor]) -> Any:
        raise needs_data(self)
