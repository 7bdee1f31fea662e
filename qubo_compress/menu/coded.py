"""Any choice whose parts are streams, stored by an entropy coder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

from torch import Tensor

from qubo_compress.errors import InvalidMenu
from qubo_compress.menu.entropy_writer import CodedReader, coded_bytes, estimated_size
from qubo_compress.menu.groups import Group
from qubo_compress.menu.operator import (
    ALREADY_STORED,
    DataDriven,
    Operator,
    Packed,
    Parametrised,
    Unreliable,
    choice_name,
    looks_at_data,
    needs_data,
    operators,
    parse,
)
from qubo_compress.menu.streams import Streamed, StreamReading

BISECTIONS = 7

UNSURE_BYTES, UNSURE_SHARE = 16, 0.002
"""Sizes that are estimated this near to a capacity are found out by coding."""


@runtime_checkable
class Shrinking(Protocol):
    """A stored group whose codes can be rounded towards zero, where they are likelier and so shorter."""

    def shrunk(self, values: Sequence[Tensor], zone: float) -> Streamed | None:
        """Codes of least magnitude within half a step plus ``zone`` steps of the values; None where zero is no code."""
        ...


@dataclass(frozen=True, eq=False)
class CodedGroup:
    """A stored group behind an entropy coder, in a capacity that later changes must fit.

    Attributes:
        inner: the group as its own operator stores it.
        capacity: bytes in the file; what the coder does not need is filled with zeros.
    """

    inner: Streamed
    capacity: int

    @property
    def nbytes(self) -> int:
        """The capacity."""
        return self.capacity

    @property
    def nonzeros(self) -> int:
        """Those of the inner group."""
        return self.inner.nonzeros

    @property
    def weight_bits(self) -> int:
        """Those of the inner group, once decoded."""
        return self.inner.weight_bits

    @cached_property
    def _data(self) -> bytes:
        return coded_bytes(self.inner, self.capacity)

    def to_bytes(self) -> bytes:
        """What the coder makes of the parts."""
        return self._data

    def tensors(self) -> tuple[Tensor, ...]:
        """Those of the inner group."""
        return self.inner.tensors()

    def project(self, values: Sequence[Tensor], refit: bool = False) -> CodedGroup:
        """The nearest storable values whose coded bytes fit the capacity."""
        if isinstance(self.inner, Shrinking):
            found = self._shrunk([v.detach().cpu() for v in values], refit)
            if found is not None:
                return replace(self, inner=found)
        before = self.inner.tensors()
        goal = [v.detach().cpu().to(b.dtype).reshape(b.shape) for v, b in zip(values, before, strict=True)]

        def towards(share: float) -> Streamed:
            # Not exact arithmetic at the ends: what is stored already must not move.
            moved = goal if share == 1.0 else [b + share * (g - b) for b, g in zip(before, goal, strict=True)]
            return self.inner if share == 0.0 else cast(Streamed, self.inner.project(moved, refit))

        return replace(self, inner=self._furthest(towards))

    def _fits(self, packed: Streamed) -> bool:
        size, unsure = estimated_size(packed), UNSURE_BYTES + UNSURE_SHARE * self.capacity
        if size <= self.capacity - unsure:
            return True
        if size > self.capacity + unsure:
            return False
        try:
            coded_bytes(packed, self.capacity)
        except ValueError:
            return False
        return True

    def _furthest(self, towards: Callable[[float], Streamed]) -> Streamed:
        """The largest share of the way whose result fits; none of it always does."""
        whole = towards(1.0)
        if self._fits(whole):
            return whole
        low, high, best = 0.0, 1.0, towards(0.0)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            tried = towards(middle)
            if self._fits(tried):
                low, best = middle, tried
            else:
                high = middle
        return best

    def _shrunk(self, values: Sequence[Tensor], refit: bool) -> Streamed | None:
        """Codes rounded towards zero just enough to fit: the cheapest bits to give up are those of near ties."""
        near = cast(Streamed, self.inner.project(values, refit))
        if self._fits(near):
            return near
        made = cast(Shrinking, near)
        best = made.shrunk(values, 0.5)
        if best is None or not self._fits(best):
            return None
        low, high = 0.0, 0.5
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            tried = made.shrunk(values, middle)
            if tried is not None and self._fits(tried):
                high, best = middle, tried
            else:
                low = middle
        return best


@dataclass(frozen=True, eq=False)
class CodedParameters(CodedGroup):
    """A coded group whose values are made of factors or coefficients."""

    def parameters(self) -> tuple[Tensor, ...]:
        """Those of the inner group."""
        return cast(Parametrised, self.inner).parameters()

    def assemble(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As the inner group does."""
        return cast(Parametrised, self.inner).assemble(parameters)

    def store(self, parameters: Sequence[Tensor], refit: bool = False) -> CodedParameters:
        """The nearest storable numbers whose coded bytes fit the capacity."""
        made = cast(Parametrised, self.inner)
        before = made.parameters()
        goal = [new.detach().cpu().float() for new in parameters]

        def towards(share: float) -> Streamed:
            moved = goal if share == 1.0 else [b + share * (g - b) for b, g in zip(before, goal, strict=True)]
            return self.inner if share == 0.0 else cast(Streamed, made.store(moved, refit))

        return replace(self, inner=self._furthest(towards))


