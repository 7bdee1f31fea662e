"""The input of a metric: a network, the choices of its groups, the examples and the loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qubo_compress.calibration.examples import MOST_JOINED, Examples, Slice
from qubo_compress.errors import NonFiniteLoss
from qubo_compress.network.groups import Layout
from qubo_compress.network.losses.classification import Loss
from qubo_compress.network.replay import CallTrace, GroupSweep
from qubo_compress.network.rounding import Variant, ranges_of
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.sensitivity.cache import Unit, UnitCache
from qubo_compress.sensitivity.choices import StoredChoices
from qubo_compress.sensitivity.ranks import Arrays

if TYPE_CHECKING:
    from qubo_compress.sensitivity.measurement import Measurement

ROWS_PER_PASS = {"cpu": 256, "cuda": 8192}
"""Choices share a pass up to this many examples: more does not help on a CPU and overflows its caches."""

MAX_COLUMNS = 65_536
"""Columns of a feature row; longer rows are hashed to this length."""

PROBE_EXAMPLES = 8
"""Examples for testing whether parts of the network can run alone."""


def _unseen(_: float) -> None:
    """Ignore the progress."""


@dataclass(frozen=True, eq=False)
class Work:
    """The cache of a measurement's parts, and how progress is reported.

    Attributes:
        cache: finished units.
        advance: called with a number of finished evaluations, for the progress bar.
    """

    cache: UnitCache
    advance: Callable[[float], None] = _unseen


@dataclass(frozen=True, eq=False)
class Subject:
    """The input of a metric.

    Attributes:
        tensors: of the network at the point of measurement; the network itself is ``base``.
        choices: the choices of every group, with their stored forms.
        examples: the calibration examples, on the network's device.
        loss: the loss.
        reference: output rows of the uncompressed network, one tensor per slice.
        outputs: output rows of ``base``, one tensor per slice.
        trace: the calls of its modules, if they can be traced.
        settings: of the measurement.
        work: the cache and the progress.
    """

    tensors: NetworkTensors
    choices: StoredChoices
    examples: Examples
    loss: Loss
    reference: list[Tensor]
    outputs: list[Tensor]
    trace: CallTrace | None
    settings: Measurement
    work: Work

    @property
    def base(self) -> nn.Module:
        """The network at the point of measurement, in eval mode."""
        return self.tensors.model

    @property
    def layout(self) -> Layout:
        """The groups."""
        return self.choices.layout

    @property
    def offsets(self) -> IntArray:
        """(G + 1,) first choice of each group."""
        return self.choices.offsets

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return self.reference[0].device

    @property
    def seed(self) -> int:
        """The seed of all random draws."""
        return self.settings.seed

    @property
    def interactions(self) -> bool:
        """Whether the metric must return features."""
        return bool(self.settings.interactions)

    @property
    def first_order(self) -> bool:
        """Whether linear terms need the loss's slopes, if the metric does not measure them anyway."""
        return self.settings.first_order

    @property
    def max_columns(self) -> int:
        """Most columns of the features."""
        return MAX_COLUMNS

    @property
    def rows_per_pass(self) -> int:
        """Examples per pass, limited by memory; one slice if slices are not joined."""
        if self.examples.whole:
            return 1
        return min(ROWS_PER_PASS.get(self.device.type, 512), self.examples.together or MOST_JOINED)

    @property
    def cache(self) -> UnitCache:
        """Finished units."""
        return self.work.cache

    @property
    def advance(self) -> Callable[[float], None]:
        """Called with a number of finished evaluations, for the progress bar."""
        return self.work.advance

    def gather(self, units: Sequence[Unit]) -> list[Arrays]:
        """The arrays of all units, in order; see :meth:`qubo_compress.sensitivity.cache.UnitCache.gather`."""
        return self.work.cache.gather(units, self.work.advance)

    def with_progress(self, advance: Callable[[float], None]) -> Subject:
        """The same subject, with a progress bar."""
        return replace(self, work=replace(self.work, advance=advance))

    def mean_loss(self, outputs: Sequence[Tensor]) -> float:
        """Weighted mean loss of some output rows, one tensor per slice."""
        total = 0.0
        for number, part in self.slices():
            values = self.loss.values(outputs[number], part.targets, self.reference[number]).double()
            total += float((values * self.row_weights(number)).sum())
        return total

    def slices(self) -> Iterator[tuple[int, Slice]]:
        """Numbered slices of the examples."""
        yield from enumerate(self.examples.slices)

    def row_weights(self, number: int) -> Tensor:
        """(M,) weight of each output row of a slice, zero if its label is ignored; over all slices they sum to one."""
        part = self.examples.slices[number]
        rows = self.outputs[number]
        return self.examples.row_weights(part, rows.shape[0]).to(rows.device)

    def variants(self, group: int) -> list[tuple[Tensor, ...]]:
        """For every choice, the whole tensors to swap into the network, on its device, and ranges of inputs.

        Each is a :class:`~qubo_compress.network.rounding.Variant`, whose ranges are of the layers with these tensors.
        """
        members = self.layout.groups[group].members
        # Other rows stay as in the network at present: another group of the tensor may be swapped in.
        made = (self.tensors.assembled(zip(members, values, strict=True)) for values in self.choices.values(group))
        return [
            Variant((found[member.name].to(self.device) for member in members), ranges)
            for found, ranges in zip(made, self.choices.ranges(group), strict=True)
        ]

    def is_base(self, group: int, variant: tuple[Tensor, ...]) -> bool:
        """Whether a variant equals the base model's tensors, with inputs rounded as there."""
        members = self.layout.groups[group].members
        return all(torch.equal(self.tensors[m.name], value) for m, value in zip(members, variant, strict=True)) and all(
            self.tensors.range_of(m.name) == given for m, given in zip(members, ranges_of(variant), strict=False)
        )

    def references(self, group: int) -> tuple[Tensor, ...]:
        """The group's values in the base model, in the parameters of its choices."""
        return self.choices.rewritten(group, self.tensors.parts(self.layout.groups[group]))

    def displacements(
        self, group: int, from_original: bool = False, without: Collection[int] = ()
    ) -> list[tuple[Tensor, ...]]:
        """For every choice, stored minus reference values of each part, outputs first, on the CPU.

        They are float32, or float64 if the network is.

        Args:
            group: its number.
            from_original: use the uncompressed network as the reference, not the base model.
            without: positions of choices to leave out.
        """
        kept = self.choices.rewritten(group, self.choices.parts(group))
        reference = kept if from_original else self.references(group)
        rows = []
        names = [name for number, name in enumerate(self.choices[group]) if number not in without]
        for name, values in zip(names, self.choices.values(group, without), strict=True):
            pairs = zip(kept if name == "keep" else values, reference, strict=True)
            rows.append(tuple(apart(value, before) for value, before in pairs))
        return rows

    def sweep(self, group: int) -> GroupSweep:
        """A checked sweep over the choices of a group."""
        names = [member.name for member in self.layout.groups[group].members]
        sweep = GroupSweep(self.tensors, names, self.trace, self.examples.reading)
        if sweep.replays:
            probe = self.examples.first(PROBE_EXAMPLES).inputs
            low = self.reference[0].dtype != torch.float32 or any(
                tensor.dtype in (torch.float16, torch.bfloat16) for tensor in self.tensors.values()
            )
            sweep.check(probe, self.variants(group), 5e-2 if low else 1e-4, self.rows_per_pass)
        return sweep

    def require_finite(self, values: Tensor, group: int) -> None:
        """Raise :class:`NonFiniteLoss` naming the first choice whose loss is not finite."""
        bad = (~torch.isfinite(values)).nonzero()
        if bad.numel():
            name = list(self.choices[group])[int(bad[0, 0])]
            raise NonFiniteLoss(
                f"the loss is not finite when {self.layout.groups[group].name} is stored as {name}; "
                "take that choice off the menu, or look for overflow in a low-precision model"
            )

    def __getattr__(self, name: str) -> Any:
        """Attributes of 0.4's ``MeasureTask`` that have moved to ``choices``."""
        if name == "originals":
            warnings.warn(
                "a metric's originals are now choices.original; the old name goes with the next release",
                DeprecationWarning,
                stacklevel=2,
            )
            return {first: tensor.detach().cpu() for first, tensor in self.choices.original.items()}
        if name not in ("part", "packed", "stored", "twins", "values", "payloads", "fits", "calibration"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(
            f"a metric's {name} is now choices.{name}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(self.choices, name)


def apart(value: Tensor, before: Tensor) -> Tensor:
    """The difference in float32, or in float64 if either is."""
    wide = torch.float64 if torch.float64 in (value.dtype, before.dtype) else torch.float32
    return value.to(wide) - before.to(wide)
