"""The settings of a measurement, passed as one object."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qubo_compress._internal.checks import whole
from qubo_compress.calibration.weights import ExampleWeights, check_example_weights
from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.menu import Menu, refuse_other_than_a_menu
from qubo_compress.menu.operator import parse
from qubo_compress.network.discovery import GroupRule
from qubo_compress.network.losses.classification import AUTO, LossLike
from qubo_compress.network.scores import OutputLike, OutputReading
from qubo_compress.sensitivity.metric import Metric, make_metric
from qubo_compress.sensitivity.shrinkage import check_interactions, check_shrinkage, refuse_unshrinkable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

BRANCH = "branch"
"""The grouping whose decisions are to keep or to remove whole branches, such as the inside of a residual block."""

CHANNELS = re.compile(rf"channel(?::([1-9][0-9]{{0,3}}))?|{BRANCH}")
"""Groupings whose decisions are to keep or to remove coupled channels: one by one, in blocks, ``"channel:8"``, or whole
branches."""


def about_channels(groups: GroupRule) -> bool:
    """Whether a grouping is about keeping or removing coupled channels."""
    return isinstance(groups, str) and CHANNELS.fullmatch(groups) is not None


@dataclass(frozen=True, eq=False)
class Measurement:
    """The settings of a measurement: the keyword arguments of :func:`qubo_compress.measure`, which explains each.

    Example:
        >>> Measurement(seed=3, class_axis=1).reading.class_axis
        1
    """

    menu: Menu | None = None
    metric: str | Metric = "auto"
    loss: LossLike = AUTO
    groups: GroupRule = "layer"
    max_examples: int = 2048
    cache: str | Path | None = None
    seed: int = 0
    progress: bool = True
    max_rank: int | None = 1024
    shrinkage: float | str | None = None
    interactions: bool | float = True
    example_weights: ExampleWeights | None = None
    output: OutputLike = None
    class_axis: int | None = None
    seconds: float | None = None
    process_group: ProcessGroup | bool = True
    batch_size: int | None = None

    @property
    def offered(self) -> Menu:
        """The given menu, or the default one."""
        return self.menu or Menu()

    @property
    def asked(self) -> Metric:
        """The metric object, also if given by name; ``auto`` is a metric, too."""
        return make_metric(self.metric)

    @property
    def reading(self) -> OutputReading:
        """How outputs are read, before a network has run."""
        return OutputReading(self.output, self.class_axis)

    @property
    def first_order(self) -> bool:
        """Whether the linear terms include a share of the loss's slopes."""
        return self.shrinkage not in (None, 1)

    def checked(self) -> Measurement:
        """The same settings, checked to be in range.

        Raises:
            InvalidMenu, InvalidBatches, UnknownName: before the network is used.
        """
        refuse_other_than_a_menu(self.menu)
        check_shrinkage(self.shrinkage)
        check_interactions(self.interactions)
        refuse_unshrinkable(self.asked, self.shrinkage)
        self._refuse_unseen_inputs()
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InvalidMenu(f"seconds must be a positive number or None; got {self.seconds!r}")
        check_example_weights(self.example_weights)
        checked = replace(self, seed=whole("seed", self.seed))
        return checked.checked_for_channels() if self.about_channels else checked

    @property
    def about_channels(self) -> bool:
        """Whether the decisions are to keep or to remove coupled channels."""
        return about_channels(self.groups)

    @property
    def about_branches(self) -> bool:
        """Whether channels are only removed where all those of a branch are."""
        return self.groups == BRANCH

    @property
    def mixed(self) -> bool:
        """Whether layers have choices beside the decisions about channels."""
        return self.about_channels and self.offered.names != ("keep",)

    @property
    def channels_together(self) -> int | None:
        """How many coupled sets a decision is about; None if that was not said."""
        found = CHANNELS.fullmatch(self.groups) if isinstance(self.groups, str) else None
        return int(found[1]) if found is not None and found[1] else None

    def checked_for_channels(self) -> Measurement:
        """The same settings for decisions about channels; layers have choices beside them only if a menu was given."""
        unreliable = [name for name in (self.menu or Menu([])).names if parse(name).unreliable]
        if unreliable:
            raise InvalidMenu(
                f"with groups='channel' layers are stored reliably; the menu offers {unreliable[0]}: take it off, and "
                "compress the smaller network again, with groups='layer'"
            )
        if self.asked.metric_name not in ("auto", "products"):
            raise InvalidMenu(
                f"groups='channel' is measured by 'products'; got the metric {self.asked.metric_name!r}: leave it out"
            )
        metric = "products" if self.asked.metric_name == "auto" else self.metric
        return replace(self, menu=self.menu or Menu([]), metric=metric)

    def _refuse_unseen_inputs(self) -> None:
        rounding = [name for name in self.offered.names if self.offered.operator(name).activation_bits]
        if rounding and not self.asked.sees_inputs:
            raise InvalidMenu(
                f"{rounding[0]} rounds a layer's inputs, and the metric {self.asked.metric_name!r} sees only changed "
                "weights; use 'auto', 'products', 'gauss-newton' or 'pairwise', or take it off the menu"
            )
