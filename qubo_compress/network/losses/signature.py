"""A name for a caller's loss that identifies what it computes, so that a cache is never used for another loss."""

from __future__ import annotations

import functools
import hashlib
import inspect
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(...))


def loss_signature(loss: Any) -> str:
    """Name and digest of a loss: its code and everything it holds (closures, defaults, settings, weights by content).

    Anything that cannot be described, such as an open file, makes the name unique: its cache is never resumed.

    Example:
        >>> def scaled(factor):
        ...     return lambda outputs, targets: factor * outputs.sum(-1)
        >>> names = [loss_signature(scaled(factor)) for factor in (1.0, 1.0, 2.0)]
        >>> names[0] == names[1], names[0] == names[2]
        (True, False)
    """
    digest = hashlib.sha256(_described(loss, frozenset()).encode()).hexdigest()[:12]
    return f"{getattr(loss, '__qualname__', type(loss).__qualname__)}:{digest}"


def _described(value: Any, around: frozenset[int]) -> str:
    """A value as text, without memory addresses, which differ in every process."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"tensor{tuple(value.shape)}{value.dtype}{hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, (np.ndarray, np.generic)):
        return f"array{value.shape}{value.dtype}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if id(value) in around:
        return "itself"
    inside = around | {id(value)}
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_described(k, inside)}:{_described(v, inside)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"({','.join(_described(item, inside) for item in value)})"
    if isinstance(value, (set, frozenset)):
        return f"<{','.join(sorted(_described(item, inside) for item in value))}>"
    return _described_code(value, inside)


def _described_code(value: Any, inside: frozenset[int]) -> str:
    """A function, method, class or object as text."""
    if isinstance(value, functools.partial):
        return f"partial{_described((value.func, value.args, value.keywords), inside)}"
    if inspect.ismethod(value):
        return f"method{_described((value.__func__, value.__self__), inside)}"
    if inspect.isfunction(value):
        cells = [_held_by(cell) for cell in value.__closure__ or ()]
        held = (value.__defaults__, value.__kwdefaults__, cells, vars(value))
        return f"function{_code_text(value.__code__)}{_described(held, inside)}"
    if inspect.isclass(value) or inspect.isbuiltin(value) or inspect.ismodule(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
    if hasattr(value, "__dict__"):
        kind = type(value)
        theirs = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in ("torch", "builtins")]
        own = [_code_text(m.__code__) for base in theirs for m in vars(base).values() if inspect.isfunction(m)]
        return f"{kind.__module__}.{kind.__qualname__}{own}{_described(vars(value), inside)}"
    return f"{type(value).__qualname__}{uuid.uuid4()}"


def _held_by(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a closure variable that is not bound yet
        return None


def _code_text(code: Any) -> str:
    """A function's code as text, without the memory addresses of nested functions."""
    ordered = [sorted(c, key=repr) if isinstance(c, frozenset) else c for c in code.co_consts]
    constants = [_code_text(c) if hasattr(c, "co_code") else repr(c) for c in ordered]
    return f"{code.co_code.hex()}{code.co_names}{constants}"
