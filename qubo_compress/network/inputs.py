"""What a network is given: a tensor, a tuple or a dict of tensors, and how it is called with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

IGNORED = -100
"""Whole-number targets of this value are left out, as in torch's losses."""


Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


def tensors_of(inputs: Any) -> tuple[Tensor, ...]:
    """The tensors in a Tensor, tuple or dict."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return tuple(value for value in values if isinstance(value, Tensor))


def map_tensors(inputs: Any, change: Any) -> Any:
    """Apply ``change`` to every tensor of a Tensor, tuple, list or dict, keeping the form."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: map_tensors(value, change) for name, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*(map_tensors(value, change) for value in inputs))
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(map_tensors(value, change) for value in inputs)
    return inputs


def call(model: Any, inputs: Inputs) -> Any:
    """``model(x)``, ``model(*x)`` or ``model(**x)``."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)
