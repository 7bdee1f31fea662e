"""Many arrays passed to kernels as one pointer.

Numba passes an array as seven words, and a tuple of arrays as seven words each, to every helper: with two dozen arrays,
these are most of the code to compile. A :class:`KernelArguments` stores the addresses and shapes of its arrays in
memory once, and kernels read the ones they use.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.typing.templates import AttributeTemplate
from numba.extending import NativeValue, infer_getattr, lower_getattr_generic, register_model, typeof_impl, unbox

_SHAPE, _STRIDES = 5, 6
"""Positions in numba's model of an array, after owner, parent, count, bytes per element and address."""


class KernelArgumentsType(types.Type):  # type: ignore[misc]
    """The numba type of a :class:`KernelArguments`: its class, and the type and position of every field.

    Args:
        class_name: name of the class.
        members: (name, numba type, first word) of each field.
    """

    def __init__(self, class_name: str, members: tuple[tuple[str, Any, int], ...]) -> None:
        self.members = members
        super().__init__(name=f"{class_name}({', '.join(f'{name}: {kind}' for name, kind, _ in members)})")


@dataclasses.dataclass(frozen=True, eq=False)
class KernelArguments:
    """Base of frozen dataclasses that kernels take: fields are contiguous arrays, whole numbers and real numbers.

    Kernels may change the elements of the arrays. Read-only and writable arrays have the same type, so a kernel is
    compiled only once.
    """

    def __post_init__(self) -> None:
        words: list[int] = []
        members: list[tuple[str, Any, int]] = []
        for field in dataclasses.fields(self):
            kind, layout = _laid_out(getattr(self, field.name), field.type in (float, "float"))
            members.append((field.name, kind, len(words)))
            words += layout
        memory = np.array(words, dtype=np.int64)
        object.__setattr__(self, "_memory", memory)
        object.__setattr__(self, "_address", memory.ctypes.data)
        object.__setattr__(self, "_numba_type_", KernelArgumentsType(type(self).__name__, tuple(members)))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy or a pickle is built from the fields, so it has an address of its own."""
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def _laid_out(value: Any, real: bool) -> tuple[Any, list[int]]:
    """Numba type and words of a field."""
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise ValueError(f"kernels take contiguous arrays; got strides {value.strides} for shape {value.shape}")
        kind = types.Array(_element_of(value), value.ndim, "C")
        return kind, [value.ctypes.data, *value.shape]
    if real:
        return types.float64, [int(np.float64(value).view(np.int64))]
    return types.int64, [int(value)]


def _element_of(array: npt.NDArray[Any]) -> Any:
    return types.boolean if array.dtype == np.bool_ else getattr(types, array.dtype.name)


@typeof_impl.register(KernelArguments)
def _type_of(value: KernelArguments, _context: Any) -> KernelArgumentsType:
    return value._numba_type_  # type: ignore[attr-defined,no-any-return]


@register_model(KernelArgumentsType)
class _Pointer(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, models: Any, kind: KernelArgumentsType) -> None:
        super().__init__(models, kind, ir.IntType(64).as_pointer())  # type: ignore[no-untyped-call]


@unbox(KernelArgumentsType)  # type: ignore[no-untyped-call,untyped-decorator]
def _unboxed(_kind: KernelArgumentsType, value: Any, c: Any) -> NativeValue:
    address = c.pyapi.object_getattr_string(value, "_address")
    number = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(  # type: ignore[no-untyped-call]
        c.builder.inttoptr(number, ir.IntType(64).as_pointer())
    )


@infer_getattr
class _Members(AttributeTemplate):  # type: ignore[misc]
    key = KernelArgumentsType

    def generic_resolve(self, kind: KernelArgumentsType, name: str) -> Any:  # type: ignore[override]
        """Type of a field; None if there is no such field."""
        return next((member for field, member, _ in kind.members if field == name), None)


@lower_getattr_generic(KernelArgumentsType)  # type: ignore[no-untyped-call,untyped-decorator]
def _member(context: Any, builder: Any, kind: KernelArgumentsType, pointer: Any, name: str) -> Any:
    """A field, read from constant memory, so that the compiler may hoist the read out of loops."""

    def word(number: int) -> Any:
        loaded = builder.load(builder.gep(pointer, [ir.Constant(ir.IntType(64), number)], inbounds=True))
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    member, place = next((member, place) for field, member, place in kind.members if field == name)
    if member is types.int64:
        return word(place)
    if member is types.float64:
        return builder.bitcast(word(place), ir.DoubleType())
    data = builder.inttoptr(word(place), context.get_data_type(member.dtype).as_pointer())
    lengths = [word(place + 1 + axis) for axis in range(member.ndim)]
    size = context.get_abi_sizeof(context.get_data_type(member.dtype))
    step, steps = ir.Constant(ir.IntType(64), size), list[Any]()
    for length in reversed(lengths):
        steps.insert(0, step)
        step = builder.mul(step, length)
    count = lengths[0]
    for length in lengths[1:]:
        count = builder.mul(count, length)
    # Without an owner and a parent: Python keeps the arrays alive during the call.
    array = ir.Constant(context.get_value_type(member), None)
    values = (count, ir.Constant(ir.IntType(64), size), data)
    for position, value in enumerate(values, start=2):
        array = builder.insert_value(array, value, position)
    for axis in range(member.ndim):
        array = builder.insert_value(array, lengths[axis], [_SHAPE, axis])
        array = builder.insert_value(array, steps[axis], [_STRIDES, axis])
    return array
