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
from qubo_compress.commands.job import Answer, Job
from qubo_compress.commands.measure import forecast, forecast_answer
from qubo_compress.errors import InvalidOption, WrongUsage
from qubo_compress.pipeline import CompressionResult, compress
from qubo_compress.report import print_summary
from qubo_compress.sensitivity.measurement import CHANNELS

WRITTEN = ("network", "plan", "table", "report", "export", "audit")


def run(job: Job) -> Answer:
    """Compress, and write what is asked for."""
    paths = job.outputs(*WRITTEN)
    if not paths:
        raise WrongUsage("nothing would be written: give outputs.network (--network) or other outputs")
    recipe, budget, solver = job.recipe, budget_of(job), solver_of(job)
    if recipe.solver.work_limit is not None:
        raise WrongUsage(f"work_limit ({job.where('solver.work_limit')}) is for solve; compress has a time_limit")
    if "table" in paths and CHANNELS.fullmatch(recipe.groups or ""):
        raise InvalidOption("outputs.table: a table about channels cannot be saved, because it holds the network")
    arguments = measurement_of(job)
    model, batches = model_of(job), batches_of(job, "data")
    validation = None if recipe.validation is None else batches_of(job, "validation")
    judged = batches_of(job, "test", "validation", "data") if "audit" in paths else None
    if job.dry_run:
        return forecast_answer(forecast(model, batches, arguments, held_out=validation is None))
    result = compress(
        model, batches, budget, validation, solver=solver, progress=job.progress,
        **given_only(
            time_limit=recipe.solver.time_limit, rounds=recipe.search.rounds, evaluations=recipe.search.evaluations,
            recover=recipe.recovery.recover, epochs=recipe.recovery.epochs, objective=recipe.recovery.objective,
        ),
        **arguments,
    )  # fmt: skip
    _write(job, result, paths, judged)

    def summary(console: Console) -> None:
        print_summary(result, console)

    return Answer(facts_of(result, paths), [summary, *(f"wrote {path}" for path in paths.values())])


def _write(job: Job, result: CompressionResult, paths: dict[str, Path], judged: Any) -> None:
    if "network" in paths:
        result.save(paths["network"])
    if "plan" in paths:
        result.plan.save(paths["plan"])
    if "table" in paths:
        result.table.save(paths["table"])
    report = None
    if judged is not None:
        report = audit(result.original, result.model, judged, **reading_of(job))
        report.write(paths["audit"])
    if "export" in paths:
        settings = job.recipe.export
        result.export(paths["export"], **given_only(format=settings.format, runtime=settings.runtime))
    if "report" in paths:
        result.report(paths["report"], audit=report)


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
