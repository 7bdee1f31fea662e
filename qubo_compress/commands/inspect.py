"""``inspect``: what a file of this library holds, without the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qubo_compress._internal.arrays import read_arrays
from qubo_compress._internal.checked_json import read_checked
from qubo_compress._internal.reader import opened, parsed_json, read_whole, refused_as
from qubo_compress._internal.tensors import read_tensors
from qubo_compress.artifact.reading import contents
from qubo_compress.commands.call import CommandCall, Reply
from qubo_compress.commands.figures import BUDGETS, counted, shown_figures
from qubo_compress.commands.solve import SOLUTION
from qubo_compress.errors import CorruptArtifact, WrongUsage
from qubo_compress.latency import LatencyTable
from qubo_compress.menu.storage.file_format import unpack_names
from qubo_compress.network.channels.removal_file import removals_from
from qubo_compress.plan import Plan
from qubo_compress.problem import ChoiceProblem
from qubo_compress.sensitivity import SensitivityTable

WHAT = "a file of this library"
MOST_SHOWN = 20


def run(call: CommandCall) -> Reply:
    """Say what a file is, after all of it was checked."""
    if call.file is None:
        raise WrongUsage("FILE is missing: name a network, a plan, a table, a problem, a solution or a latency table")
    values = described(call.file)
    width = max(len(name) for name in values)
    plain = {name: value for name, value in values.items() if name != BUDGETS}
    shown = [f"{name.replace('_', ' ').ljust(width)}  {_said(value)}" for name, value in plain.items()]
    return Reply(values, [*shown, *shown_figures(values.get(BUDGETS, {}))])


def described(path: Path) -> dict[str, Any]:
    """The facts of a file.

    Raises:
        CorruptArtifact: when it is no file of this library, or was altered.
        FileNotFoundError, StorageError: when it cannot be read.
    """
    with opened(path, WHAT) as handle:
        head = handle.read(64)
    size = path.stat().st_size
    if head.startswith(b"PK"):
        return _archive(path) | {"file_bytes": size}
    if head.lstrip().startswith(b"{"):
        return _json(path) | {"file_bytes": size}
    if int.from_bytes(head[:8], "little") > size:
        raise CorruptArtifact(f"{path} is no file of this library: it is neither safetensors, nor .npz, nor JSON")
    return _tensors(path) | {"file_bytes": size}


def _archive(path: Path) -> dict[str, Any]:
    with opened(path, WHAT) as handle, refused_as(path, WHAT):
        said = (read_arrays(handle).said or {}).get("format", "qubo_compress problem of version 0.4")
    if " table " in said:
        return _table(SensitivityTable.load(path))
    if " problem " in said:
        return _problem(ChoiceProblem.load(path))
    if " unit " in said:
        return {"kind": "a part of a measurement, in a cache folder", "format": said}
    raise CorruptArtifact(f"{path} is an archive of arrays, but not of this library (it says {said[:80]!r})")


def _json(path: Path) -> dict[str, Any]:
    data = read_whole(path, WHAT)
    with refused_as(path, WHAT):
        values = parsed_json(data)
        said = values.get("format") if isinstance(values, dict) else None
        said = said if isinstance(said, str) else "nothing"
    if " plan " in said:
        return _plan(Plan.load(path))
    if " latency table " in said:
        return _latency(LatencyTable.load(path))
    if said == SOLUTION:
        with refused_as(path, "a complete solution", "solve again"):
            known = read_checked(data)
            return {"kind": "a solution of a problem", **{n: known[n] for n in ("solver", "status", "energy", "gap")},
                    "choices": _counted(known["choices"])}  # fmt: skip
    raise CorruptArtifact(f"{path} is JSON, but not of this library (its format is {said[:80]!r})")


def _tensors(path: Path) -> dict[str, Any]:
    found = read_tensors(path, WHAT)
    said = found.metadata.get("format", "")
    if said.startswith("qubo_compress layers"):
        return {"kind": "packed layers, for qubo_compress.layers.load", "format": said, "tensors": len(found.tensors)}
    described, payload, _ = contents(path)
    with refused_as(path, WHAT):
        removed = removals_from(described.get("removed", ""))
        menu = unpack_names(described["menu"])
    return {
        "kind": "a compressed network", "format": described["format"], "groups": described["groups"][:200],
        "architecture": described["model"], "payload_bytes": len(payload), "menu": list(menu),
        "channels_removed": bool(removed), "checksum": "matches",
    }  # fmt: skip


def _table(table: SensitivityTable) -> dict[str, Any]:
    known = table.provenance
    return {
        "kind": "a sensitivity table", "groups": len(table.choices), "choices": int(table.linear.size),
        "original_bytes": table.layout.original_bytes, "parameters": table.layout.parameters, "metric": known.metric,
        "loss": known.loss, "examples": known.examples, "seconds": known.seconds, "grouping": table.layout.rule[:200],
        **counted(table), "menu": list(table.menu_names), "weights": known.weights,
    }  # fmt: skip


def _problem(problem: ChoiceProblem) -> dict[str, Any]:
    limits = {name: int(limit) for name, limit in zip(problem.budget_names, problem.limits, strict=True)}
    return {
        "kind": "a choice problem", "groups": problem.num_groups, "choices": problem.num_choices,
        "structure": problem.structure, "limits": limits,
        "smallest": dict(zip(problem.budget_names, problem.smallest_totals().tolist(), strict=True)),
        "pair_costs": problem.pair_costs is not None,
    }  # fmt: skip


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "kind": "a plan", "groups": len(plan.choices), "bytes": plan.bytes, "original_bytes": plan.original_bytes,
        "ratio": plan.ratio, "bits_per_weight": plan.bits_per_weight, "parameters": plan.parameters,
        "predicted_loss": plan.predicted_loss, "grouping": plan.rule[:200], "weights": plan.weights,
        "channels_removed": plan.removal is not None, "choices": _counted(plan.choices),
    }  # fmt: skip


def _latency(table: LatencyTable) -> dict[str, Any]:
    return {
        "kind": "a latency table", "runtime": f"{table.runtime} {table.version}", "processor": table.processor,
        "threads": table.threads, "batch": table.batch, "layers": len(table.layers),
        "milliseconds_uncompressed": table.predicted({}), "largest_error": table.error,
    }  # fmt: skip


def _counted(choices: Mapping[str, str]) -> dict[str, int]:
    """Choice -> number of groups that have it, the most common first."""
    return dict(Counter(choices.values()).most_common())


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        value = [f"{name}: {_said(item)}" for name, item in value.items()]
    if isinstance(value, list):
        more = len(value) - MOST_SHOWN
        return ", ".join(str(item) for item in value[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return str(value)
