"""The interface of operators: ways to store one group of tensors in fewer bytes.

A new operator is one new file in this folder: a frozen dataclass whose fields are its settings,
registered under its name. The name of a choice is the operator's name with its settings, and can be
read back: ``parse("quantize(bits=4)")``.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from qubo_compress._internal.registry import Registry
from qubo_compress.errors import CorruptArtifact, InvalidMenu, MissingDependency
from qubo_compress.network.groups import Group


@runtime_checkable
class Packed(Protocol):
    """A group of tensors as one choice stores it."""

    @property
    def nbytes(self) -> int:
        """Exact length of :meth:`to_bytes`, computed without building the bytes where possible."""
        ...

    @property
    def nonzeros(self) -> int:
        """Number of stored values that may differ from zero: each multiplies once per position."""
        ...

    @property
    def weight_bits(self) -> int:
        """Bits of one stored value."""
        ...

    def to_bytes(self) -> bytes:
        """The bytes that go into the file."""
        ...

    def tensors(self) -> tuple[Tensor, ...]:
        """The members' values on the CPU, in their own dtype and part shape."""
        ...

    def project(self, values: Sequence[Tensor], refit: bool = False) -> Packed:
        """The nearest storable values with the same bytes: masks stay, codes move on the grid.

        Args:
            values: one tensor per member.
            refit: also move the scales, which are stored in as many bytes as before.
        """
        ...


@runtime_checkable
class Operator(Protocol):
    """A frozen dataclass that turns a group into stored bytes and back."""

    operator_name: ClassVar[str]

    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Why this operator does not suit the group, or None when it does."""
        ...

    def encode(self, group: Group, parts: Sequence[Tensor]) -> Packed:
        """Store the members' values, given on the CPU in their own dtype."""
        ...

    def decode(self, group: Group, data: memoryview) -> tuple[Packed, int]:
        """Inverse of ``encode(...).to_bytes()``: what was stored, and how many bytes it took."""
        ...


class Quick:
    """Base of operators whose stored form follows at once from the weights and a few numbers that were found before.

    Such a choice need not be kept in memory: it is made again wherever it is wanted.
    """

    def fit(self, packed: Any) -> bytes:
        """The numbers that ``encode`` had to search for; none by default."""
        return b""

    def encode(self, group: Group, parts: Sequence[Tensor]) -> Any:
        """Store the members' values."""
        raise NotImplementedError

    def encode_at(self, group: Group, parts: Sequence[Tensor], fit: bytes) -> Packed:
        """The very group that ``encode`` stores, without its search.

        Args:
            group: what is stored.
            parts: its members' values, those that were encoded.
            fit: what :meth:`fit` found in the stored group.
        """
        packed: Packed = self.encode(group, parts)
        return packed


@runtime_checkable
class Reparametrised(Protocol):
    """An operator that writes the same function in other parameters, such as a folded normalisation.

    Displacements of such a group are taken from the reference, not from the tensors as they were found.
    """

    def reference(self, group: Group, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The original function in the operator's own parameters, without rounding."""
        ...


@runtime_checkable
class DataDriven(Protocol):
    """An operator that looks at calibration data. What it made cannot be made again from the weights alone.

    Where ``needs`` is not empty its ``encode`` raises :func:`needs_data`, and its stored bytes travel with
    the plan as a payload.
    """

    operator_name: ClassVar[str]

    @property
    def needs(self) -> tuple[Any, ...]:
        """The statistics it asks for: see :class:`qubo_compress.calibration.statistics.Statistic`."""
        ...

    def encode_with(self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, tuple[Any, ...]]) -> Packed:
        """Store the members' values, given statistic -> one value per member for every statistic in ``needs``."""
        ...


