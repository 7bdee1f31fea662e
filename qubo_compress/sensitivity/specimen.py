"""The object of a measurement: a network with its groups and calibration examples, read and checked together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from qubo_compress.calibration.evaluation import settle
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.calibration.weights import with_example_weights
from qubo_compress.errors import InvalidModel
from qubo_compress.menu.operator import Operator
from qubo_compress.network.discovery import discover
from qubo_compress.network.groups import Layout, kept_text
from qubo_compress.network.losses.classification import LossLike
from qubo_compress.network.memory import refuse_without_values
from qubo_compress.network.private import private_copy
from qubo_compress.network.rounding import range_of
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.sensitivity.measurement import Measurement


@dataclass(frozen=True, eq=False)
class Specimen:
    """A network to be measured.

    Attributes:
        model: the uncompressed network, unchanged.
        layout: its groups.
        examples: the calibration examples.
        settings: of the measurement, with a loss that fits the examples.
    """

    model: nn.Module
    layout: Layout
    examples: Examples
    settings: Measurement

    @classmethod
    def of(cls, model: nn.Module, batches: Iterable[Any], settings: Measurement, whose: str = "") -> Specimen:
        """Find the groups, read the batches, and check that the network, its examples and the loss fit together.

        Args:
            model: as given by the caller.
            batches: see :func:`qubo_compress.calibration.examples.read_examples`.
            settings: as given by the caller.
            whose: describes the batches in errors.

        Raises:
            InvalidBatches, InvalidModel, InvalidMenu, ForwardFailed, UnknownName.
        """
        settings = settings.checked()
        model = unwrapped(model)
        layout = discover(model, "layer" if settings.about_channels else settings.groups)
        refuse_unfit(model, layout)
        read = read_examples(batches, settings.max_examples, settings.batch_size, settings.reading, whose)
        read, loss = settle(model, read, settings.loss)
        examples = with_example_weights(model, read, settings.example_weights)
        return cls(model, layout, examples, replace(settings, loss=loss))

    @property
    def loss(self) -> LossLike:
        """The loss by name, or the caller's function."""
        return self.settings.loss

    def private(self) -> Specimen:
        """The specimen with a private copy of the network, and with its output reading and loss resolved."""
        model = private_copy(self.model)
        examples, loss = settle(model, self.examples, self.loss)
        return Specimen(model, self.layout, examples, replace(self.settings, loss=loss))

    def on(self, examples: Examples) -> Specimen:
        """The same network on other examples."""
        return replace(self, examples=examples)


Restriction = Callable[[int, dict[str, Operator]], dict[str, Operator]]
"""(group number, choice name -> operator) -> the remaining choices."""


@dataclass(frozen=True, eq=False)
class Around:
    """A plan already applied, as the point of measurement.

    Attributes:
        base: the network with the plan.
        restrict: may shorten a group's choices.
        payloads: stored bytes of choices made from data for an earlier table.
        optimism: of these choices, see :mod:`qubo_compress.sensitivity.optimism`.
    """

    base: nn.Module
    restrict: Restriction | None = None
    payloads: Mapping[tuple[str, str], bytes] | None = None
    optimism: Mapping[tuple[str, str], float] | None = None

    def private(self) -> Around:
        """The same with a private copy of the network."""
        return replace(self, base=private_copy(self.base))


def refuse_unfit(model: nn.Module, layout: Layout) -> None:
    """Raise :class:`InvalidModel` for networks that cannot be measured, before running them."""
    refuse_nothing_to_compress(layout)
    refuse_without_values(model)
    rounded = [name for name, module in model.named_modules() if range_of(module) is not None]
    if rounded:
        raise InvalidModel(
            f"a plan rounds the inputs of {rounded[0]!r}, which another plan would undo: measure the network as it was "
            "before, with activations= in the menu's choices"
        )
    for group in layout.groups:
        for member in group.members:
            if member.dtype.is_floating_point and member.dtype.itemsize < 2:
                raise InvalidModel(
                    f"{member.name} is stored as {str(member.dtype).removeprefix('torch.')}, in which nothing can be "
                    "computed; convert the network first, such as by model.to(torch.bfloat16), or keep that layer out "
                    "with groups=, a function that returns None for it"
                )


def refuse_nothing_to_compress(layout: Layout) -> None:
    """Raise :class:`InvalidModel`, with the reasons, if all tensors of a network are kept."""
    if not layout.groups:
        raise InvalidModel(f"nothing in this network can be compressed: {kept_text(layout.kept)}")
