"""``measure``: a sensitivity table in a file, to be solved here or elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from qubo_compress.commands.arguments import batches_of, measurement_of, model_of
from qubo_compress.commands.call import CommandCall, Reply
from qubo_compress.commands.figures import counted, figures, shown_figures
from qubo_compress.errors import InvalidOption
from qubo_compress.sensitivity import Forecast, SensitivityTable, estimate, measure
from qubo_compress.sensitivity.measurement import CHANNELS


def run(call: CommandCall) -> Reply:
    """Measure, and write the table."""
    path = call.output("table")
    if CHANNELS.fullmatch(call.recipe.groups or ""):
        raise InvalidOption(
            f"groups ({call.where('groups')}): a table about channels holds the network, so it cannot be saved; "
            "use 'qubo-compress compress' with a cache folder, which an interrupted measurement resumes from"
        )
    arguments = measurement_of(call)
    model, batches = model_of(call), batches_of(call, "data")
    if call.dry_run:
        return forecast_answer(forecast(model, batches, arguments, held_out=False))
    table = measure(model, batches, progress=call.progress, **arguments)
    table.save(path)
    return _answer(path, table)


def forecast(model: nn.Module, batches: Any, arguments: dict[str, Any], held_out: bool) -> Forecast:
    """How long measuring will take."""
    return estimate(model, batches, held_out=held_out, **arguments)


def forecast_answer(found: Forecast) -> Reply:
    """The estimate of a dry run."""
    shown = [
        str(found),
        f"the network does {found.multiplications:,.0f} multiplications per example",
        "dry run: nothing was measured or written; whether the budget can be met is not known yet",
    ]
    return Reply({"dry_run": True, **asdict(found)}, shown)


def _answer(path: Any, table: SensitivityTable) -> Reply:
    layout, known, found = table.layout, table.provenance, figures(table)
    least = found["bytes"]["smallest"]
    values = {
        "table": path, "groups": len(table.choices), "choices": int(table.linear.size), "metric": known.metric,
        "loss": known.loss, "examples": known.examples, "seconds": known.seconds, "evaluations": known.evaluations,
        "original_bytes": layout.original_bytes, "parameters": layout.parameters, "smallest_bytes": least,
        "trust": known.trust, **counted(table),
    }  # fmt: skip
    shown = [
        f"{path}: {len(table.choices):,} groups with {table.linear.size:,} choices, measured by {known.metric} on "
        f"{known.examples:,} examples in {known.seconds:.1f} s",
        f"the network has {layout.original_bytes:,} bytes; budgets from {least:,} bytes (ratio "
        f"{layout.original_bytes / least:.1f}) can be solved",
        f"it does {known.multiplications:,.0f} multiplications per example; budgets that can be set:",
        *shown_figures(found),
    ]
    return Reply(values, shown)
