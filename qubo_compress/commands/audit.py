"""``audit``: what the compressed network forgot, against the original."""

from __future__ import annotations

from qubo_compress.artifact import load
from qubo_compress.audits import audit
from qubo_compress.commands.arguments import batches_of, model_of, reading_of
from qubo_compress.commands.job import Answer, Job


def run(job: Job) -> Answer:
    """Compare the two networks, and write the page if it has a name."""
    paths = job.outputs("audit")
    path = job.needed("outputs.network")
    model, batches = model_of(job), batches_of(job, "test", "validation", "data")
    found = audit(model, load(path, model), batches, **reading_of(job))
    if "audit" in paths:
        found.write(paths["audit"])
    return Answer({**paths, **found.to_dict()}, [found.tables(), *(f"wrote {page}" for page in paths.values())])
