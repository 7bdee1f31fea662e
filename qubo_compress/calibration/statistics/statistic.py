"""The interface of statistics, and the calibration that they are gathered from.

An operator that looks at data names the statistics that it needs; every group's are gathered once for all
its choices and dropped when these are stored. Beside one group's, only what a run gathers ahead is in memory.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import Examples
from qubo_compress.network.groups import Group
from qubo_compress.network.inputs import Inputs
from qubo_compress.network.losses.loss import Loss
from qubo_compress.network.tensors import NetworkTensors


@dataclass(eq=False)
class Calibration:
    """The uncompressed network and its calibration examples.

    Attributes:
        model: in eval mode while statistics are gathered; nothing in it may be changed.
        examples: on the model's device.
        loss: of the measurement.
        run: inputs -> (M, C) float32 output rows; gradients flow where they are enabled.
        seed: of everything drawn.
        unseen: parameters whose inputs are not observed, as those of an LSTM.
        ahead: statistic -> parameter -> what a run gathered on its way, until it is asked for.
    """

    model: nn.Module
    examples: Examples
    loss: Loss
    run: Callable[[Inputs], Tensor]
    seed: int
    unseen: frozenset[str] = frozenset()
    ahead: dict[str, dict[str, Any]] = field(default_factory=dict)
    _last: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)

    @functools.cached_property
    def tensors(self) -> NetworkTensors:
        """What the model holds."""
        return NetworkTensors(self.model)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.tensors.device

    def remembered(self, name: str, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The last value computed under a name, while the key stays: filters of one layer share its statistics."""
        if name not in self._last or self._last[name][0] != key:
            self._last.pop(name, None)  # freed before the next one is made
            self._last[name] = (key, compute())
        return self._last[name][1]


class Statistic(ABC):
    """A frozen dataclass of settings: equal settings are gathered once."""

    statistic_name: ClassVar[str]

    watches_inputs: ClassVar[bool] = False
    """Whether it looks at the function calls that a weight is given to; see :mod:`qubo_compress.network.calls`."""

    @abstractmethod
    def collect(self, calibration: Calibration, group: Group) -> tuple[Any, ...]:
        """One value for every member of the group, for the rows that the group owns."""

    @abstractmethod
    def imagined(self, group: Group, parts: Sequence[Tensor], generator: torch.Generator) -> tuple[Any, ...]:
        """Values as real data could give them for made-up weights, for conformance tests."""
