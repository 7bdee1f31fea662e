"""``qubo-compress``: the library from a terminal, driven by options or by one YAML recipe.

Answers go to standard output, progress and errors to standard error; with ``--json`` an error is also the answer. Exit
codes: 0 done; 1 refused or failed; 2 wrong usage; 130 after Ctrl-C; 141 when nobody reads the output any more.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import typer
from rich.console import Console

from qubo_compress._internal.text import printable
from qubo_compress.commands.call import Reply, call_of, plain
from qubo_compress.commands.options import BEHAVIOUR, options_of, said_by_options, with_options
from qubo_compress.errors import QuboCompressError, WrongUsage

NAME = "qubo-compress"
FAILED, WRONG_USAGE, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141

PIPED_WIDTH = 120
"""Letters of a line where the output is no terminal."""

JSON = BEHAVIOUR["as_json"][0]

NETWORK = ("model", "data")
MEASURING = (
    "metric",
    "loss",
    "groups",
    "max_examples",
    "batch_size",
    "seconds",
    "network_output",
    "class_axis",
    "cache",
)
READING = ("loss", "network_output", "class_axis", "batch_size")
RECIPE = ("recipe", "A recipe: a YAML file with settings, which options override.")
FILE = ("file", "A network, plan, table, problem, solution or latency table.")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: also of its module in :mod:`qubo_compress.commands`.
        help: for users.
        used: the settings and sections that it has options for.
        flags: how it behaves.
        positional: the file that is given without an option.
    """

    name: str
    help: str
    used: tuple[str, ...] = ()
    flags: tuple[str, ...] = ("force", "as_json", "quiet", "traceback")
    positional: tuple[str, str] | None = RECIPE


COMMANDS = (
    Command(
        "measure", "Measure what each choice costs the network, and write a table.",
        (*NETWORK, *MEASURING, "seed", "menu", "outputs.table"),
        ("force", "dry_run", "as_json", "quiet", "traceback"),
    ),
    Command(
        "solve", "Solve a table under a budget, and write a plan; or answer a problem file.",
        ("problem", "seed", "budget", "solver", "outputs.table", "outputs.plan", "outputs.solution"),
    ),
    Command(
        "compress", "Measure, solve, check, apply and repair at once, and write what is asked for.",
        (*NETWORK, "validation", "test", *MEASURING, "seed", "budget", "menu", "solver.name", "solver.time_limit",
         "solver.options", "search", "recovery", "export", "outputs.network", "outputs.plan", "outputs.table",
         "outputs.report", "outputs.export", "outputs.audit"),
        ("force", "dry_run", "as_json", "quiet", "traceback"),
    ),
    Command(
        "apply", "Apply a plan to its network, and write the compressed network.",
        (*NETWORK, *READING, "max_examples", "seed", "recovery", "outputs.plan", "outputs.network"),
    ),
    Command(
        "audit", "Compare a compressed network with the original, example by example.",
        (*NETWORK, "validation", "test", *READING, "outputs.network", "outputs.audit"),
    ),
    Command(
        "export", "Write a compressed network for other programs, such as ONNX.",
        (*NETWORK, "validation", "test", "batch_size", "export", "outputs.network", "outputs.export"),
    ),
    Command(
        "report", "Write the HTML report of a plan, judged beside the plans that it replaces.",
        (*NETWORK, "validation", *READING, "budget", "outputs.table", "outputs.plan", "outputs.network",
         "outputs.report"),
    ),
    Command("inspect", "Say what a file holds, without the network.", (), ("as_json", "traceback"), FILE),
    Command("solvers", "List the solvers, and what each one needs.", (), ("as_json", "traceback"), None),
)  # fmt: skip

