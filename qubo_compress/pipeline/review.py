"""A plan that exists already, against what it replaces: the result that a report is written from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from qubo_compress.budget import Budget
from qubo_compress.calibration.evaluation import ALL_EXAMPLES, settle
from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import UnsupportedProblem, WrongModel
from qubo_compress.network.private import private_copy
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.pipeline.refinement import Round
from qubo_compress.pipeline.result import CompressionResult
from qubo_compress.plan import Plan, ProvenBound, compression_of
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.report.verdict import GIVEN
from qubo_compress.selection.candidates import select
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.sensitivity.measurement import Measurement
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.solvers.solution import RawSolution, Solution
from qubo_compress.solvers.verification import verify

CHECKED = 256
"""Inputs that a result keeps, for checking exported files."""


@torch.inference_mode(False)  # inference mode allows no gradients, and hides writes
def review(
    model: nn.Module,
    table: SensitivityTable,
    plan: Plan,
    batches: Iterable[Any],
    network: nn.Module | None = None,
    *,
    budget: Budget | None = None,
    settings: Measurement | None = None,
) -> CompressionResult:
    """Judge a plan on examples, beside the additive, the uniform and the greedy plan of the same bytes.

    Nothing is measured or solved again but these opponents. The plan stays the one that was taken, also where an
    opponent does better: the result says what each one measured.

    Args:
        model: the original network.
        table: that the plan was made from.
        plan: of this table.
        batches: examples that the table was not measured on.
        network: made from the plan and then repaired or fine-tuned; None: the plan applied.
        budget: that the plan was made for; default: its own bytes.
        settings: how outputs are read and compared: ``loss``, ``output``, ``class_axis`` and ``batch_size``.

    Raises:
        WrongModel: when the plan, the table and the networks do not belong together.
        UnsupportedProblem: for a plan that removes channels.
        InvalidBatches: when the batches cannot be used.
    """
    model = private_copy(unwrapped(model))
    _refuse_others(table, plan, network)
    given = Budget(bytes=plan.bytes) if budget is None else budget
    problem = table.problem(given)
    solution = _as_recorded(problem, plan)
    how = settings or Measurement()
    read = read_examples(batches, ALL_EXAMPLES, how.batch_size, how.reading, "validation")
    examples, settled = settle(model, read, how.loss)
    judge = HeldOut.of(model, examples, settled)
    candidates, _ = select(table, problem, solution, judge)
    taken = Round.of(table, solution, candidates, candidates[0])
    applied = plan.apply(model)
    return CompressionResult(
        model=applied if network is None else network,
        original=model,
        compressed_model=applied,
        plan=plan,
        solution=solution,
        table=table,
        rounds=(taken,),
        before=judge.score(model),
        compressed=judge.score(applied),
        recovered=None if network is None else judge.score(network),
        applied_comparison=candidates[0].comparison,
        recovered_comparison=None if network is None else judge.compare(network),
        recovery_kept=network is not None,
        held_out_is_validation=True,
        budget=given,
        inputs=tuple(part.inputs for part in examples.leading(CHECKED).slices),
    )


def with_proof(plan: Plan, solution: Solution, problem: ChoiceProblem) -> Plan:
    """The plan with the bound of a solution, which :func:`review` knows again in its file.

    Args:
        plan: of the problem's choices.
        solution: of the same problem; if its energies are not the problem's, or it has no bound, nothing is recorded.
        problem: of the table that is saved beside the plan.
    """
    if solution.bound is None or problem.energy(_assignment(problem, solution.choices)) != solution.energy:
        return plan
    energy = problem.energy(_assignment(problem, plan.choices))
    return replace(plan, proof=ProvenBound(solution.solver, energy, solution.bound, _limits(problem)))


def _as_recorded(problem: ChoiceProblem, plan: Plan) -> Solution:
    """The plan as a solution, with the bound that the plan records if it is one for this problem."""
    assignment, proof = _assignment(problem, plan.choices), plan.proof
    if proof is None or not proof.holds(problem.energy(assignment), _limits(problem)):
        return verify(problem, GIVEN, RawSolution((assignment,)), 0.0)
    return verify(problem, proof.solver, RawSolution((assignment,), bound=proof.bound - problem.constant), 0.0)


def _assignment(problem: ChoiceProblem, choices: Mapping[str, str]) -> IntArray:
    """(G,) local index of the named choice of every group."""
    names = [problem.choice_names[a:b] for a, b in zip(problem.group_offsets, problem.group_offsets[1:], strict=False)]
    local = [offered.index(choices[group]) for group, offered in zip(problem.group_names, names, strict=True)]
    return np.array(local, dtype=np.int64)


def _limits(problem: ChoiceProblem) -> dict[str, int]:
    return {name: int(limit) for name, limit in zip(problem.budget_names, problem.limits, strict=True)}


def _refuse_others(table: SensitivityTable, plan: Plan, network: nn.Module | None) -> None:
    if plan.removal is not None:
        raise UnsupportedProblem("a plan that removes channels has no table on disk: the report is written by compress")
    if plan.weights != table.provenance.weights or set(plan.choices) != set(table.group_names):
        raise WrongModel("the plan was made from another table: solve this table again, or give the table of the plan")
    strange = [name for name in set(plan.choices.values()) if name not in table.menu_names]
    if strange:
        raise WrongModel(f"the plan chooses {strange[0]}, which this table does not offer: give the table of the plan")
    if network is not None and dict(compression_of(network).plan.choices) != dict(plan.choices):
        raise WrongModel("the compressed network was made from another plan; apply this one first")
