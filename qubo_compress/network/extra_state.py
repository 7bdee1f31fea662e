"""Entries of ``state_dict()`` other than parameters and buffers: extra state, and what modules pack themselves.

Modules may return anything from ``get_extra_state``, and quantized ones write packed weights into the state dict.
Numbers, text and tensors are stored without pickle; everything else is refused by name.

An entry is stored as its total length, the length of a description, the description in JSON, and the bytes of its
tensors. Blanks after the description leave room for counters that grow.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qubo_compress._internal.reader import parsed_json
from qubo_compress.errors import InvalidModel

DEEPEST = 40
"""Containers within containers."""

_ROOM, _STEP = 16, 64
_LENGTH = 4
_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "size"}
_MAPPINGS: dict[type, str] = {dict: "dict", OrderedDict: "ordered"}
_PLAIN = (type(None), bool, int, float, str)
_PER_TENSOR, _PER_CHANNEL = (torch.per_tensor_affine, torch.per_tensor_symmetric), (torch.per_channel_affine,)


def extra_entries(model: nn.Module) -> dict[str, Any]:
    """Name -> value of every entry in the state dict that is neither a parameter nor a buffer, nor a view of one.

    Raises:
        InvalidModel: when a module's own code raises.

    Example:
        >>> extra_entries(nn.Linear(2, 2))
        {}
    """
    if not any(_has_own_state(module) for module in model.modules()):
        return {}
    try:
        state = model.state_dict()
    except Exception as cause:
        raise InvalidModel(
            f"the state dict of this {type(model).__name__} cannot be made: {type(cause).__name__}: {cause}"
        ) from cause
    known = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    places = {_place(tensor) for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()}
    return {
        name: value
        for name, value in state.items()
        if name not in known and not (isinstance(value, Tensor) and value.numel() and _place(value) in places)
    }


def _has_own_state(module: nn.Module) -> bool:
    kind = type(module)
    changed = any(
        getattr(kind, name) is not getattr(nn.Module, name)
        for name in ("get_extra_state", "_save_to_state_dict", "state_dict")
    )
    return changed or bool(module._state_dict_hooks)


def _place(tensor: Tensor) -> object:
    strange = tensor.layout != torch.strided or tensor.is_meta
    return id(tensor) if strange else tensor.untyped_storage().data_ptr()


def restore(model: nn.Module, values: Mapping[str, Any]) -> None:
    """Write values back where :func:`extra_entries` found them; changes the model."""
    if values:
        state = model.state_dict()  # its metadata has the versions of the modules
        state.update(values)
        model.load_state_dict(state)


def stored_bytes(name: str, value: Any) -> bytes:
    """The stored bytes of an entry.

    Raises:
        InvalidModel: when it holds something that only pickle could store.

    Example:
        >>> read_stored(memoryview(stored_bytes("count", {"steps": (1, 2.5, None)})))
        ({'steps': (1, 2.5, None)}, 72)
    """
    parts: list[bytes] = []
    text = json.dumps(_described(name, value, parts, 0), separators=(",", ":")).encode()
    room = -(-(len(text) + _ROOM) // _STEP) * _STEP
    body = room.to_bytes(_LENGTH, "little") + text.ljust(room) + b"".join(parts)
    return (len(body)).to_bytes(_LENGTH, "little") + body


def read_stored(data: memoryview) -> tuple[Any, int]:
    """Inverse of :func:`stored_bytes`: the value, with tensors on the CPU, and the bytes read.

    Raises:
        ValueError: when the bytes are malformed.
    """
    length = int.from_bytes(data[:_LENGTH], "little")
    body = data[_LENGTH : _LENGTH + length]
    room = int.from_bytes(body[:_LENGTH], "little")
    if len(body) != length or room > length - _LENGTH:
        raise ValueError("the extra state is cut short")
    source = _Source(body[_LENGTH + room :])
    value = _restored(parsed_json(bytes(body[_LENGTH : _LENGTH + room]), 4 * DEEPEST), source)
    if source.data:
        raise ValueError(f"{len(source.data)} bytes of the extra state are left over")
    return value, _LENGTH + length


class _Source:
    """The bytes of the tensors, read one after the other."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def take(self, count: int) -> bytearray:
        if count > len(self.data):
            raise ValueError("the extra state claims more bytes than it has")
        found, self.data = bytearray(self.data[:count]), self.data[count:]
        return found


