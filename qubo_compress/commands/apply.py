"""``apply``: a compressed network from a plan, repaired if there are examples to repair it with."""

from __future__ import annotations

from qubo_compress.artifact import save
from qubo_compress.commands.arguments import batches_of, given_only, model_of, reading_of
from qubo_compress.commands.job import Answer, Job
from qubo_compress.plan import Plan
from qubo_compress.recovery import recover


def run(job: Job) -> Answer:
    """Apply the plan, and write the network."""
    path, recipe = job.output("network"), job.recipe
    plan = Plan.load(job.needed("outputs.plan"))
    asked = recipe.recovery.recover
    repairs = asked or bool(recipe.recovery.epochs) or (asked is None and recipe.data is not None)
    model = model_of(job)
    batches = batches_of(job, "data") if repairs else None
    small = plan.apply(model)
    if batches is not None:
        small = recover(
            small, batches, model, progress=job.progress, **reading_of(job),
            **given_only(
                epochs=recipe.recovery.epochs, objective=recipe.recovery.objective, seed=recipe.seed,
                max_examples=recipe.max_examples,
            ),
        )  # fmt: skip
    written = save(small, path)
    how = "statistics and biases repaired" if repairs else "not repaired: no examples were asked for"
    how = f"fine-tuned for {recipe.recovery.epochs} epochs" if recipe.recovery.epochs else how
    values = {"network": path, "bytes": written, "ratio": plan.ratio, "recovered": repairs}
    return Answer(values, [f"{path}: {written:,} bytes, {plan.ratio:.2f} times smaller; {how}"])
