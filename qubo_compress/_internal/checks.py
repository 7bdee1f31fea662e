"""Checks of arguments before any work is spent on them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from qubo_compress.errors import InvalidOption, QuboCompressError, UnknownOption, nearest

Class = TypeVar("Class", bound=type)

_NUMBERS = {"int", "float", "bool", "complex"}


def whole(name: str, value: Any, least: int = 0, error: type[QuboCompressError] = InvalidOption) -> int:
    """Any kind of integer as a Python int.

    Raises:
        InvalidOption: for anything else, and below ``least``; or the given error class.

    Example:
        >>> import numpy as np
        >>> whole("seed", np.int64(3)), whole("seed", np.array(3))
        (3, 3)
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    if isinstance(value, (bool, np.bool_)) or found < least:
        raise error(f"{name} must be a whole number of at least {least}; got {value!r}")
    return found


def refuse_unknown(call: Callable[..., Any], options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keyword arguments that a call does not have, under the name of the call that the user made.

    Args:
        call: the function or class; its own arguments are known.
        options: its ``**options``.
        known: their names.

    Raises:
        UnknownOption: naming the nearest one.

    Example:
        >>> def draw(*, seed: int = 0, **options: int) -> None:
        ...     refuse_unknown(draw, options, ("count",))
        >>> draw(sed=3)
        Traceback (most recent call last):
        qubo_compress.errors.UnknownOption: draw has no argument 'sed'; did you mean 'seed'? It has: seed, count
    """
    own = [name for name, value in inspect.signature(call).parameters.items() if value.kind is not value.VAR_KEYWORD]
    allowed = list(dict.fromkeys([*own, *known]))
    for name in options:
        if name not in allowed:
            raise UnknownOption(
                f"{call.__name__} has no argument {name!r}{nearest(name, allowed) or '.'} It has: {', '.join(allowed)}"
            )


def plain(value: Any) -> Any:
    """Numpy and torch numbers as Python numbers, alone or in a tuple or list; anything else unchanged.

    Example:
        >>> plain(np.int64(4)), plain((np.float64(0.5), None)), plain(np.array(True))
        (4, (0.5, None), True)
    """
    if type(value) in (tuple, list):
        return type(value)(plain(item) for item in value)
    if isinstance(value, np.generic) or (_is_array(value) and value.ndim == 0):
        return value.item()
    return value


def accepts_numbers(settings: Class) -> Class:
    """Class decorator for a dataclass of settings: converts numpy and torch numbers to Python's.

    An array in place of a number is refused, even one of a single element: it would pass comparisons and fail late.

    Raises:
        InvalidOption: in the constructor, for an array in place of a number.

    Example:
        >>> @accepts_numbers
        ... @dataclasses.dataclass(frozen=True)
        ... class Settings:
        ...     bits: int
        >>> Settings(np.int64(4))
        Settings(bits=4)
        >>> Settings(np.array([4]))
        Traceback (most recent call last):
        qubo_compress.errors.InvalidOption: bits of Settings must be one number; got an array of shape (1,)
    """
    construct = vars(settings)["__init__"]
    if hasattr(construct, "__wrapped__"):  # registered under a second name
        return settings
    fields = {field.name: str(field.type) for field in dataclasses.fields(settings) if field.init}
    numbers = {name for name, kind in fields.items() if set(kind.replace("None", "int").split(" | ")) <= _NUMBERS}

    def checked(name: str, value: Any) -> Any:
        found = plain(value)
        if fields[name].startswith("tuple[") and _is_array(found) and found.ndim == 1:
            return tuple(found.tolist())
        if name in numbers and _is_array(found):
            shape = tuple(found.shape)
            raise InvalidOption(f"{name} of {settings.__name__} must be one number; got an array of shape {shape}")
        return found

    @functools.wraps(construct)
    def constructed(self: Any, *args: Any, **named: Any) -> None:
        given = [checked(name, value) for name, value in zip(fields, args, strict=False)]
        construct(
            self,
            *given,
            *args[len(given) :],
            **{name: checked(name, value) if name in fields else value for name, value in named.items()},
        )

    setattr(settings, "__init__", constructed)  # noqa: B010 - mypy rejects the plain assignment
    return settings


def _is_array(value: Any) -> bool:
    return hasattr(value, "ndim") and hasattr(value, "item") and hasattr(value, "shape")