EPILOG = (
    "A recipe holds the same settings as the options; module:function is imported from the current folder or the "
    "Python path. Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 after Ctrl-C."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, and return its exit code.

    Args:
        arguments: without the program's name; default: those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _parsed(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted(as_json=JSON in given)
    except (BrokenPipeError, SystemExit):  # Typer ends the process when nobody reads its help
        return _nobody_reads()
    return code


def _interrupted(command: str = "", as_json: bool = False) -> int:
    said = "interrupted; every file is whole, old or new"
    _answer_error("KeyboardInterrupt", said, as_json)
    return _failed(said, INTERRUPTED, command)


def _nobody_reads() -> int:
    # What is still buffered would raise again when Python ends.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NOBODY_READS


def _parsed(arguments: list[str]) -> int:
    try:
        found = typer.main.get_command(_app())(args=arguments, prog_name=NAME, standalone_mode=False)
    except typer.TyperException as cause:
        said = _elsewhere(cause) or cause.format_message()
        _answer_error(WrongUsage.__name__, said, JSON in arguments)
        return _failed(said, cause.exit_code)
    except typer.Abort:
        return INTERRUPTED
    return found if isinstance(found, int) else 0


def _elsewhere(cause: typer.TyperException) -> str:
    """Which commands have an option that this one lacks; empty if that is not what is wrong."""
    option = getattr(cause, "option_name", None)
    having = [command.name for command in COMMANDS if option in options_of(command.used, command.flags)]
    if not having:
        return ""
    return f"No such option: {option}; {', '.join(having)} {'has' if len(having) == 1 else 'have'} it"


def _app() -> typer.Typer:
    app = typer.Typer(
        name=NAME, help="Compress trained PyTorch networks by solving one combinatorial problem.", epilog=EPILOG,
        no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    )  # fmt: skip

    @app.callback(invoke_without_command=True)
    def _about(
        version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
    ) -> None:
        if version:
            typer.echo(f"{NAME} {metadata.version('qubo_compress')}")
            raise typer.Exit

    for command in COMMANDS:
        function = with_options(partial(_run, command), command.used, command.flags, command.positional)
        app.command(command.name, help=command.help)(function)
    return app


def _run(command: Command, given: dict[str, Any]) -> None:
    """Run a command; every error becomes one line and an exit code."""
    code, as_json = FAILED, bool(given.get("as_json"))
    try:
        code = _answered(command, given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _interrupted(command.name, as_json)
    except BrokenPipeError:
        code = _nobody_reads()
    except Exception as cause:
        if given.get("traceback"):
            traceback.print_exc()
        _answer_error(type(cause).__name__, _explained(cause), as_json)
        code = _failed(_explained(cause), WRONG_USAGE if isinstance(cause, WrongUsage) else FAILED, command.name)
    raise typer.Exit(code)


def _answered(command: Command, given: dict[str, Any]) -> int:
    call = call_of(
        given.get("recipe"), said_by_options(given), force=bool(given.get("force")),
        dry_run=bool(given.get("dry_run")), progress=not given.get("quiet"), file=given.get("file"),
    )  # fmt: skip
    with _warned(command.name), contextlib.redirect_stdout(sys.stderr):
        run = importlib.import_module(f"qubo_compress.commands.{command.name}").run
        answer: Reply = run(call)
    _show(answer, bool(given.get("as_json")))
    return answer.code


def _show(answer: Reply, as_json: bool) -> None:
    if as_json:
        print(json.dumps(plain(answer.values), allow_nan=False, indent=1))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    for item in answer.shown:
        if isinstance(item, str):
            print(printable(item))
        elif callable(item):
            item(console)
        else:
            console.print(item)


def _explained(cause: Exception) -> str:
    if isinstance(cause, QuboCompressError):
        return str(cause)
    if isinstance(cause, FileNotFoundError):
        return f"there is no file {cause.filename}"
    return f"{type(cause).__name__}: {cause} (not foreseen; --traceback shows where)"


def _failed(message: str, code: int, command: str = "") -> int:
    """Print one line on standard error."""
    line = _one_line(message)
    with contextlib.suppress(BrokenPipeError):
        print(f"{NAME}{' ' * bool(command)}{command}: {line}", file=sys.stderr, flush=True)
    return code


def _answer_error(kind: str, message: str, as_json: bool) -> None:
    """With ``--json`` a failure, too, is one object on standard output."""
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": _one_line(message)}}, indent=1), flush=True)


def _one_line(message: str) -> str:
    return " ".join(printable(message).split())


@contextlib.contextmanager
def _warned(command: str) -> Iterator[None]:
    """Show warnings as lines of text."""
    with warnings.catch_warnings():

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            _failed(f"warning: {message}", 0, command)

        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
