"""A typed table of named plug-ins; operators, metrics and solvers have one each."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, overload

from qubo_compress._internal.checks import accepts_numbers
from qubo_compress.errors import QuboCompressError, unknown_name

Entry = TypeVar("Entry")
Class = TypeVar("Class")


class Registry(Generic[Entry]):
    """Name -> plug-in; the error for an unknown name suggests the nearest.

    Args:
        kind: what messages call an entry.
        named_by: the attribute in which a class states its name.
        adopt: brings a class up to date that was written for an older release.

    Example:
        >>> shapes: Registry[int] = Registry("shape")
        >>> shapes.add("square", 4)
        >>> shapes.get("square"), shapes.names()
        (4, ('square',))
    """

    def __init__(self, kind: str, named_by: str = "name", adopt: Callable[[type], object] = id) -> None:
        self._kind = kind
        self._adopt = adopt
        self._named_by = named_by
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register ``entry``; a name already taken by something else is refused.

        If it is a dataclass of settings, it accepts numpy numbers from then on.
        """
        if self._entries.get(name, entry) is not entry:
            raise QuboCompressError(f"{self._kind} {name!r} is already registered; choose another name")
        if isinstance(entry, type):
            self._adopt(entry)
            if dataclasses.is_dataclass(entry):
                accepts_numbers(entry)
        self._entries[name] = entry

    @overload
    def register(self, entry: str) -> Callable[[Class], Class]: ...

    @overload
    def register(self, entry: str, under: Class) -> Class: ...

    @overload
    def register(self, entry: Class) -> Class: ...

    def register(self, entry: Any, under: Any = None) -> Any:
        """Decorator: ``@register`` on a class that states its name, ``@register("name")`` on anything else.

        ``register("name", entry)`` is :meth:`add`.

        Raises:
            QuboCompressError: when a class has no name, or the name is taken.

        Example:
            >>> shapes: Registry[type] = Registry("shape")
            >>> @shapes.register
            ... class Square:
            ...     name = "square"
            >>> shapes.names()
            ('square',)
        """
        if isinstance(entry, str):
            if under is None:
                return lambda given: self.register(entry, given)
            self.add(entry, under)
            return under
        name = getattr(entry, self._named_by, None)
        if not isinstance(name, str):
            raise QuboCompressError(
                f"{entry!r} does not say its name: give it {self._named_by} = '...', or write @register('...')"
            )
        self.add(name, entry)
        return entry

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            UnknownName: when there is none; the message names the nearest.
        """
        if not isinstance(name, str) or name not in self._entries:
            raise unknown_name(self._kind, name, self._entries)
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._entries))


def import_plug_ins(package: str, path: Iterable[str]) -> None:
    """Import every module of a package and of its families, so that all plug-ins register themselves.

    So a new operator, metric or solver is one new file, without an edit elsewhere.

    Args:
        package: its ``__name__``.
        path: its ``__path__``.
    """
    for module in pkgutil.walk_packages(path, f"{package}."):
        importlib.import_module(module.name)
