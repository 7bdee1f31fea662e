"""The choices of every group, and their stored forms."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
from torch import Tensor

from qubo_compress.calibration.statistics.damping import LEAST_DAMPING
from qubo_compress.calibration.statistics.input_moments import InputMoments
from qubo_compress.calibration.statistics.statistic import Calibration
from qubo_compress.menu.operator import ALREADY_STORED, Operator, choice_name, looks_at_data, needs_data, stored_as
from qubo_compress.menu.storage.many import Fits, encoded, of_equal_values
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.network.groups import Layout, Member
from qubo_compress.network.rounding import InputRange
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.sensitivity.cache import Unit, UnitCache
from qubo_compress.sensitivity.ranks import Arrays

PACKED_MEMORY = 400_000_000
"""Memory for stored choices, at least the network's bytes; choices beyond it are made again when needed.

Decoding coded choices of depthwise layers takes tens of microseconds a weight, and every pass of a measurement needs
all of them.
"""

VALUE_MEMORY = 4
"""Estimated bytes per value of a stored choice in memory: codes, a mask, and the arrays behind them."""


class StoredChoices(Sequence[Mapping[str, Operator]]):
    """The choices of every group: item g maps the names of group g's choices to their operators.

    A choice is made from the uncompressed network, or also from its calibration examples. The latter are made once, by
    :meth:`make_from_data`, and then read from their bytes.

    Args:
        layout: the groups.
        offered: for every group, choice name -> operator.
        original: the uncompressed network's tensors.
        calibration: the source of statistics for operators that need data.
        payloads: stored bytes of choices already made from data.
        kept_because: group name -> why it is offered only ``keep``.
        optimism: of the choices already made.

    Attributes:
        payloads: (group name, choice name) -> stored bytes of choices made from data; grows as they are made.
        fits: the search results of every choice's encoding, once the choices are priced.
        optimism: (group name, choice name) -> how many times a choice made from inputs costs more on other examples;
            only where it does, and where halves of the inputs could tell.
    """

    def __init__(
        self,
        layout: Layout,
        offered: Sequence[dict[str, Operator]],
        original: NetworkTensors,
        calibration: Calibration | None = None,
        payloads: Mapping[tuple[str, str], bytes] | None = None,
        kept_because: Mapping[str, str] | None = None,
        optimism: Mapping[tuple[str, str], float] | None = None,
    ) -> None:
        self.layout, self.original, self.calibration = layout, original, calibration
        self.payloads = dict(payloads or {})
        self.kept_because = dict(kept_because or {})
        self.fits: Fits | None = None
        self.optimism = dict(optimism or {})
        self._offered = tuple(offered)
        # Groups share operators: there may be thousands of groups.
        every = {id(operator): operator for choices in offered for operator in choices.values()}
        self._driven = frozenset(key for key, operator in every.items() if looks_at_data(operator))
        self._kept = _Kept(max(PACKED_MEMORY, layout.original_bytes))

    @overload
    def __getitem__(self, group: int) -> Mapping[str, Operator]: ...

    @overload
    def __getitem__(self, group: slice) -> Sequence[Mapping[str, Operator]]: ...

    def __getitem__(self, group: int | slice) -> Mapping[str, Operator] | Sequence[Mapping[str, Operator]]:
        """Choice name -> operator of a group."""
        return self._offered[group]

    def __len__(self) -> int:
        """Number of groups."""
        return len(self._offered)

    @functools.cached_property
    def offsets(self) -> IntArray:
        """(G + 1,) first choice of each group."""
        return np.concatenate([[0], np.cumsum([len(names) for names in self._offered])]).astype(np.int64)

    def part(self, member: Member) -> Tensor:
        """A member's part of the uncompressed network, outputs first, on the CPU."""
        return self.original.part(member)

    def parts(self, group: int) -> list[Tensor]:
        """The members' parts of the uncompressed network."""
        return self.original.parts(self.layout.groups[group])

    def with_fits(self, fits: Fits) -> StoredChoices:
        """The same choices with known search results, so that encoding need not search again."""
        known = copy.copy(self)
        known.fits = fits
        return known

    def packed(self, group: int) -> list[Stored]:
        """Every choice of a group as it would be stored.

        Quick choices are made again for every call. The others are kept as far as the memory allows.
        """
        return list(self.stored(group))

    def stored(self, group: int) -> Iterator[Stored]:
        """The choices of :meth:`packed`, one at a time, so that only one must be in memory."""
        return (packed for _, packed in self._each(group, self[group], self._fits_of(group)))

    def twins(self, group: int) -> dict[int, int]:
        """Position of every coded choice -> position of the choice of equal values that is not coded, if offered."""
        positions = {name: number for number, name in enumerate(self[group])}
        found = {}
        for number, operator in enumerate(self[group].values()):
            plain = of_equal_values(operator)
            other = None if plain is operator else positions.get(choice_name(plain))
            if other is not None:
                found[number] = other
        return found

    def values(self, group: int, without: Collection[int] = ()) -> Iterator[tuple[Tensor, ...]]:
        """The members' values under every choice, one choice at a time; bypasses entropy coders.

        Args:
            group: its number.
            without: positions of choices to leave out.
        """
        fits = self._fits_of(group)
        operators = {
            name: operator for number, (name, operator) in enumerate(self[group].items()) if number not in without
        }
        for name, operator in list(operators.items()):
            plain = of_equal_values(operator)
            if plain is not operator and id(operator) not in self._driven and (group, name) not in self._kept:
                operators[name] = plain
                fits.pop(name, None)
                if choice_name(plain) in fits:
                    fits[name] = fits[choice_name(plain)]
        return (packed.tensors() for _, packed in self._each(group, operators, fits))

    def ranges(self, group: int) -> list[tuple[InputRange | None, ...]]:
        """For every choice, the ranges of the members' inputs, None where it rounds none; () if no choice does."""
        found, offered = self.layout.groups[group], self[group]
        if not any(operator.activation_bits for operator in offered.values()):
            return [()] * len(offered)
        none: tuple[InputRange | None, ...] = (None,) * len(found.members)
        return [
            self._kept_or_read(group, name).input_ranges if operator.activation_bits else none
            for name, operator in offered.items()
        ]

    def _kept_or_read(self, group: int, name: str) -> Stored:
        """The stored form of a choice made from data."""
        found = self.layout.groups[group]
        if (group, name) in self._kept:
            return self._kept[group, name]
        return stored_as(name, found, self.parts(group), self.payloads[found.name, name])

    def rewritten(self, group: int, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same function in the parameters used by the group's choices."""
        for operator in self[group].values():
            found = operator.reference(self.layout.groups[group], parts)
            if found is not None:
                return found
        return tuple(parts)

    def _each(
        self, group: int, offered: Mapping[str, Operator], fits: Mapping[str, bytes]
    ) -> Iterator[tuple[str, Stored]]:
        """Name and stored form of every choice of a group, or of another operator with equal values."""
        found, parts = self.layout.groups[group], self.parts(group)
        made = {name: self._kept[group, name] for name in offered if (group, name) in self._kept}
        for name, operator in offered.items():
            if id(operator) in self._driven and name not in made:
                if (found.name, name) not in self.payloads:
                    raise needs_data(operator)
                made[name] = stored_as(name, found, parts, self.payloads[found.name, name])
        left = encoded(found, parts, {name: o for name, o in offered.items() if name not in made}, fits)
        for name, operator in offered.items():
            packed = made.pop(name) if name in made else next(left)[1]
            slow = id(operator) in self._driven or not operator.quick
            if slow and operator is self[group][name]:
                self._kept.offer((group, name), packed, found.numel)
            yield name, packed

    def _fits_of(self, group: int) -> dict[str, bytes]:
        if self.fits is None:
            return {}
        first = int(self.offsets[group])
        return {name: self.fits.of(first + k) for k, name in enumerate(self[group])}

    def make_from_data(self, group: int, cache: UnitCache) -> None:
        """Make a group's choices that need data, unless their bytes are known."""
        driven = self._unmade(group)
        if driven:
            self._remember(group, driven, cache.get(f"payload_{group:05d}", partial(self._made, group, driven)))

    def optimism_of_all(self) -> FloatArray:
        """(V,) the optimism of every choice; 1 for those that look at no inputs."""
        groups = zip(self.layout.groups, self._offered, strict=True)
        return np.array([self.optimism.get((group.name, name), 1.0) for group, offered in groups for name in offered])

    def share_from_data(self, cache: UnitCache) -> None:
        """Make all groups' choices that need data; if several ranks share the work, each group on one rank."""
        if cache.ranks.size == 1:
            return
        wanted = [(number, driven) for number in range(len(self)) if (driven := self._unmade(number))]
        units = [
            Unit(f"payload_{number:05d}", partial(self._made, number, driven), len(driven)) for number, driven in wanted
        ]
        for (number, driven), arrays in zip(wanted, cache.gather(units), strict=True):
            self._remember(number, driven, arrays)

    def _unmade(self, group: int) -> dict[str, Operator]:
        """A group's choices that need data, unless the bytes of all are known."""
        name = self.layout.groups[group].name
        driven = {choice: operator for choice, operator in self[group].items() if id(operator) in self._driven}
        return {} if all((name, choice) in self.payloads for choice in driven) else driven

    def _made(self, group: int, driven: Mapping[str, Operator]) -> Arrays:
        """Bytes of choices made from statistics, which are gathered here and not kept."""
        if self.calibration is None:
            raise needs_data(next(iter(driven.values())))
        found, parts, made = self.layout.groups[group], self.parts(group), dict[str, Stored]()
        needs = dict.fromkeys(need for o in driven.values() for need in o.needs)
        evidence: dict[Any, Any] = {need: need.collect(self.calibration, found) for need in needs}
        evidence[ALREADY_STORED] = made
        for name, operator in driven.items():
            made[name] = operator.encode_with(found, parts, evidence)
            self._kept.offer((group, name), made[name], found.numel)
        stored = [packed.to_bytes() for packed in made.values()]
        arrays = {str(number): np.frombuffer(data, dtype=np.uint8) for number, data in enumerate(stored)}
        return {**arrays, "optimism": np.array([_optimism(operator, evidence) for operator in driven.values()])}

    def _remember(self, group: int, driven: Mapping[str, Operator], arrays: Arrays) -> None:
        for number, name in enumerate(driven):
            key = self.layout.groups[group].name, name
            self.payloads[key] = arrays[str(number)].tobytes()
            if arrays["optimism"][number] > 1.0:
                self.optimism[key] = float(arrays["optimism"][number])


def _optimism(operator: Operator, evidence: Mapping[Any, tuple[Any, ...]]) -> float:
    """How many times a choice costs more on other examples, where halves of the inputs can tell."""
    if InputMoments() not in operator.needs:
        return 1.0
    members = [moments.validation(LEAST_DAMPING).optimism for moments in evidence[InputMoments()]]
    return float(np.mean(members))


class _Kept(dict[tuple[int, str], Stored]):
    """Stored choices that are slow to make, by group and name, within a memory limit."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self._left = float(allowed)

    def offer(self, key: tuple[int, str], packed: Stored, values: int) -> None:
        """Keep a stored choice of ``values`` values, if there is room."""
        size = VALUE_MEMORY * values
        if key not in self and size <= self._left:
            self[key] = packed
            self._left -= size
