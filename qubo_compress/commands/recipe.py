"""Reads a recipe: YAML from anywhere, so that sizes, types and names are checked before anything else happens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qubo_compress._internal.reader import opened, printable
from qubo_compress.commands.settings import Recipe, Setting, homes, sections, settings
from qubo_compress.commands.values import value_from
from qubo_compress.errors import WrongUsage, unknown_name

LARGEST = 100_000
"""Bytes of a recipe."""

DEEPEST = 8
"""Most lists and tables within each other."""


@dataclass(frozen=True)
class Said:
    """A value, and where it was said.

    Attributes:
        value: of a setting.
        where: such as ``"recipe.yaml, line 3"`` or ``"--ratio"``.
    """

    value: Any
    where: str


def read_recipe(path: Path) -> dict[str, Said]:
    """Key -> value and place of a recipe.

    Raises:
        WrongUsage: when it is no recipe; the message names the line, and the nearest name for an unknown key.
        FileNotFoundError, StorageError, CorruptArtifact: when it cannot be read.
    """
    with opened(path, "a recipe") as handle:
        data = handle.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise WrongUsage(f"{path}: a recipe has at most {LARGEST:,} bytes, and this file has more")
    try:
        text = data.decode("utf-8")
        _refuse_tricks(path, text)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as cause:
        raise WrongUsage(f"{path} is not YAML ({printable(cause)})") from cause
    if node is None:
        return {}
    reader = _Reader(path, loader, {setting.key: setting for setting in settings()})
    return dict(reader.section(node, "", Recipe))


def _refuse_tricks(path: Path, text: str) -> None:
    """Refuse references, which unfold to any size, and deep nesting, before a tree is built."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise WrongUsage(f"{path}, line {event.start_mark.line + 1}: a recipe has no references (*{event.anchor})")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if depth > DEEPEST:
            raise WrongUsage(f"{path}, line {event.start_mark.line + 1}: a recipe is nested at most {DEEPEST} deep")


@dataclass(frozen=True)
class _Reader:
    """Walks the tree of a recipe, which knows its lines."""

    path: Path
    loader: yaml.SafeLoader
    known: Mapping[str, Setting]

    def section(self, node: yaml.Node, prefix: str, kind: type) -> Iterator[tuple[str, Said]]:
        """The settings of a section."""
        short: str | None = kind.short  # type: ignore[attr-defined]
        if not isinstance(node, yaml.MappingNode):
            if short is None:
                what = (
                    f"{prefix.rstrip('.')} must be a table of settings" if prefix else "a recipe is a table of settings"
                )
                raise WrongUsage(f"{self.where(node)}: {what}; got {_shown(node)}")
            yield self.setting(node, prefix + short)
            return
        below = sections(kind)
        names = [key.removeprefix(prefix) for key in self.known if key.startswith(prefix)]
        names = list(dict.fromkeys(name.partition(".")[0] for name in names))
        for name, found in self.entries(node):
            if name not in names:
                what = f"key of {prefix.rstrip('.')}" if prefix else "key"
                elsewhere = homes(name)
                said = f"unknown {what} {name!r}; {elsewhere}" if elsewhere else unknown_name(what, name, names)
                raise WrongUsage(f"{self.where(found[0])}: {said}")
            if name in below:
                yield from self.section(found[1], f"{prefix}{name}.", below[name])
            else:
                yield self.setting(found[1], prefix + name)

    def entries(self, node: yaml.MappingNode) -> Iterator[tuple[str, tuple[yaml.Node, yaml.Node]]]:
        """(name, (node of the name, node of the value)) of a table, each name once."""
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise WrongUsage(f"{self.where(key)}: a key is a name; got {_shown(key)}")
            if key.value in seen:
                first = seen[key.value].start_mark.line + 1
                raise WrongUsage(f"{self.where(key)}: {printable(key.value)} is given twice, first in line {first}")
            seen[key.value] = key
            yield key.value, (key, value)

    def setting(self, node: yaml.Node, key: str) -> tuple[str, Said]:
        """A key, and the value that a node gives it; empty means nothing was said."""
        try:
            given = self.plain(node)
            value = None if given is None else value_from(self.known[key], given)
        except (ValueError, yaml.YAMLError) as cause:
            raise WrongUsage(f"{self.where(node)}: {key} {printable(cause)}") from cause
        return key, Said(value, self.where(node))

    def plain(self, node: yaml.Node) -> Any:
        """The value of a node, in plain lists, tables and scalars."""
        if isinstance(node, yaml.MappingNode):
            return {name: self.plain(found) for name, (_, found) in self.entries(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item) for item in node.value]
        return self.loader.construct_object(node)  # type: ignore[no-untyped-call]

    def where(self, node: yaml.Node) -> str:
        """The place of a node, for messages."""
        return f"{self.path}, line {node.start_mark.line + 1}"


def _shown(node: yaml.Node) -> str:
    kinds = {yaml.SequenceNode: "a list", yaml.MappingNode: "a table"}
    return kinds.get(type(node)) or repr(printable(node.value))
