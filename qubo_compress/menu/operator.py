"""The interface of operators: ways to store one group of tensors in fewer bytes.

A new operator is one new file in this folder: a frozen dataclass whose fields are its settings,
registered under its name. The name of a choice is the operator's name with its settings, and can be
read back: ``parse("quantize(bits=4)")``.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from qubo_compress._internal import older_plug_ins
from qubo_compress._internal.registry import Registry
from qubo_compress.calibration.statistics.statistic import Statistic
from qubo_compress.errors import CorruptArtifact, InvalidMenu, MissingDependency
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import PlainReader, Reader
from qubo_compress.network.groups import Group


class Operator(ABC):
    """A frozen dataclass that turns a group into stored bytes and back.

    The abstract methods are what every operator must say, and :meth:`read` or :meth:`decode`. The others are abilities,
    and their defaults mean "none".
    """

    operator_name: ClassVar[str]

    quick: ClassVar[bool] = False
    """Whether the stored form follows at once from the weights and what :meth:`fit` found.

    Such a choice need not be kept in memory: it is made again wherever it is wanted.
    """

    codable: ClassVar[bool] = True
    """Whether ``coded(of=...)`` takes it."""

    unreliable: ClassVar[bool] = False
    """Whether it stores in cells that come back with random errors."""

    @abstractmethod
    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Why this operator does not suit the group, or None when it does."""

    @abstractmethod
    def encode(self, group: Group, parts: Sequence[Tensor]) -> Stored:
        """Store the members' values, given on the CPU in their own dtype.

        Raises:
            InvalidMenu: made by :func:`needs_data`, where it looks at data.
        """

    def read(self, group: Group, reader: Reader) -> Stored:
        """Inverse of ``encode(...).write(writer)``."""
        raise NotImplementedError(f"{type(self).__name__} has neither read() nor decode()")

    def decode(self, group: Group, data: memoryview) -> tuple[Stored, int]:
        """Inverse of ``encode(...).to_bytes()``: what was stored, and how many bytes it took."""
        reader = PlainReader(data)
        return self.read(group, reader), reader.used

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The statistics of the calibration data that it asks for; none by default.

        What it makes of them cannot be made again from the weights alone: the stored bytes travel with the plan.
        """
        return ()

    def encode_with(self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, Any]) -> Stored:
        """Store the members' values, given statistic -> one value per member for every statistic in ``needs``."""
        return self.encode(group, parts)

    def fit(self, stored: Any) -> bytes:
        """The numbers that ``encode`` had to search for, found again in what it stored; none by default."""
        return b""

    def encode_at(self, group: Group, parts: Sequence[Tensor], fit: bytes) -> Stored:
        """The very group that ``encode`` stores, without its search.

        Args:
            group: what is stored.
            parts: its members' values, those that were encoded.
            fit: what :meth:`fit` found in the stored group.
        """
        return self.encode(group, parts)

    def reference(self, group: Group, parts: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """The original function in the operator's own parameters, without rounding, where these are others.

        Displacements of such a group are taken from the reference, not from the tensors as they were found.
        """
        return None

    @property
    def code_bits(self) -> int | None:
        """Bits of its codes: its setting ``bits``, where it has one."""
        return settings_of(self).get("bits")

    @classmethod
    def samples(cls) -> tuple[Operator, ...]:
        """Settings that the conformance suite tries."""
        return ()

    @classmethod
    def faithful(cls) -> tuple[Operator, float] | None:
        """The settings of highest fidelity, and the largest relative displacement that they leave.

        None where no settings come close, or where values of another function say nothing.
        """
        return None


LONGEST_NAME = 1000
"""Letters of a choice's name: a name from a file is parsed, which takes time and memory with its length."""

ALREADY_STORED = "already stored"
"""Key of the evidence under which a group's choices that were stored before are found, by name."""


class Quick:
    """The base of quick operators in 0.4."""

    quick: ClassVar[bool] = True


def adopt(operator: object) -> None:
    """Bring an operator's class up to date that was written for 0.4, and those of its statistics."""
    adopt_kind(type(operator))
    for need in operator.needs if isinstance(operator, Operator) else ():
        older_plug_ins.adopt(type(need), Statistic, older_plug_ins.names_in(type(need)), {})


def adopt_kind(kind: type) -> None:
    """Bring an operator up to date that was written for 0.4, and every form that it stores once that is seen."""
    known = older_plug_ins.names_in(kind)
    written = {"operator_name", "refusal", "encode", "decode"} <= known
    if written and older_plug_ins.adopt(kind, Operator, known, {"codable": "read" in known}):
        for name in ("encode", "encode_with", "encode_at", "decode"):
            setattr(kind, name, _adopting(getattr(kind, name)))


def _adopting(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of an older operator that returns a stored group, alone or with the bytes it took."""

    @functools.wraps(method)
    def called(*given: Any, **named: Any) -> Any:
        found = method(*given, **named)
        stored = found[0] if isinstance(found, tuple) else found
        whole = {"write": lambda form, writer: writer.raw(form.to_bytes()), "unreliable": "variances" in dir(stored)}
        older_plug_ins.adopt(type(stored), Stored, dir(stored), whole)
        return found

    return called


def __getattr__(name: str) -> Any:
    return older_plug_ins.renamed(__name__, {"Packed": Stored})(name)


operators: Registry[type[Operator]] = Registry("operator", "operator_name", adopt_kind)


def looks_at_data(operator: Operator) -> bool:
    """Whether an operator asks for statistics of the calibration data."""
    return bool(operator.needs)


def needs_data(operator: Operator) -> InvalidMenu:
    """The error for an operator that was asked to store weights without its statistics."""
    return InvalidMenu(
        f"{choice_name(operator)} looks at calibration data: measure a table with it on the menu, and make the plan "
        "with table.plan; it cannot be made from the weights alone"
    )


def stored_as(
    name: str, group: Group, parts: Sequence[Tensor], payload: bytes | None = None, fit: bytes | None = None
) -> Stored:
    """A group as the choice of that name stores it.

    Args:
        name: of the choice.
        group: what is stored.
        parts: its members' values.
        payload: the stored bytes, where a choice was made from data.
        fit: what its operator found in these very values before.

    Raises:
        InvalidMenu: when the choice was made from data and there is no payload.
        CorruptArtifact: when the payload is not of this group.
    """
    operator = parse(name)
    if payload is None:
        return operator.encode(group, parts) if fit is None else operator.encode_at(group, parts, fit)
    try:
        stored, used = operator.decode(group, memoryview(payload))
    except (MissingDependency, MemoryError):
        raise
    except Exception as cause:  # the bytes may be anything, and operators may be anybody's
        raise CorruptArtifact(f"the stored bytes of {group.name} are not those of {name} ({cause})") from cause
    if used != len(payload):
        raise CorruptArtifact(f"the stored bytes of {group.name} are {len(payload)}, {name} takes {used}")
    return stored


def settings_of(operator: Operator) -> dict[str, Any]:
    """An operator's settings, by name."""
    fields = dataclasses.fields(operator)  # type: ignore[arg-type]
    return {field.name: getattr(operator, field.name) for field in fields if field.init}


def choice_name(operator: Operator) -> str:
    """Name of a choice: the operator and the settings that differ from their defaults.

    Example:
        >>> from qubo_compress.menu.quantize import Quantize
        >>> choice_name(Quantize(bits=4)), choice_name(Quantize(bits=4, sparsity=0.5))
        ('quantize(bits=4)', 'quantize(bits=4,sparsity=0.5)')
    """
    usual = {field.name: field.default for field in dataclasses.fields(operator)}  # type: ignore[arg-type]
    settings = [f"{name}={value!r}" for name, value in settings_of(operator).items() if value != usual[name]]
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
