"""The options of a command, as the signature that Typer reads, made from the settings that it uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qubo_compress._internal.reader import printable
from qubo_compress.commands.recipe import Said
from qubo_compress.commands.settings import Setting, settings
from qubo_compress.commands.values import value_of_text
from qubo_compress.errors import WrongUsage

PANELS = {
    "": "General", "budget": "Budget", "menu": "Menu", "solver": "Solver", "search": "Search",
    "recovery": "Recovery", "export": "Export", "outputs": "Files",
}  # fmt: skip
"""Section -> heading in the help."""

SEPARATOR = "__"
"""Stands for the dot of a key in the name of an argument."""

BEHAVIOUR: Mapping[str, tuple[str, str]] = {
    "force": ("--force", "Replace files that exist."),
    "dry_run": ("--dry-run", "Check everything, say how long the measurement would take, and stop."),
    "as_json": ("--json", "Print the answer as JSON."),
    "quiet": ("--quiet", "Show no progress."),
    "traceback": ("--traceback", "Show where an error was raised."),
}


def with_options(
    run: Callable[[dict[str, Any]], None], used: Sequence[str], flags: Sequence[str], positional: tuple[str, str] | None
) -> Callable[..., None]:
    """A function with one parameter for each option, which hands all of them to ``run``.

    Args:
        run: called with argument name -> value.
        used: keys of the settings, or sections of them, that the command uses.
        flags: of :data:`BEHAVIOUR`.
        positional: (name, help) of the file that is given without an option, or None.
    """

    def command(**given: Any) -> None:
        run(given)

    parameters = []
    if positional is not None:
        name, said = positional
        file = Annotated[Path | None, typer.Argument(help=said, metavar=name.upper(), show_default=False)]
        parameters.append(_parameter(name, file, None))
    for setting in chosen(used):
        parameters.append(_parameter(setting.key.replace(".", SEPARATOR), _annotation(setting), None))
    for flag in flags:
        option, said = BEHAVIOUR[flag]
        parameters.append(_parameter(flag, Annotated[bool, typer.Option(option, help=said)], False))
    setattr(command, "__signature__", inspect.Signature(parameters))  # noqa: B010 - mypy rejects the plain assignment
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def chosen(used: Sequence[str]) -> list[Setting]:
    """The settings of some keys and sections.

    Example:
        >>> [setting.key for setting in chosen(["model", "export"])]
        ['model', 'export.format', 'export.runtime']
    """
    return [setting for setting in settings() if setting.key in used or (setting.section and setting.section in used)]


def options_of(used: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The options of a command, as users write them.

    Example:
        >>> options_of(["recovery.recover"], ["quiet"])
        ['--recover', '--no-recover', '--quiet']
    """
    return [name for setting in chosen(used) for name in _names(setting)] + [BEHAVIOUR[flag][0] for flag in flags]


def said_by_options(given: Mapping[str, Any]) -> dict[str, Said]:
    """Key -> value of the options that were given.

    Raises:
        WrongUsage: when a value cannot be read.
    """
    found = {}
    for setting in settings():
        value = given.get(setting.key.replace(".", SEPARATOR))
        if value is None or value == []:
            continue
        option = setting.about.option
        try:
            found[setting.key] = Said(value_of_text(setting, value), option)
        except ValueError as cause:
            raise WrongUsage(f"{option} {printable(cause)}") from cause
    return found


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(setting: Setting) -> Any:
    """The type that Typer parses; lists of numbers are one text with commas."""
    about, panel = setting.about, PANELS[setting.section]
    kind: Any = setting.kind
    if setting.form == "table" or (setting.form == "list" and setting.kind is str):
        kind = list[str]
    elif setting.form == "list":
        kind = str
    said = f"{about.help} Default: {about.default}." if about.default else about.help
    return Annotated[
        kind | None, typer.Option("/".join(_names(setting)), help=said, rich_help_panel=panel, show_default=False)
    ]


def _names(setting: Setting) -> list[str]:
    """The option, and for a truth value its opposite."""
    option = setting.about.option
    return [option, f"--no-{option.removeprefix('--')}"] if setting.kind is bool else [option]
