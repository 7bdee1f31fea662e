"""What a metric is given: the model, the choices of every group, the examples and the loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, nn

from qubo_compress._internal.registry import Registry
from qubo_compress.calibration.examples import Examples, Slice
from qubo_compress.calibration.statistics.statistic import Calibration
from qubo_compress.errors import NonFiniteLoss
from qubo_compress.menu.operator import (
    ALREADY_STORED,
    Operator,
    choice_name,
    looks_at_data,
    needs_data,
    stored_as,
)
from qubo_compress.menu.storage.many import Fits, encoded, of_equal_values
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Layout, Member
from qubo_compress.network.losses.classification import Loss
from qubo_compress.network.replay import CallTrace, GroupSweep, run_model
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import FactorArray, FloatArray
from qubo_compress.sensitivity.cache import Unit, UnitCache
from qubo_compress.sensitivity.ranks import Arrays

PACKED_MEMORY = 400_000_000
"""Bytes of stored choices, and at least those of the network, that are kept; beyond, choices are made again.

Decoding coded choices of depthwise layers takes tens of microseconds a weight, and every pass of a measurement asks
for all of them.
"""

VALUE_MEMORY = 4
"""Bytes per value that a stored choice is taken to hold in memory: codes, a mask, and what they are made of."""

PROBE_EXAMPLES = 8


@dataclass(frozen=True)
class MetricResult:
    """What a metric found.

    Attributes:
        linear: (V,) loss change of each choice on its own.
        features: (V, columns) rows whose inner products are the pair energies, or None.
        pairs: sparse (V, V) pair energies, or None.
        evaluations: runs of the network over all examples.
        divergence: (V,) Kullback-Leibler divergence of each choice, if it came at no extra cost.
        halves: (2, 2, V) the linear terms, and the divergences, on either half of the examples, where they were
            measured.
        flips: (V,) change of the share of examples that the original gets right and the choice gets wrong, where
            it came at no extra cost.
        second_half: (columns,) which columns of the features are those of every second example, where it is known.
    """

    linear: FloatArray
    features: FactorArray | None = None
    pairs: sparse.csr_array | None = None
    evaluations: int = 0
    divergence: FloatArray | None = None
    halves: FloatArray | None = None
    flips: FloatArray | None = None
    second_half: npt.NDArray[np.bool_] | None = None


@dataclass
class MeasureTask:
    """One measurement, seen from a metric.

    Attributes:
        base: the model around which is measured, in eval mode.
        originals: first name -> tensor of the *uncompressed* network, which choices are made from.
        layout: the groups.
        choices: for every group, choice name -> operator.
        examples: the calibration examples, on the model's device.
        loss: the loss.
        reference: output rows of the uncompressed network, one tensor per slice.
        outputs: output rows of ``base``, one tensor per slice.
        seed: of everything drawn.
        rows_per_pass: examples that share one pass behind a changed module.
        interactions: whether features are wanted.
        first_order: whether slopes of the loss are wanted, where they are not measured anyway.
        cache: finished units.
        advance: called with a number of finished evaluations, for the progress bar.
        calibration: what operators that look at data gather their statistics from.
        payloads: (group name, choice name) -> stored bytes of choices made from data; grows as they are made.
        fits: what encoding searched for, of every choice, once they are priced.
        unreliable: (V,) which choices come back with errors, once they are priced.
    """

    base: nn.Module
    originals: dict[str, Tensor]
    layout: Layout
    choices: Sequence[dict[str, Operator]]
    examples: Examples
    loss: Loss
    reference: list[Tensor]
    outputs: list[Tensor]
    seed: int
    rows_per_pass: int
    interactions: bool
    max_columns: int
    cache: UnitCache
    advance: Callable[[float], None]
    first_order: bool = True
    calibration: Calibration | None = None
    payloads: dict[tuple[str, str], bytes] = field(default_factory=dict)
    trace: CallTrace | None = None
    fits: Fits | None = None
    unreliable: np.ndarray | None = None
    _kept: dict[tuple[int, str], Stored] = field(default_factory=dict)
    _kept_bytes: int = 0
    _sweeps: dict[int, GroupSweep] = field(default_factory=dict)
    _references: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @functools.cached_property
    def tensors(self) -> NetworkTensors:
        """What the base model holds; looked up once, since filters make thousands of groups."""
        return NetworkTensors(self.base)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """(G + 1,) first choice of each group."""
        return np.concatenate([[0], np.cumsum([len(names) for names in self.choices])]).astype(np.int64)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.reference[0].device

    def part(self, member: Member) -> Tensor:
        """What a member owns of an original tensor, outputs first, on the CPU."""
        return member.part(self.originals[member.name])

    def packed(self, group: int) -> list[Stored]:
        """Every choice of a group as it would be stored.

        A choice that follows at once from the weights is made again for every call. Of the others as many are kept as
        the memory allows.
        """
        return list(self.stored(group))

    def stored(self, group: int) -> Iterator[Stored]:
        """The choices of :meth:`packed`, one after the other, so that only one need be in memory."""
        return (packed for _, packed in self._each(group, self.choices[group], self._fits_of(group)))

    def twins(self, group: int) -> dict[int, int]:
        """Position of every choice that is another one of the group, only coded -> the other's position."""
        positions = {name: number for number, name in enumerate(self.choices[group])}
        found = {}
        for number, operator in enumerate(self.choices[group].values()):
            plain = of_equal_values(operator)
            other = None if plain is operator else positions.get(choice_name(plain))
            if other is not None:
                found[number] = other
        return found

    def values(self, group: int, without: Collection[int] = ()) -> Iterator[tuple[Tensor, ...]]:
        """The members' values under every choice, one choice after the other; nothing goes through an entropy coder.

        Args:
            group: its number.
            without: positions of choices to leave out.
        """
        fits = self._fits_of(group)
        operators = {
            name: operator
            for number, (name, operator) in enumerate(self.choices[group].items())
            if number not in without
        }
        for name, operator in list(operators.items()):
            plain = of_equal_values(operator)
            if plain is not operator and not looks_at_data(operator) and (group, name) not in self._kept:
                operators[name] = plain
                fits.pop(name, None)
                if choice_name(plain) in fits:
                    fits[name] = fits[choice_name(plain)]
        return (packed.tensors() for _, packed in self._each(group, operators, fits))

    def _each(self, group: int, offered: dict[str, Operator], fits: dict[str, bytes]) -> Iterator[tuple[str, Stored]]:
        """Name and stored form of every choice of a group, or of an operator of equal values."""
        found = self.layout.groups[group]
        parts = [self.part(member) for member in found.members]
        made = {name: self._kept[group, name] for name in offered if (group, name) in self._kept}
        driven = [name for name, operator in offered.items() if name not in made and looks_at_data(operator)]
        fresh = self.store_from_data(group) if driven else {}
        for name in driven:
            data = self.payloads[found.name, name]
            made[name] = fresh[name] if name in fresh else stored_as(name, found, parts, data)
        left = encoded(found, parts, {name: o for name, o in offered.items() if name not in made}, fits)
        for name, operator in offered.items():
            packed = made.pop(name) if name in made else next(left)[1]
            slow = looks_at_data(operator) or not operator.quick
            if slow and operator is self.choices[group][name]:
                self._keep(group, name, packed)
            yield name, packed

    def _fits_of(self, group: int) -> dict[str, bytes]:
        if self.fits is None:
            return {}
        first = int(self.offsets[group])
        return {name: self.fits.of(first + k) for k, name in enumerate(self.choices[group])}

    def _keep(self, group: int, name: str, packed: Stored) -> None:
        """Hold on to a stored choice that takes long to make, within the memory that is allowed."""
        size = VALUE_MEMORY * self.layout.groups[group].numel
        allowed = max(PACKED_MEMORY, self.layout.original_bytes)
        if (group, name) not in self._kept and self._kept_bytes + size <= allowed:
            self._kept[group, name] = packed
            self._kept_bytes += size

    def store_from_data(self, group: int) -> dict[str, Stored]:
        """Make a group's choices that look at data, unless their bytes are known; returns those made just now."""
        driven, fresh = self._unmade(group), dict[str, Stored]()
        if driven:
            compute = partial(self._stored_from_data, group, driven, fresh)
            self._remember(group, driven, self.cache.get(f"payload_{group:05d}", compute))
        return fresh

    def _unmade(self, group: int) -> dict[str, Operator]:
        """A group's choices that look at data, unless the bytes of all are known."""
        name = self.layout.groups[group].name
        driven = {choice: o for choice, o in self.choices[group].items() if looks_at_data(o)}
        return {} if all((name, choice) in self.payloads for choice in driven) else driven

    def share_from_data(self) -> None:
        """Make all groups' choices that look at data, each group on one rank, where several share the work."""
        if self.cache.ranks.size == 1:
            return
        wanted = [(number, driven) for number in range(len(self.choices)) if (driven := self._unmade(number))]
        units = [
            Unit(f"payload_{number:05d}", partial(self._stored_from_data, number, driven), len(driven))
            for number, driven in wanted
        ]
        for (number, driven), arrays in zip(wanted, self.cache.gather(units), strict=True):
            self._remember(number, driven, arrays)

    def _stored_from_data(
        self, group: int, driven: dict[str, Operator], fresh: dict[str, Stored] | None = None
    ) -> Arrays:
        """Bytes of choices made from statistics that are gathered here and dropped again; ``fresh`` takes them too."""
        if self.calibration is None:
            raise needs_data(next(iter(driven.values())))
        found, made = self.layout.groups[group], {} if fresh is None else fresh
        parts = [self.part(member) for member in found.members]
        needs = dict.fromkeys(need for o in driven.values() for need in o.needs)
        evidence: dict[Any, Any] = {need: need.collect(self.calibration, found) for need in needs}
        evidence[ALREADY_STORED] = made
        for name, operator in driven.items():
            made[name] = operator.encode_with(found, parts, evidence)
        stored = [packed.to_bytes() for packed in made.values()]
        return {str(number): np.frombuffer(data, dtype=np.uint8) for number, data in enumerate(stored)}

    def _remember(self, group: int, driven: dict[str, Operator], arrays: Arrays) -> None:
        for number, name in enumerate(driven):
            self.payloads[self.layout.groups[group].name, name] = arrays[str(number)].tobytes()

    def variants(self, group: int) -> list[tuple[Tensor, ...]]:
        """For every choice, the whole tensors to be seen by the network, on its device."""
        members = self.layout.groups[group].members
        # Beside rows that the network holds now: one of the same tensor may be swapped in already.
        made = (self.tensors.assembled(zip(members, values, strict=True)) for values in self.values(group))
        return [tuple(found[member.name] for member in members) for found in made]

    def is_base(self, group: int, variant: tuple[Tensor, ...]) -> bool:
        """Whether a variant is what the base model holds already."""
        members = self.layout.groups[group].members
        return all(torch.equal(self.tensors[m.name], value) for m, value in zip(members, variant, strict=True))

    def references(self, group: int) -> tuple[Tensor, ...]:
        """The group as the base model holds it, in the parameters that its choices are written in."""
        if group in self._references:
            return self._references[group]
        self._references[group] = self._rewritten(group, self.tensors.parts(self.layout.groups[group]))
        return self._references[group]

    def _rewritten(self, group: int, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same function in the parameters that the group's choices are written in."""
        for operator in self.choices[group].values():
            reference = operator.reference(self.layout.groups[group], parts)
            if reference is not None:
                return reference
        return tuple(parts)

    def displacements(
        self, group: int, from_original: bool = False, without: Collection[int] = ()
    ) -> list[tuple[Tensor, ...]]:
        """For every choice, stored minus reference values, part by part, outputs first, on the CPU.

        They are float32, or float64 where the network is.

        Args:
            group: its number.
            from_original: take the uncompressed network for the reference, not the base model.
            without: positions of choices to leave out.
        """
        kept = self._rewritten(group, [self.part(member) for member in self.layout.groups[group].members])
        reference = kept if from_original else self.references(group)
        rows = []
        names = [name for number, name in enumerate(self.choices[group]) if number not in without]
        for name, values in zip(names, self.values(group, without), strict=True):
            pairs = zip(kept if name == "keep" else values, reference, strict=True)
            rows.append(tuple(apart(value, before) for value, before in pairs))
        return rows

    def sweep(self, group: int) -> GroupSweep:
        """A checked sweep over the choices of a group."""
        if group in self._sweeps:
            return self._sweeps[group]
        names = [member.name for member in self.layout.groups[group].members]
        sweep = GroupSweep(self.tensors, names, self.trace, self.examples.reading)
        if sweep.replays:
            probe = self.examples.first(PROBE_EXAMPLES).inputs
            low = self.reference[0].dtype != torch.float32 or any(
                tensor.dtype in (torch.float16, torch.bfloat16) for tensor in self.tensors.values()
            )
            sweep.check(probe, self.variants(group), 5e-2 if low else 1e-4, self.rows_per_pass)
        self._sweeps[group] = sweep
        return sweep

    def row_weights(self, number: int) -> Tensor:
        """(M,) weight of each output row of a slice, zero where its label is ignored; all slices' sum to one."""
        part = self.examples.slices[number]
        rows = self.outputs[number]
        return self.examples.row_weights(part, rows.shape[0]).to(rows.device)

    def slices(self) -> Iterator[tuple[int, Slice]]:
        """Numbered slices."""
        yield from enumerate(self.examples.slices)

    def require_finite(self, values: Tensor, group: int) -> None:
        """Raise :class:`NonFiniteLoss` naming the first choice whose loss is not finite."""
        bad = (~torch.isfinite(values)).nonzero()
        if bad.numel():
            name = list(self.choices[group])[int(bad[0, 0])]
            raise NonFiniteLoss(
                f"the loss is not finite when {self.layout.groups[group].name} is stored as {name}; "
                "take that choice off the menu, or look for overflow in a low-precision model"
            )


def apart(value: Tensor, before: Tensor) -> Tensor:
    """The difference in float32, or float64 where either is."""
    wide = torch.float64 if torch.float64 in (value.dtype, before.dtype) else torch.float32
    return value.to(wide) - before.to(wide)


def base_outputs(model: nn.Module, examples: Examples) -> list[Tensor]:
    """Output rows of a model, slice by slice."""
    with torch.no_grad():
        return [examples.reading.rows(run_model(model, part.inputs)) for part in examples.slices]


class Metric(Protocol):
    """A way to say what each choice and each pair costs: a frozen dataclass of options.

    A metric that runs every choice, and so gives ``MetricResult.flips``, says so by an attribute ``counts_flips``. One
    that gives no ``MetricResult.divergence`` may say ``knows_divergence = False``, and one without ``halves``
    ``knows_halves = False``: a ``shrinkage`` that needs them is then refused before anything is measured.
    """

    metric_name: ClassVar[str]

    def evaluations(self, task: MeasureTask) -> float:
        """Expected runs over all examples, for the progress bar."""
        ...

    def measure(self, task: MeasureTask) -> MetricResult:
        """Measure all choices of all groups.

        Units given to ``task.cache.gather`` are resumed from a cache and shared by the ranks of ``torch.distributed``.
        """
        ...


metrics: Registry[type[Metric]] = Registry("metric", "metric_name")


def make_metric(metric: str | Metric) -> Metric:
    """A metric object of its registered name; an object is passed through.

    Raises:
        UnknownName: when the name is not registered.
    """
    return metrics.get(metric)() if isinstance(metric, str) else metric