def _coded(inner: Packed, of: str) -> CodedGroup:
    if not isinstance(inner, Streamed):
        raise InvalidMenu(f"{of} does not write its parts as streams, so it cannot be coded; offer it plain")
    kind = CodedParameters if isinstance(inner, Parametrised) else CodedGroup
    return kind(inner, len(coded_bytes(inner)))


@operators.register("coded")
@dataclass(frozen=True)
class Coded:
    """Another choice behind a range coder: the same values in fewer bytes.

    Needs ``pip install 'qubo_compress[entropy]'``. Bytes are those that the coder really produces. Later changes
    (recovery) keep to these bytes: values whose codes would need more are rounded towards zero.

    Args:
        of: name of the choice that is coded.

    Raises:
        InvalidMenu: when that choice cannot be coded.

    Example:
        >>> Coded(of="quantize(bits=4)").inner
        Quantize(bits=4, sparsity=0.0)
    """

    operator_name: ClassVar[str] = "coded"
    of: str
    inner: Operator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inner = parse(self.of)
        if not isinstance(inner, StreamReading) or isinstance(inner, Coded):
            raise InvalidMenu(f"{self.of} cannot be coded: only choices that read their parts as streams can be")
        if getattr(inner, "unreliable", False):
            raise _too_risky(self.of)
        object.__setattr__(self, "of", choice_name(inner))  # one name per choice, however it was written
        object.__setattr__(self, "inner", inner)

    @classmethod
    def samples(cls) -> tuple[Coded, ...]:
        """Settings that the conformance suite tries."""
        names = ("quantize(bits=3)", "quantize(bits=2,sparsity=0.5)", "quantize(bits=4,sparsity=0.3)")
        return tuple(cls(name) for name in (*names, "prune(sparsity=0.5)"))

    @classmethod
    def faithful(cls) -> tuple[Coded, float] | None:
        """Highest fidelity, and the largest relative displacement that it leaves."""
        return cls("prune(sparsity=0.0)"), 0.0

    @property
    def bits(self) -> int | None:
        """Bits of the inner choice's codes, where it has any."""
        return getattr(self.inner, "bits", None)

    @property
    def needs(self) -> tuple[Any, ...]:
        """The statistics of the inner choice."""
        return cast(DataDriven, self.inner).needs if looks_at_data(self.inner) else ()

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Suits what the inner choice suits."""
        return self.inner.refusal(group, parts)

    def encode(self, group: Group, parts: Sequence[Tensor]) -> CodedGroup:
        """Store as the inner choice does, then code."""
        if self.needs:
            raise needs_data(self)
        return self._checked(self.inner.encode(group, parts))

    def encode_with(self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, Any]) -> CodedGroup:
        """Store as the inner choice does, or take it where it is stored already, then code."""
        if not self.needs:
            return self.encode(group, parts)
        stored = evidence.get(ALREADY_STORED, {}).get(self.of)
        if stored is None:
            stored = cast(DataDriven, self.inner).encode_with(group, parts, evidence)
        return self._checked(stored)

    def _checked(self, stored: Packed) -> CodedGroup:
        if isinstance(stored, Unreliable):
            raise _too_risky(self.of)
        return _coded(stored, self.of)

    def decode(self, group: Group, data: memoryview) -> tuple[CodedGroup, int]:
        """Read what the coder wrote."""
        reader = CodedReader(data)
        inner = cast(StreamReading, self.inner).read(group, reader)
        if not isinstance(inner, Streamed):
            raise ValueError(f"{self.of} came back in a form that cannot be coded")
        kind = CodedParameters if isinstance(inner, Parametrised) else CodedGroup
        return kind(inner, reader.used), reader.used


def _too_risky(of: str) -> InvalidMenu:
    return InvalidMenu(f"{of} is stored in unreliable cells: one wrong bit would spoil all that is coded")


def coded_name(choice: str) -> str:
    """Name of the coded form of a choice.

    Example:
        >>> coded_name("quantize(bits=4)")
        "coded(of='quantize(bits=4)')"
    """
    return f"coded(of={choice!r})"
