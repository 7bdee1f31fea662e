"""``audit``: what the compressed network forgot, against the original."""

from __future__ import annotations

from qubo_compress.artifact import load
from qubo_compress.audits import audit
from qubo_compress.commands.arguments import batches_of, model_of, reading_of
from qubo_compress.commands.call import CommandCall, Reply


def run(call: CommandCall) -> Reply:
    """Compare the two networks, and write the page if it has a name."""
    paths = call.outputs("audit")
    path = call.needed("outputs.network")
    model, batches = model_of(call), batches_of(call, "test", "validation", "data")
    found = audit(model, load(path, model), batches, **reading_of(call))
    if "audit" in paths:
        found.write(paths["audit"])
    return Reply({**paths, **found.to_dict()}, [found.tables(), *(f"wrote {page}" for page in paths.values())])
