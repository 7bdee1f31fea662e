"""``solvers``: what is registered, and what each one needs."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from qubo_compress._internal.optional import installed
from qubo_compress.commands.call import CommandCall, Reply
from qubo_compress.solvers import Solver, names, registry


def run(_: CommandCall) -> Reply:
    """List the registered solvers."""
    found = [_described(name, registry.get(name)) for name in names()]
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption="--json also lists their options", caption_justify="left"
    )
    for head in ("solver", "installed", "needs", "what it is"):
        table.add_column(head, overflow="fold")
    for one in found:
        needs = ", ".join([*one["requires"], *(["a connection"] if one["remote"] else [])])
        table.add_row(one["name"], _yes(one["installed"]), needs, escape(one["summary"]))
    return Reply({"solvers": found}, [table])


def _described(name: str, kind: type[Solver]) -> dict[str, Any]:
    options: list[str] = []
    if dataclasses.is_dataclass(kind):
        options = [field.name for field in dataclasses.fields(kind) if field.init]
    missing = [module for module in kind.requires if not installed(module.partition(".")[0])]
    return {
        "name": name, "requires": list(kind.requires), "missing": missing, "installed": not missing,
        "remote": kind.remote, "repeats": kind.repeats, "accepts_pair_costs": kind.accepts_pair_costs,
        "options": options,
        "summary": (inspect.getdoc(kind) or "").partition("\n")[0],
    }  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"