def _described(name: str, value: Any, parts: list[bytes], depth: int) -> Any:
    """A value as JSON; the bytes of tensors are appended to the parts."""
    kind = type(value)
    if depth > DEEPEST:
        raise InvalidModel(f"{name} is nested more than {DEEPEST} deep, or holds itself; it cannot be stored")
    if kind is int and not -(2**63) <= value < 2**64:
        raise InvalidModel(f"{name} holds a whole number beyond 64 bits, which cannot be stored")
    if kind in _PLAIN:
        return value
    if kind in _CONTAINERS:
        return {_CONTAINERS[kind]: [_described(name, item, parts, depth + 1) for item in value]}
    if kind in _MAPPINGS:
        both = [[_described(name, part, parts, depth + 1) for part in item] for item in value.items()]
        return {_MAPPINGS[kind]: both}
    if kind in (bytes, bytearray):
        parts.append(bytes(value))
        return {kind.__name__: len(value)}
    if kind is torch.dtype:
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        parts.append(np.ascontiguousarray(value).tobytes())
        return {"array" if kind is np.ndarray else "scalar": [value.dtype.str, list(value.shape)]}
    if kind in (Tensor, nn.Parameter) and not value.is_meta and value.layout == torch.strided:
        return _described_tensor(name, value.detach().cpu(), parts, depth)
    raise InvalidModel(
        f"{name} holds {_said(value)}, which only pickle could store, and files of this library hold no pickle; "
        "let get_extra_state return numbers, text, bytes, tensors, and lists, tuples and dicts of these"
    )


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor without data" if value.is_meta else f"a {type(value).__name__} of layout {value.layout}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _described_tensor(name: str, tensor: Tensor, parts: list[bytes], depth: int) -> Any:
    if not tensor.is_quantized:
        parts.append(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
        return {"tensor": [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]}
    scheme = tensor.qscheme()
    if scheme in _PER_TENSOR:
        grid: list[Any] = [tensor.q_scale(), tensor.q_zero_point()]
    elif scheme in _PER_CHANNEL:
        grid = [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), tensor.q_per_channel_axis()]
    else:
        grid = []
    if not grid or tensor.dtype not in (torch.qint8, torch.quint8):
        raise InvalidModel(f"{name} holds a tensor of {tensor.dtype} quantized as {scheme}, which cannot be stored")
    told = [_described(name, item, parts, depth + 1) for item in (tensor.int_repr(), *grid)]
    return {"quantized": [str(tensor.dtype).removeprefix("torch."), *told]}


def _restored(described: Any, source: _Source) -> Any:
    """A value from its JSON and the bytes of its tensors: the inverse of :func:`_described`."""
    if not isinstance(described, dict):
        if isinstance(described, list):
            raise ValueError("the extra state holds a bare list")
        return described
    ((kind, told),) = described.items()
    if kind not in _RESTORERS:
        raise ValueError(f"extra state of kind {kind!r} is not known")
    return _RESTORERS[kind](told, source)


def _items(told: Any, source: _Source) -> list[Any]:
    if not isinstance(told, list):
        raise ValueError("the extra state has no items where it should")
    return [_restored(item, source) for item in told]


def _pairs(told: Any, source: _Source) -> list[tuple[Any, Any]]:
    pairs = [tuple(_items(item, source)) for item in told]
    return [(key, value) for key, value in pairs]


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"there is no type {name!r}")
    return found


def _shape(told: Any) -> tuple[int, ...]:
    if not (isinstance(told, list) and len(told) <= 64 and all(type(n) is int and n >= 0 for n in told)):
        raise ValueError(f"there is no shape {told!r}")
    return tuple(told)


def _tensor(told: Any, source: _Source) -> Tensor:
    dtype, shape = _dtype(told[0]), _shape(told[1])
    data = source.take(math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.zeros(shape, dtype=dtype)


def _array(told: Any, source: _Source) -> np.ndarray[Any, Any]:
    dtype, shape = np.dtype(str(told[0])), _shape(told[1])
    if dtype.kind not in "biufc":
        raise ValueError(f"there is no type {dtype}")
    return np.frombuffer(source.take(math.prod(shape) * dtype.itemsize), dtype=dtype).reshape(shape)


def _quantized(told: Any, source: _Source) -> Tensor:
    dtype, (codes, *grid) = _dtype(told[0]), _items(told[1:], source)
    if not isinstance(codes, Tensor):
        raise ValueError("a quantized tensor has no codes")
    # Built by quantizing its own grid values: torch has no other way from codes to a quantized tensor.
    if len(grid) == 2:
        values = (codes.double() - int(grid[1])) * float(grid[0])
        made = torch.quantize_per_tensor(values.float(), float(grid[0]), int(grid[1]), dtype)
    else:
        scales, zeros, axis = grid
        form = [-1 if n == axis else 1 for n in range(codes.ndim)]
        values = (codes.double() - zeros.double().reshape(form)) * scales.double().reshape(form)
        made = torch.quantize_per_channel(values.float(), scales, zeros, axis, dtype)
    if not torch.equal(made.int_repr(), codes):
        raise ValueError("a quantized tensor cannot be made again from its codes")
    return made


_RESTORERS: dict[str, Callable[[Any, _Source], Any]] = {
    "list": _items,
    "tuple": lambda told, source: tuple(_items(told, source)),
    "size": lambda told, source: torch.Size(_items(told, source)),
    "dict": lambda told, source: dict(_pairs(told, source)),
    "ordered": lambda told, source: OrderedDict(_pairs(told, source)),
    "bytes": lambda told, source: bytes(source.take(told)),
    "bytearray": lambda told, source: source.take(told),
    "dtype": lambda told, _: _dtype(told),
    "array": _array,
    "scalar": lambda told, source: _array(told, source)[()],
    "tensor": _tensor,
    "quantized": _quantized,
}
