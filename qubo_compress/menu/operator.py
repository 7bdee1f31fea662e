"""The interface of operators: ways to store one group of tensors in fewer bytes.

A new operator is one new file in this folder: a frozen dataclass whose fields are its settings,
registered under its name. The name of a choice is the operator's name with its settings, and can be
parsed: ``parse("quantize(bits=4)")``.
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
from qubo_compress.errors import CorruptArtifact, InvalidMenu, MissingDependency, QuboCompressError
from qubo_compress.menu.storage.stored import Stored
from qubo_compress.menu.storage.streams import PlainReader, Reader
from qubo_compress.network.groups import Group


class Operator(ABC):
    """A frozen dataclass that turns a group into stored bytes and back.

    Every operator must define the abstract methods, and :meth:`read` or :meth:`decode`. The others are abilities, and
    their defaults mean "none".
    """

    operator_name: ClassVar[str]

    quick: ClassVar[bool] = False
    """Whether encoding is quick, given the weights and the result of :meth:`fit`.

    Such a choice need not stay in memory: it is encoded again when needed.
    """

    codable: ClassVar[bool] = True
    """Whether ``coded(of=...)`` accepts it."""

    unreliable: ClassVar[bool] = False
    """Whether it stores in cells that are read back with random errors."""

    whole_numbers: ClassVar[bool] = False
    """Whether its weights are whole numbers of ``code_bits`` bits times a step per output row, as integer kernels need.

    Only such choices take ``activations``.
    """

    takes_unseen_inputs: ClassVar[bool] = False
    """Whether it suits weights whose inputs are not observed, as those of an LSTM: they then count alike."""

    @abstractmethod
    def refusal(self, group: Group, parts: Sequence[Tensor]) -> str | None:
        """Why this operator does not suit the group, or None if it does."""

    @abstractmethod
    def encode(self, group: Group, parts: Sequence[Tensor]) -> Stored:
        """Store the members' values, given on the CPU in their own dtype.

        Raises:
            InvalidMenu: from :func:`needs_data`, if it needs data.
        """

    def read(self, group: Group, reader: Reader) -> Stored:
        """Inverse of ``encode(...).write(writer)``."""
        raise NotImplementedError(f"{type(self).__name__} has neither read() nor decode()")

    def decode(self, group: Group, data: memoryview) -> tuple[Stored, int]:
        """Inverse of ``encode(...).to_bytes()``: the stored group, and the number of bytes read."""
        reader = PlainReader(data)
        return self.read(group, reader), reader.used

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The statistics of the calibration data that it needs; none by default.

        Its choices cannot be encoded again from the weights alone, so their stored bytes travel with the plan.
        """
        return ()

    def encode_with(self, group: Group, parts: Sequence[Tensor], evidence: Mapping[Any, Any]) -> Stored:
        """Store the members' values, using statistic -> one value per member for every statistic in ``needs``."""
        return self.encode(group, parts)

    def at_price(self, price: float) -> Operator | None:
        """The same choice with bits that cost this many times as much, so codes that fill other bytes; None by default.

        What it stores is read by the choice itself.
        """
        return None

    def fit(self, stored: Any) -> bytes:
        """The numbers that ``encode`` searched for, recovered from the stored group; none by default."""
        return b""

    def encode_at(self, group: Group, parts: Sequence[Tensor], fit: bytes) -> Stored:
        """Exactly the group that ``encode`` stores, without its search.

        Args:
            group: what is stored.
            parts: its members' values, as encoded.
            fit: the result of :meth:`fit` on the stored group.
        """
        return self.encode(group, parts)

    def reference(self, group: Group, parts: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
        """The original function in the operator's own parameters, without rounding, if these differ from the network's.

        Displacements of such a group are relative to the reference, not to the original tensors.
        """
        return None

    @property
    def code_bits(self) -> int | None:
        """Bits of its codes: the setting ``bits``, if there is one."""
        return settings_of(self).get("bits")

    @property
    def written(self) -> str:
        """The name of the choice: the operator's name, with the settings that differ from their defaults."""
        usual = {field.name: field.default for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        settings = [f"{name}={value!r}" for name, value in settings_of(self).items() if value != usual[name]]
        return f"{self.operator_name}({','.join(settings)})" if settings else self.operator_name

    @property
    def activation_bits(self) -> int | None:
        """Bits to which it rounds the layer's inputs; None: it does not."""
        return None

    @classmethod
    def samples(cls) -> tuple[Operator, ...]:
        """Instances with the settings that the conformance suite must test."""
        return ()

    @classmethod
    def faithful(cls) -> tuple[Operator, float] | None:
        """The settings of highest fidelity, and their largest relative displacement.

        None if no settings come close, or if displacements mean nothing because the function changes.
        """
        return None


LONGEST_NAME = 1000
"""Most letters of a choice's name: parsing a name from a file takes time and memory that grow with its length."""

ACTIVATIONS = "activations"
"""The setting that any choice of whole numbers takes, and the operator that it stands for."""

PERCENTILE = "percentile"
"""The other setting of that operator."""

ALREADY_STORED = "already stored"
"""Key in the evidence for a group's choices that are already stored, by name."""


class Quick:
    """The base of quick operators in 0.4."""

    quick: ClassVar[bool] = True


def adopt(operator: object) -> None:
    """Adapt an operator's class that was written for 0.4, and the classes of its statistics."""
    adopt_kind(type(operator))
    for need in operator.needs if isinstance(operator, Operator) else ():
        older_plug_ins.adopt(type(need), Statistic, older_plug_ins.names_in(type(need)), {})


def adopt_kind(kind: type) -> None:
    """Adapt an operator that was written for 0.4, and each of its stored forms when it first appears."""
    known = older_plug_ins.names_in(kind)
    written = {"operator_name", "refusal", "encode", "decode"} <= known
    if written and older_plug_ins.adopt(kind, Operator, known, {"codable": "read" in known}):
        for name in ("encode", "encode_with", "encode_at", "decode"):
            setattr(kind, name, _adopting(getattr(kind, name)))


def _refuse_other_than_operators(kind: type) -> None:
    """Adapt an operator's class of 0.4; any other that does not inherit from :class:`Operator` is refused."""
    adopt_kind(kind)
    if not issubclass(kind, Operator):
        raise QuboCompressError(
            f"{kind.__qualname__} does not inherit from Operator: write class {kind.__name__}(qc.menu.Operator)"
        )


def _adopting(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of an older operator that returns a stored group, alone or with the bytes read."""

    @functools.wraps(method)
    def called(*given: Any, **named: Any) -> Any:
        found = method(*given, **named)
        stored = found[0] if type(found) is tuple else found
        whole = {"write": lambda form, writer: writer.raw(form.to_bytes()), "unreliable": "variances" in dir(stored)}
        older_plug_ins.adopt(type(stored), Stored, dir(stored), whole)
        return found

    return called


def __getattr__(name: str) -> Any:
    stored = dict.fromkeys(("Packed", "Parametrised", "Unreliable"), Stored)
    return older_plug_ins.renamed(__name__, {**stored, "DataDriven": Operator, "Reparametrised": Operator})(name)


operators: Registry[type[Operator]] = Registry("operator", "operator_name", _refuse_other_than_operators)


def looks_at_data(operator: Operator) -> bool:
    """Whether an operator needs statistics of the calibration data."""
    return bool(operator.needs)


def needs_data(operator: Operator) -> InvalidMenu:
    """The error if an operator is to store weights without its statistics."""
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
        payload: the stored bytes of a choice made from data.
        fit: the result of its operator's search on these values.

    Raises:
        InvalidMenu: if the choice was made from data and there is no payload.
        CorruptArtifact: if the payload does not belong to this group.
    """
    operator = parse(name)
    if payload is None:
        return operator.encode(group, parts) if fit is None else operator.encode_at(group, parts, fit)
    try:
        stored, used = operator.decode(group, memoryview(payload))
    except (MissingDependency, MemoryError):
        raise
    except Exception as cause:  # bytes and third-party operators are not trusted
        raise CorruptArtifact(f"the stored bytes of {group.name} are not those of {name} ({cause})") from cause
    if used != len(payload):
        raise CorruptArtifact(f"the stored bytes of {group.name} are {len(payload)}, {name} takes {used}")
    return stored


def settings_of(operator: Operator) -> dict[str, Any]:
    """An operator's settings: name -> value."""
    fields = dataclasses.fields(operator)  # type: ignore[arg-type]
    return {field.name: getattr(operator, field.name) for field in fields if field.init}


def choice_name(operator: Operator) -> str:
    """Name of a choice: the operator and the settings that differ from their defaults.

    Example:
        >>> from qubo_compress.menu.quantize import Quantize
        >>> choice_name(Quantize(bits=4)), choice_name(Quantize(bits=4, sparsity=0.5))
        ('quantize(bits=4)', 'quantize(bits=4,sparsity=0.5)')
    """
    return operator.written


def parse(name: str) -> Operator:
    """The operator that a choice name describes; inverse of :func:`choice_name`.

    Raises:
        UnknownName: when no such operator is registered.
        InvalidMenu: when the settings cannot be read.

    Example:
        >>> parse("quantize(bits=4,sparsity=0.5)")
        Quantize(bits=4, sparsity=0.5)
        >>> parse("quantize(bits=8,activations=8)")
        Activations(of='quantize(bits=8)', bits=8, percentile=None)
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
        around, more = settings.pop(ACTIVATIONS, None), {}
        if around is not None and PERCENTILE in settings:
            more[PERCENTILE] = settings.pop(PERCENTILE)
        operator: Operator = kind(**settings)
        if around is not None:
            wrapper: Any = operators.get(ACTIVATIONS)
            operator = wrapper(of=choice_name(operator), bits=around, **more)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as cause:
        raise InvalidMenu(f"{name!r} is not a choice of operator {head!r}: {cause}") from cause
    return operator


def values_of(part: Tensor) -> Tensor:
    """(rows, columns) float32 copy on the CPU; a scalar or vector becomes one row."""
    flat = part.detach().to("cpu", torch.float32)
    return flat.reshape(flat.shape[0], -1) if flat.ndim > 1 else flat.reshape(1, -1)
