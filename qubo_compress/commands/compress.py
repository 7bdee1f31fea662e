"""``compress``: everything at once, from the network to the files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from qubo_compress.audits import audit
from qubo_compress.commands.arguments import (
    batches_of,
    budget_of,
    given_only,
    measurement_of,
    model_of,
    reading_of,
    solver_of,
)
from qubo_compress.commands.call import CommandCall, Reply
from qubo_compress.commands.measure import forecast, forecast_answer
from qubo_compress.errors import InvalidOption, WrongUsage
from qubo_compress.pipeline import CompressionResult, compress
from qubo_compress.pipeline.review import with_proof
from qubo_compress.plan import Plan
from qubo_compress.report import print_summary
from qubo_compress.sensitivity.measurement import CHANNELS

WRITTEN = ("network", "plan", "table", "report", "export", "audit")


def run(call: CommandCall) -> Reply:
    """Compress, and write what is asked for."""
    paths = call.outputs(*WRITTEN)
    if not paths:
        raise WrongUsage("nothing would be written: give outputs.network (--network) or other outputs")
    recipe, budget, solver = call.recipe, budget_of(call), solver_of(call)
    if recipe.solver.work_limit is not None:
        raise WrongUsage(f"work_limit ({call.where('solver.work_limit')}) is for solve; compress has a time_limit")
    if "table" in paths and CHANNELS.fullmatch(recipe.groups or ""):
        raise InvalidOption("outputs.table: a table about channels cannot be saved, because it holds the network")
    arguments = measurement_of(call)
    model, batches = model_of(call), batches_of(call, "data")
    validation = None if recipe.validation is None else batches_of(call, "validation")
    judged = batches_of(call, "test", "validation", "data") if "audit" in paths else None
    if call.dry_run:
        return forecast_answer(forecast(model, batches, arguments, held_out=validation is None))
    result = compress(
        model, batches, budget, validation, solver=solver, progress=call.progress,
        **given_only(
            time_limit=recipe.solver.time_limit, rounds=recipe.search.rounds, evaluations=recipe.search.evaluations,
            recover=recipe.recovery.recover, epochs=recipe.recovery.epochs, objective=recipe.recovery.objective,
            reconstruct=recipe.recovery.reconstruct,
        ),
        **arguments,
    )  # fmt: skip
    _write(call, result, paths, judged)

    def summary(console: Console) -> None:
        print_summary(result, console)

    return Reply(facts_of(result, paths), [summary, *(f"wrote {path}" for path in paths.values())])


def _write(call: CommandCall, result: CompressionResult, paths: dict[str, Path], judged: Any) -> None:
    if "network" in paths:
        result.save(paths["network"])
    if "plan" in paths:
        _proven(result).save(paths["plan"])
    if "table" in paths:
        result.table.save(paths["table"])
    report = None
    if judged is not None:
        report = audit(result.original, result.model, judged, **reading_of(call))
        report.write(paths["audit"])
    if "export" in paths:
        settings = call.recipe.export
        result.export(paths["export"], **given_only(format=settings.format, runtime=settings.runtime))
    if "report" in paths:
        result.report(paths["report"], audit=report)


def _proven(result: CompressionResult) -> Plan:
    """The plan with what was proven of it; with fewer channels there is no table to check it against."""
    if result.table.removals is not None or result.table.remainder is not None:
        return result.plan
    return with_proof(result.plan, result.solution, result.table.problem(result.budget))


def facts_of(result: CompressionResult, paths: dict[str, Path]) -> dict[str, Any]:
    """The figures of a result, for ``--json``."""
    plan, found = result.plan, result.solution
    return {
        **paths, "bytes": plan.bytes, "original_bytes": plan.original_bytes, "ratio": plan.ratio,
        "bits_per_weight": plan.bits_per_weight, "parameters": plan.parameters, "before": asdict(result.before),
        "after": asdict(result.final), "recovery_kept": result.recovery_kept, "predicted_loss": plan.predicted_loss,
        "expected_loss": result.expected_loss, "taken": result.taken.winner, "solver": found.solver,
        "status": found.status, "gap": found.gap,
        "candidates": [
            {"names": candidate.names, "predicted": candidate.predicted, "divergence": candidate.divergence,
             "loss": candidate.comparison.loss}
            for candidate in result.taken.candidates
        ],
        "choices": dict(plan.choices),
    }  # fmt: skip
