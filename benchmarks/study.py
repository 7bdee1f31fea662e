"""A study: one question, steps whose records are made once, and tables of the records.

    STUDY = Study(__doc__, "colours", network="digits", ratios=[4.0, 8.0])

    @STUDY.step(lambda o: grid(network=[o.network], ratio=o.ratios))
    def losses(options, network, ratio):
        return {"loss": ...}

    @STUDY.table
    def tables(options):
        return table(STUDY.records(), {"ratio": "{ratio:g}x", "loss": "{loss:.3f}"})

    if __name__ == "__main__":
        STUDY.main()

``python -m benchmarks.studies.colours`` runs what has no record yet and writes the tables, ``... colours losses`` runs
one step of several, and ``... colours table`` writes the tables alone.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.records import RESULTS, Record, append, environment, matching, read

TABLE = "table"
MOST_SHOWN = 60
"""Characters of a value that is printed; longer ones are in the record."""


class Options(SimpleNamespace):
    """What the command line says; a step's answers can be cached by it."""

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Option:
    """An option of the command line that its default alone does not describe.

    Attributes:
        default: also says the type; a list takes several values, ``False`` makes a flag.
        help: what ``--help`` says.
        choices: the values allowed.
        type: makes a value of the text, where the default is None.
    """

    default: Any
    help: str | None = None
    choices: Collection[Any] | None = None
    type: Callable[[str], Any] | None = None

    def add_to(self, parser: argparse.ArgumentParser, name: str) -> None:
        """Add the option to a parser."""
        flag, given = f"--{name.replace('_', '-')}", {"default": self.default, "help": self.help}
        if isinstance(self.default, bool):
            parser.add_argument(flag, action="store_true", help=self.help)
        elif isinstance(self.default, Sequence) and not isinstance(self.default, str):
            kind = self.type or type(self.default[0])
            parser.add_argument(flag, nargs="+", type=kind, choices=self.choices, **given)
        else:
            kind = self.type or type(self.default)
            parser.add_argument(flag, type=kind, choices=self.choices, **given)


def parser_of(doc: str | None, options: Mapping[str, Any]) -> argparse.ArgumentParser:
    """A parser of options given by their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in options.items():
        (value if isinstance(value, Option) else Option(value)).add_to(parser, name)
    return parser


def command_line(doc: str | None, arguments: Sequence[str] | None = None, **options: Any) -> Options:
    """What the command line of a script says; sets the number of threads where it has such an option."""
    return _read(parser_of(doc, options), arguments)


def _read(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Options:
    found = parser.parse_args(arguments, Options())
    if hasattr(found, "threads"):
        torch.set_num_threads(found.threads)
    return found


def grid(**values: Iterable[Any]) -> Iterator[Record]:
    """Every combination of some fields' values, the last field changing fastest."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


Measure = Callable[..., Record | Iterable[Record] | None]


@dataclass(frozen=True)
class Step:
    """One step of a study.

    Attributes:
        name: on the command line and in its records.
        cells: options -> what identifies each record that is to be made.
        measure: (options, **cell) -> what else the record says; several records; or None where there is none to make.
        again: make the records again whenever the step is asked for; the newest counts.
    """

    name: str
    cells: Callable[[Options], Iterable[Record]]
    measure: Measure
    again: bool


class Study:
    """Steps, their records and the tables of these.

    Args:
        doc: the question and the commands, for ``--help``.
        name: of the file of records.
        report: of the file of tables, a format string of the options; by default as the records.
        field: says in every record of a study of several steps which of them made it.
        options: of the command line, by their defaults.
    """

    def __init__(
        self, doc: str | None, name: str, report: str | None = None, field: str | None = None, **options: Any
    ) -> None:
        self.doc, self.path, self.field, self.options = doc, RESULTS / f"{name}.jsonl", field, options
        self._report = report or name
        self._steps: dict[str, Step] = {}
        self._tables: Callable[[Options], str]

    def step(
        self, cells: Callable[[Options], Iterable[Record]], again: bool = False, name: str | None = None
    ) -> Callable[[Measure], Measure]:
        """Decorate the function that measures what one record says; the step has its name, or the one given."""

        def register(measure: Measure) -> Measure:
            step = Step(name or measure.__name__, cells, measure, again)
            self._steps[step.name] = step
            return measure

        return register

    def table(self, tables: Callable[[Options], str]) -> Callable[[Options], str]:
        """Decorate the function that makes the tables."""
        self._tables = tables
        return tables

    def records(self, step: str | None = None, **fields: Any) -> list[Record]:
        """The records that have these values."""
        if self.field is not None and step is not None:
            fields[self.field] = step
        return matching(read(self.path), **fields)

    def run(self, name: str, options: Options) -> None:
        """Make the records of a step that are not there."""
        step = self._steps[name]
        said = {} if self.field is None else {self.field: name}
        for cell in step.cells(options):
            if self.records(**said, **cell) and not (step.again or options.again):
                continue
            found = step.measure(options, **cell)
            for figures in [found] if isinstance(found, dict) else found or ():
                record = said | cell | figures
                append(self.path, record | environment())
                print(shown(record), flush=True)

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Command line: run steps, then write the tables."""
        parser = parser_of(self.doc, self.options)
        parser.add_argument("steps", nargs="*", help=f"of {', '.join(self._steps)}, {TABLE}; all where none is named")
        parser.add_argument("--again", action="store_true", help="measure what is on record, too; the newest counts")
        parser.add_argument("--records", type=Path, default=self.path, help=argparse.SUPPRESS)
        options = _read(parser, arguments)
        unknown = set(options.steps) - {*self._steps, TABLE}
        if unknown:
            parser.error(f"there is no step {', '.join(sorted(unknown))}; allowed: {', '.join((*self._steps, TABLE))}")
        self.path = options.records
        for name in options.steps or self._steps:
            if name != TABLE:
                self.run(name, options)
        text = self._tables(options)
        self.path.with_name(f"{self._report.format_map(vars(options))}.md").write_text(text)
        print(text)


def shown(record: Record) -> str:
    """A record on one line: its short values."""
    short = {name: round(value, 4) if isinstance(value, float) else value for name, value in record.items()}
    return " ".join(f"{name}={value}" for name, value in short.items() if len(str(value)) <= MOST_SHOWN)
