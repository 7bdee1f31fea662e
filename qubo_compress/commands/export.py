"""``export``: a compressed network for other programs."""

from __future__ import annotations

from dataclasses import asdict

from qubo_compress.artifact import load
from qubo_compress.calibration.examples import read_examples
from qubo_compress.commands.arguments import batches_of, given_only, model_of
from qubo_compress.commands.call import CommandCall, Reply
from qubo_compress.exports import export

EXAMPLES = 256
"""Most examples that the exported file is checked on."""


def run(call: CommandCall) -> Reply:
    """Export the network, which is checked before the file is written."""
    target = call.output("export")
    path = call.needed("outputs.network")
    model, batches = model_of(call), batches_of(call, "test", "validation", "data")
    inputs = [part.inputs for part in read_examples(batches, EXAMPLES, call.recipe.batch_size).slices]
    settings = call.recipe.export
    found = export(load(path, model), target, inputs, **given_only(format=settings.format, runtime=settings.runtime))
    return Reply({"export": target, **asdict(found), "ratio": found.ratio}, [str(found)])
