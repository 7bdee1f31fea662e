"""A typed table of named plug-ins: operators, metrics and solvers register themselves in one each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

from qubo_compress._internal.checks import accepts_numbers
from qubo_compress.errors import QuboCompressError, unknown_name

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Name -> plug-in, with the nearest name in the error for an unknown one.

    Args:
        kind: what the entries are, as it shall stand in messages.

    Example:
        >>> shapes: Registry[int] = Registry("shape")
        >>> shapes.add("square", 4)
        >>> shapes.get("square"), shapes.names()
        (4, ('square',))
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register ``entry``; a name already taken by something else is refused.

        Where it is a dataclass of settings, numbers of numpy are taken as Python's own from then on.
        """
        if self._entries.get(name, entry) is not entry:
            raise QuboCompressError(f"{self._kind} {name!r} is already registered; choose another name")
        if isinstance(entry, type) and dataclasses.is_dataclass(entry):
            accepts_numbers(entry)
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator form of :meth:`add`."""

        def decorate(entry: Entry) -> Entry:
            self.add(name, entry)
            return entry

        return decorate

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
