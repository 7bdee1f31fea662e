"""``apply``: a compressed network from a plan, repaired if there are examples to repair it with."""

from __future__ import annotations

from qubo_compress.artifact import save
from qubo_compress.commands.arguments import batches_of, given_only, model_of, reading_of
from qubo_compress.commands.call import CommandCall, Reply
from qubo_compress.plan import Plan
from qubo_compress.recovery import recover


def run(call: CommandCall) -> Reply:
    """Apply the plan, and write the network."""
    path, recipe = call.output("network"), call.recipe
    plan = Plan.load(call.needed("outputs.plan"))
    asked = recipe.recovery.recover
    repairs = asked or bool(recipe.recovery.epochs) or (asked is None and recipe.data is not None)
    model = model_of(call)
    batches = batches_of(call, "data") if repairs else None
    small = plan.apply(model)
    if batches is not None:
        small = recover(
            small, batches, model, progress=call.progress, **reading_of(call),
            **given_only(
                epochs=recipe.recovery.epochs, objective=recipe.recovery.objective, seed=recipe.seed,
                max_examples=recipe.max_examples, reconstruct=recipe.recovery.reconstruct,
            ),
        )  # fmt: skip
    written = save(small, path)
    how = "statistics and biases repaired" if repairs else "not repaired: no examples were asked for"
    how = f"fine-tuned for {recipe.recovery.epochs} epochs" if recipe.recovery.epochs else how
    values = {"network": path, "bytes": written, "ratio": plan.ratio, "recovered": repairs}
    return Reply(values, [f"{path}: {written:,} bytes, {plan.ratio:.2f} times smaller; {how}"])
