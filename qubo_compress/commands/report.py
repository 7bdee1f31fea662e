"""``report``: the HTML page of a plan, judged on examples beside the plans that it replaces."""

from __future__ import annotations

from qubo_compress.artifact import load
from qubo_compress.audits import audit
from qubo_compress.commands.arguments import batches_of, budget_of, model_of, reading_of
from qubo_compress.commands.call import SIZES, CommandCall, Reply
from qubo_compress.commands.compress import facts_of
from qubo_compress.pipeline.review import review
from qubo_compress.plan import Plan
from qubo_compress.sensitivity import SensitivityTable
from qubo_compress.sensitivity.measurement import Measurement


def run(call: CommandCall) -> Reply:
    """Judge the plan, and write the page."""
    path, outputs = call.output("report"), call.recipe.outputs
    call.needed("outputs.plan")
    table, plan = SensitivityTable.load(call.needed("outputs.table")), Plan.load(call.needed("outputs.plan"))
    budget = budget_of(call) if any(key in call.places for key in SIZES) else None
    model, batches = model_of(call), batches_of(call, "validation", "data")
    network = None if outputs.network is None else load(outputs.network, model)
    reading = reading_of(call)
    result = review(model, table, plan, batches, network, budget=budget, settings=Measurement(**reading))
    found = audit(model, result.model, batches, **reading)
    result.report(path, audit=found)
    return Reply(facts_of(result, {"report": path}), [f"wrote {path}"])
