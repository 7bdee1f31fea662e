"""Plug-ins written for 0.4, whose classes named no base class: they work for one more release, and warn."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC
from collections.abc import Callable, Collection, Mapping
from typing import Any


def adopt(kind: type, base: type[ABC], known: Collection[str], given: Mapping[str, Any]) -> bool:
    """Make a class count as one of ``base``, in place, unless it is one: what it lacks it takes from there.

    Args:
        kind: the class.
        base: what it should have inherited from.
        known: what its objects have.
        given: replacements for attributes of the base that it lacks.

    Returns:
        Whether there was anything to do; then a warning says what to change.
    """
    # What lacks an abstract method is no plug-in of any release: nothing may be written to such a class.
    if issubclass(kind, base) or not base.__abstractmethods__ <= {*known, *given}:
        return False
    for name, default in {**vars(base), **given}.items():
        if not name.startswith("_") and name not in known:
            setattr(kind, name, default)
    base.register(kind)
    warnings.warn(
        f"{kind.__qualname__} names no base class, as plug-ins of 0.4: write class {kind.__name__}({base.__name__}) "
        f"with {base.__name__} of {base.__module__}, which the next release asks for",
        DeprecationWarning,
        stacklevel=5,
    )
    return True


def names_in(kind: type) -> set[str]:
    """What objects of a class have: its attributes, and fields of a dataclass without a default."""
    return set(dir(kind)).union(*(inspect.get_annotations(parent) for parent in kind.__mro__))


def renamed(module: str, old: Mapping[str, Any]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` for names of 0.4: what took their place, after a warning."""

    def found(name: str) -> Any:
        if name not in old:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = old[name]
        warnings.warn(
            f"{module}.{name} is now {new.__module__}.{new.__qualname__}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return new

    return found
