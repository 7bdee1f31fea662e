"""``solve``: a plan from a table, or an answer to a problem file."""

from __future__ import annotations

from typing import Any

from qubo_compress._internal.checked_json import with_checksum
from qubo_compress._internal.files import write_atomically
from qubo_compress.commands.arguments import budget_of, given_only, solver_of
from qubo_compress.commands.call import CommandCall, Reply, plain
from qubo_compress.errors import WrongUsage
from qubo_compress.pipeline.review import with_proof
from qubo_compress.problem import ChoiceProblem
from qubo_compress.sensitivity import SensitivityTable
from qubo_compress.solvers import Solution, solve

SOLUTION = "qubo_compress solution 1"
"""The format of an answer to a problem file."""

INTERRUPTED = 130
"""Exit code after Ctrl-C; the best answer so far is written."""


def run(call: CommandCall) -> Reply:
    """Solve, and write the plan or the answer."""
    recipe = call.recipe
    solver = solver_of(call)
    settings = given_only(time_limit=recipe.solver.time_limit, work_limit=recipe.solver.work_limit, seed=recipe.seed)
    if recipe.problem is not None and recipe.outputs.table is not None:
        raise WrongUsage(
            f"give a table ({call.where('outputs.table')}) or a problem ({call.where('problem')}), not both"
        )
    if recipe.problem is not None:
        path = call.output("solution")
        found = solve(ChoiceProblem.load(recipe.problem), solver, **settings)
        values = {**_facts(found), "choices": dict(found.choices)}
        text = with_checksum({"format": SOLUTION, **plain(values)}, indent=1)
        write_atomically(path, lambda handle: handle.write(text))
        return _answer({"solution": path, **values}, found, [f"{path}: {_said(found)}"])
    return _plan(call, solver, settings)


def _plan(call: CommandCall, solver: Any, settings: dict[str, Any]) -> Reply:
    path, budget = call.output("plan"), budget_of(call)
    table = SensitivityTable.load(call.needed("outputs.table"))
    problem = table.problem(budget)
    found = solve(problem, solver, **settings)
    plan = with_proof(table.plan(found), found, problem)
    plan.save(path)
    values = {
        "plan": path, **_facts(found), "bytes": plan.bytes, "original_bytes": plan.original_bytes, "ratio": plan.ratio,
        "bits_per_weight": plan.bits_per_weight, "predicted_loss": plan.predicted_loss, "choices": dict(plan.choices),
    }  # fmt: skip
    shown = [
        f"{path}: {plan.bytes:,} bytes, {plan.ratio:.2f} times smaller, {plan.bits_per_weight:.2f} bits per weight",
        f"predicted loss change {plan.predicted_loss:+.4g}; {_said(found)}",
    ]
    return _answer(values, found, shown)


def _answer(values: dict[str, Any], found: Solution, shown: list[str]) -> Reply:
    notes = [f"note: {note}" for note in found.notes]
    if found.interrupted:
        notes.append("interrupted: this is the best that was found until then")
    return Reply(values, [*shown, *notes], INTERRUPTED if found.interrupted else 0)


def _facts(found: Solution) -> dict[str, Any]:
    return {
        "solver": found.solver, "status": found.status, "energy": found.energy, "bound": found.bound, "gap": found.gap,
        "work": found.work, "seconds": found.timing.get("total"), "interrupted": found.interrupted,
        "notes": list(found.notes),
    }  # fmt: skip


def _said(found: Solution) -> str:
    proof = "proven optimal" if found.status == "optimal" else "no bound is known"
    if found.status != "optimal" and found.gap is not None:
        proof = f"at most {100 * found.gap:.2g} % from the bound"
    return f"{found.solver} found energy {found.energy:.6g}, {proof}"
