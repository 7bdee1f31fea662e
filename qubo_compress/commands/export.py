"""``export``: a compressed network for other programs."""

from __future__ import annotations

from dataclasses import asdict

from qubo_compress.artifact import load
from qubo_compress.calibration.examples import read_examples
from qubo_compress.commands.arguments import batches_of, given_only, model_of
from qubo_compress.commands.job import Answer, Job
from qubo_compress.exports import export

EXAMPLES = 256
"""Most examples that the exported file is checked on."""


def run(job: Job) -> Answer:
    """Export the network, which is checked before the file is written."""
    target = job.output("export")
    path = job.needed("outputs.network")
    model, batches = model_of(job), batches_of(job, "test", "validation", "data")
    inputs = [part.inputs for part in read_examples(batches, EXAMPLES, job.recipe.batch_size).slices]
    settings = job.recipe.export
    found = export(load(path, model), target, inputs, **given_only(format=settings.format, runtime=settings.runtime))
    return Answer({"export": target, **asdict(found), "ratio": found.ratio}, [str(found)])