@runtime_checkable
class Parametrised(Protocol):
    """A stored group whose values are made of other stored numbers: factors, coefficients.

    Fine-tuning trains these numbers instead of the values.
    """

    def parameters(self) -> tuple[Tensor, ...]:
        """The stored numbers, in float32 on the CPU."""
        ...

    def assemble(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The members' values as a differentiable function of the numbers, on the numbers' device."""
        ...

    def store(self, parameters: Sequence[Tensor], refit: bool = False) -> Packed:
        """The nearest storable numbers in the same bytes, as ``project`` does for values."""
        ...


@runtime_checkable
class Unreliable(Protocol):
    """A stored group that comes back with random errors: ``tensors()`` is the mean of what is read."""

    @property
    def cells(self) -> int:
        """Memory cells that it takes."""
        ...

    def variances(self) -> tuple[Tensor, ...]:
        """Variance of every value that is read, one float32 tensor per member."""
        ...


LONGEST_NAME = 1000
"""Letters of a choice's name: a name from a file is parsed, which takes time and memory with its length."""

ALREADY_STORED = "already stored"
"""Key of the evidence under which a group's choices that were stored before are found, by name."""

operators: Registry[type[Operator]] = Registry("operator", "operator_name")


def looks_at_data(operator: Any) -> bool:
    """Whether an operator asks for statistics of the calibration data."""
    return isinstance(operator, DataDriven) and bool(operator.needs)


def needs_data(operator: Any) -> InvalidMenu:
    """The error for an operator that was asked to store weights without its statistics."""
    return InvalidMenu(
        f"{choice_name(operator)} looks at calibration data: measure a table with it on the menu, and make the plan "
        "with table.plan; it cannot be made from the weights alone"
    )


def stored_as(
    name: str, group: Group, parts: Sequence[Tensor], payload: bytes | None = None, fit: bytes | None = None
) -> Packed:
    """A group as the choice of that name stores it.

    Args:
        name: of the choice.
        group: what is stored.
        parts: its members' values.
        payload: the stored bytes, where a choice was made from data.
        fit: what a :class:`Quick` operator found in these very values before.

    Raises:
        InvalidMenu: when the choice was made from data and there is no payload.
        CorruptArtifact: when the payload is not of this group.
    """
    operator = parse(name)
    if payload is None:
        quick = isinstance(operator, Quick) and fit is not None
        return operator.encode_at(group, parts, fit) if quick else operator.encode(group, parts)  # type: ignore
    try:
        packed, used = operator.decode(group, memoryview(payload))
    except (MissingDependency, MemoryError):
        raise
    except Exception as cause:  # the bytes may be anything, and operators may be anybody's
        raise CorruptArtifact(f"the stored bytes of {group.name} are not those of {name} ({cause})") from cause
    if used != len(payload):
        raise CorruptArtifact(f"the stored bytes of {group.name} are {len(payload)}, {name} takes {used}")
    return packed


def choice_name(operator: Operator) -> str:
    """Name of a choice: the operator and the settings that differ from their defaults.

    Example:
        >>> from qubo_compress.menu.quantize import Quantize
        >>> choice_name(Quantize(bits=4)), choice_name(Quantize(bits=4, sparsity=0.5))
        ('quantize(bits=4)', 'quantize(bits=4,sparsity=0.5)')
    """
    settings = [
        f"{field.name}={getattr(operator, field.name)!r}"
        for field in dataclasses.fields(operator)  # type: ignore[arg-type]
        if field.init and getattr(operator, field.name) != field.default
    ]
    return f"{operator.operator_name}({','.join(settings)})" if settings else operator.operator_name


def parse(name: str) -> Operator:
    """The operator that a choice name describes; inverse of :func:`choice_name`.

    Raises:
        UnknownName: when no such operator is registered.
        InvalidMenu: when the settings cannot be read.

    Example:
        >>> parse("quantize(bits=4,sparsity=0.5)")
        Quantize(bits=4, sparsity=0.5)
    """
    if len(name) > LONGEST_NAME:
        raise InvalidMenu(f"a choice has a name of at most {LONGEST_NAME} letters; got {len(name):,}")
    head, _, rest = name.partition("(")
    kind: Any = operators.get(head)
    try:
        call = ast.parse(f"f({rest}" if rest else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("settings must be given by name")
        settings = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        operator: Operator = kind(**settings)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as cause:
        raise InvalidMenu(f"{name!r} is not a choice of operator {head!r}: {cause}") from cause
    return operator


def values_of(part: Tensor) -> Tensor:
    """(rows, columns) float32 copy on the CPU; a scalar or vector becomes one row."""
    flat = part.detach().to("cpu", torch.float32)
    return flat.reshape(flat.shape[0], -1) if flat.ndim > 1 else flat.reshape(1, -1)
