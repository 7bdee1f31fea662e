"""What a command was asked to do, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qubo_compress._internal.files import refuse_unwritable
from qubo_compress.commands.recipe import Said, read_recipe
from qubo_compress.commands.settings import Recipe, built, settings, value_of
from qubo_compress.errors import StorageError, WrongUsage

SIZES = ("budget.ratio", "budget.bytes", "budget.bits_per_weight")
"""Exactly one of them is in force: one given as an option replaces another one of the recipe."""


@dataclass(frozen=True)
class CommandCall:
    """The settings of one call.

    Attributes:
        recipe: all settings.
        places: key -> where its value was said.
        force: whether files that exist may be replaced.
        dry_run: whether to stop before any work is spent.
        progress: whether to show progress.
        file: given without an option, for commands that take one.
    """

    recipe: Recipe
    places: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    dry_run: bool = False
    progress: bool = True
    file: Path | None = None

    def where(self, *keys: str) -> str:
        """Where the first of some settings was given, or else its option, for messages."""
        given = [self.places[key] for key in keys if key in self.places]
        return given[0] if given else {setting.key: setting.about.option for setting in settings()}[keys[0]]

    def needed(self, key: str) -> Any:
        """The value of a setting.

        Raises:
            WrongUsage: when it was not given.
        """
        value = value_of(self.recipe, key)
        if value is None:
            option = {setting.key: setting.about for setting in settings()}[key]
            raise WrongUsage(f"{key} is missing: give it in a recipe, or as {option.option}. {option.help}")
        return value

    def outputs(self, *names: str) -> dict[str, Path]:
        """Name -> path of the files to write among these, checked before any work is spent.

        Raises:
            StorageError: when one exists and may not be replaced, or certainly cannot be written.
        """
        found = {name: getattr(self.recipe.outputs, name) for name in names}
        found = {name: path for name, path in found.items() if path is not None}
        if len(set(found.values())) < len(found):
            raise WrongUsage(f"two outputs have one name: {', '.join(f'{n}={p}' for n, p in found.items())}")
        for name, path in found.items():
            if name != "export" or not path.is_dir():
                refuse_unwritable(path)
            if path.exists() and not self.force:
                raise StorageError(f"{path} exists ({self.where(f'outputs.{name}')}); add --force to replace it")
        return found

    def output(self, name: str) -> Path:
        """The path of the one file that a command writes; see :meth:`outputs`."""
        self.needed(f"outputs.{name}")
        return self.outputs(name)[name]


@dataclass(frozen=True)
class Reply:
    """What a command prints when it is done.

    Attributes:
        values: for ``--json``.
        shown: lines of text, or anything that rich prints.
        code: exit code.
    """

    values: Mapping[str, Any]
    shown: Sequence[Any]
    code: int = 0


def call_of(recipe_path: Path | None, options: Mapping[str, Said], **behaviour: Any) -> CommandCall:
    """The settings of a recipe, overridden by options.

    Raises:
        WrongUsage: see :func:`qubo_compress.commands.recipe.read_recipe`.
    """
    said = {} if recipe_path is None else read_recipe(recipe_path)
    if any(key in options for key in SIZES):
        said = {key: value for key, value in said.items() if key not in SIZES}
    said |= options
    places = {key: value.where for key, value in said.items() if value.value is not None}
    return CommandCall(built({key: value.value for key, value in said.items()}), places, **behaviour)


def plain(value: Any) -> Any:
    """A value for JSON: paths as text, tuples as lists, numbers that are not finite as null.

    Example:
        >>> plain({"loss": float("nan"), "path": Path("a"), "bits": (2, 4)})
        {'loss': None, 'path': 'a', 'bits': [2, 4]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
