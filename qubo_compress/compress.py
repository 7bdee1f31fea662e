"""The one place that strings the rooms together."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from qubo_compress.artifact.writing import save
from qubo_compress.audit import AuditReport
from qubo_compress.budget import Budget
from qubo_compress.errors import InvalidBudget
from qubo_compress.evaluation import ALL_EXAMPLES, Score, outputs_of, score_examples, settle
from qubo_compress.example_weights import ExampleWeights, with_example_weights
from qubo_compress.examples import Examples, read_examples
from qubo_compress.menu.groups import GroupRule, discover
from qubo_compress.menu.menu import Menu
from qubo_compress.network.scores import OutputLike, OutputReading
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.plan import Plan
from qubo_compress.problem import ChoiceProblem, IntArray
from qubo_compress.recovery import recover as recover_model
from qubo_compress.recovery.objectives import RecoveryObjective, make_objective
from qubo_compress.recovery.recover import refuse_missing_labels, refuse_unfit_objective
from qubo_compress.recovery.training import Objective
from qubo_compress.refinement import Round, best_of_pool, refine
from qubo_compress.sensitivity.infeasible import explained
from qubo_compress.sensitivity.losses import AUTO, LossLike
from qubo_compress.sensitivity.measure import measure_around
from qubo_compress.sensitivity.shrinkage import check_shrinkage
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.sensitivity.task import Metric, metrics
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.solver import Solver, make_solver, refuse_unreachable
from qubo_compress.solvers.solver import solve as solve_problem

logger = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.2
"""Share of the calibration examples set aside when no validation batches are given."""

VERIFIED_PLANS = 8


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """Everything that one call of :func:`compress` found.

    Attributes:
        model: the compressed network, recovered if asked, in eval mode; it carries its plan.
        original: the network given, untouched.
        compressed_model: the plan applied, before any recovery.
        plan: which choice every group got.
        solution: the solver's answer behind the plan, with its bound.
        table: the sensitivity table that was solved first.
        rounds: the first solve and every refinement.
        before, compressed, recovered: scores on the held-out examples: the original, the plan applied,
            and the plan recovered (None when no recovery was asked for).
        held_out_is_validation: whether these examples are the caller's validation batches.
        budget: what was asked for.
    """

    model: nn.Module
    original: nn.Module
    compressed_model: nn.Module
    plan: Plan
    solution: Solution
    table: SensitivityTable
    rounds: tuple[Round, ...]
    before: Score
    compressed: Score
    recovered: Score | None
    held_out_is_validation: bool
    budget: Budget

    def save(self, path: str | Path) -> int:
        """Write the compressed network; returns the bytes written."""
        return save(self.model, path)

    def report(self, path: str | Path, audit: AuditReport | None = None) -> Path:
        """Write one self-contained HTML file, with the sections of an audit if given, and return its path."""
        from qubo_compress.report import write_report

        return write_report(self, path, audit=audit)

    def show(self) -> None:
        """Print the summary tables on the terminal."""
        from qubo_compress.report import print_summary

        print_summary(self)


def compress(
    model: nn.Module,
    batches: Iterable[Any],
    budget: Budget,
    validation: Iterable[Any] | None = None,
    menu: Menu | None = None,
    metric: str | Metric = "gauss-newton",
    loss: LossLike = AUTO,
    groups: GroupRule = "layer",
    solver: str | Solver = "auto",
    time_limit: float = 10.0,
    rounds: int = 0,
    recover: bool = True,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: bool = True,
    *,
    max_examples: int = 2048,
    epochs: int = 0,
    shrinkage: float | str | None = None,
    example_weights: ExampleWeights | None = None,
    objective: str | RecoveryObjective | Objective = "distillation",
    output: OutputLike = None,
    class_axis: int | None = None,
) -> CompressionResult:
    """Compress a trained network to a budget: measure, solve, refine, apply, recover, score.

    The model given is left exactly as it was found.

    Args:
        model: trained network.
        batches: calibration batches; see :func:`qubo_compress.examples.read_examples`.
        budget: what may be stored.
        validation: held-out batches that choose between plans; without them a fifth of the
            calibration examples is set aside.
        menu: what is offered; ``Menu()`` when left out.
        metric: a registered name or an object; see :func:`qubo_compress.measure`.
        loss: ``"auto"``: the one that fits outputs and targets, see
            :func:`qubo_compress.sensitivity.fitting_loss.fitting_loss`; ``"cross-entropy"``, ``"kl"``,
            ``"binary-cross-entropy"``, ``"squared-error"`` or a function (outputs, targets) -> (N,).
        groups: ``"layer"``, ``"filter"``, a regular expression or a function; see :func:`qubo_compress.menu.discover`.
        solver: a registered name or an object; see :func:`qubo_compress.solve`.
        time_limit: wall-clock seconds for each solve.
        rounds: refinement rounds: each re-measures every swap from the best plan so far.
        recover: repair normalisation statistics and biases, and fine-tune for ``epochs`` > 0.
        seed: of everything drawn.
        cache: folder for the measurement, which is resumed from it.
        progress: show progress bars.
        max_examples: calibration examples read.
        epochs: fine-tuning epochs of the recovery, on the calibration batches.
        shrinkage: share of the divergence from the original network in the linear terms; see
            :func:`qubo_compress.measure`.
        example_weights: what counts more in the choice and in fine-tuning, such as ``"tail"``; see
            :func:`qubo_compress.measure`. Validation batches count as they come.
        objective: what fine-tuning minimises; see :func:`qubo_compress.recover`.
        output: which part of what forward returns holds the outputs; see :func:`qubo_compress.measure`.
        class_axis: of outputs with three or more axes; see :func:`qubo_compress.measure`.

    Raises:
        InfeasibleBudget: when the budget is below the smallest reachable size, which it names.
        InvalidBatches, InvalidModel, InvalidMenu, NonFiniteLoss, ForwardFailed, CacheMismatch, UnknownName.
    """
    if rounds < 0 or epochs < 0:
        raise InvalidBudget(f"rounds and epochs must not be negative; got {rounds} and {epochs}")
    model = unwrapped(model)
    menu = menu or Menu()
    # A misspelt name must not be noticed only after the measurement.
    chosen_solver = make_solver(solver)
    make_objective(objective)
    check_shrinkage(shrinkage)
    reading = OutputReading(output, class_axis)
    read, loss = settle(model, read_examples(batches, max_examples, reading=reading), loss)
    if epochs:
        refuse_missing_labels(objective, read)
        refuse_unfit_objective(objective, loss)
    refuse_uncounted_flips(budget, metric, read)
    examples, held_out = _held_out(with_example_weights(model, read, example_weights), validation, reading)
    held_out = settle(model, held_out, loss)[0]
    layout = discover(model, groups)

    def refuse_early(costs: Mapping[str, IntArray], fixed: Mapping[str, int], offsets: IntArray) -> None:
        # A budget out of reach must not be noticed only after the measurement.
        limits = budget.limits(layout.original_bytes, layout.parameters)
        limits = {name: limit for name, limit in limits.items() if name in costs}  # flips are not counted yet
        refuse_unreachable(
            ChoiceProblem(
                linear=np.zeros(int(offsets[-1])),
                group_offsets=offsets,
                costs=np.stack([costs[name] for name in limits]),
                limits=np.array(list(limits.values()), dtype=np.int64),
                fixed_costs=np.array([fixed.get(name, 0) for name in limits], dtype=np.int64),
                budget_names=tuple(limits),
            )
        )

    table = measure_around(
        model, model, examples, menu, metric, loss, layout, cache, seed, progress,
        shrinkage=shrinkage, priced=refuse_early,
    )  # fmt: skip

    def solve(problem: ChoiceProblem) -> Solution:
        return solve_problem(problem, chosen_solver, time_limit=time_limit, seed=seed)

    solution = solve(table.problem(budget))
    plan, measured, checked = best_of_pool(model, table, solution, held_out, loss, VERIFIED_PLANS)
    first = Round(table, solution, plan, plan.predicted_loss, measured, True, checked)
    history = refine(
        model, table, first, rounds=rounds, budget=budget, examples=examples, held_out=held_out, menu=menu,
        metric=metric, loss=loss, solve=solve, seed=seed, cache=cache, progress=progress, verify=VERIFIED_PLANS,
        shrinkage=shrinkage,
    )  # fmt: skip
    chosen = [found for found in history if found.accepted][-1]
    reference = outputs_of(model, held_out)
    small = applied = chosen.plan.apply(model)
    compressed = score_examples(applied, held_out, loss, reference)
    recovered = None
    if recover:
        # Not the held-out examples: the scores on them are to be believed.
        small = recover_model(
            applied, examples, teacher=model, epochs=epochs, seed=seed, max_examples=max_examples, progress=progress,
            objective=objective, loss=loss,
        )  # fmt: skip
        recovered = score_examples(small, held_out, loss, reference)
    return CompressionResult(
        model=small,
        original=model,
        compressed_model=applied,
        plan=chosen.plan,
        solution=chosen.solution,
        table=table,
        rounds=tuple(history),
        before=score_examples(model, held_out, loss, reference),
        compressed=compressed,
        recovered=recovered,
        held_out_is_validation=validation is not None,
        budget=budget,
    )


def refuse_uncounted_flips(budget: Budget, metric: str | Metric, examples: Examples) -> None:
    """Refuse a limit on harmful flips that the measurement to come would not count.

    Raises:
        InvalidBudget: without class labels, or under a metric that does not run every choice.
    """
    if budget.harmful_flips is None:
        return
    chosen = metrics.get(metric)() if isinstance(metric, str) else metric
    if not getattr(chosen, "counts_flips", False):
        raise InvalidBudget(
            f"harmful_flips was given, and the metric {chosen.metric_name!r} does not run every choice and so counts "
            "no flips; use 'gauss-newton' or 'pairwise', or measured_linear=True of 'jacobian' and 'fisher'"
        )
    if any(part.targets is None or part.targets.is_floating_point() for part in examples.slices):
        raise InvalidBudget(
            "harmful_flips was given, and the batches have no class labels, so nobody knows which flips are harmful; "
            "give (inputs, labels) batches, or leave it out"
        )


def _held_out(
    examples: Examples, validation: Iterable[Any] | None, reading: OutputReading
) -> tuple[Examples, Examples]:
    if validation is not None:
        return examples, read_examples(validation, ALL_EXAMPLES, reading=reading)
    if math.floor(HELD_OUT_SHARE * examples.count) < 1:
        return examples, examples
    return examples.split(HELD_OUT_SHARE)


@dataclass(frozen=True)
class FrontPoint:
    """One budget of a Pareto front.

    Attributes:
        ratio: asked for.
        plan: found.
        energy: predicted loss change.
        bound: lower bound on it, or None.
        solution: the solver's whole answer.
    """

    ratio: float
    plan: Plan
    energy: float
    bound: float | None
    solution: Solution


def pareto(
    table: SensitivityTable,
    ratios: Sequence[float] = (4, 8, 12, 16),
    solver: str | Solver = "auto",
    time_limit: float = 5.0,
    seed: int = 0,
    interactions: bool = True,
    within: Budget | None = None,
) -> tuple[FrontPoint, ...]:
    """Best plans over a range of sizes: solves again for each, measures nothing.

    Args:
        table: measured once.
        ratios: original bytes over stored bytes.
        solver: a registered name or an object; see :func:`qubo_compress.solve`.
        time_limit: wall-clock seconds for each ratio.
        seed: of the solver's generator.
        interactions: False: linear terms only.
        within: a budget whose other limits, such as ``macs``, hold at every size; its own size does not count.

    Raises:
        InfeasibleBudget: when a ratio is out of reach.
        NoFeasibleFound: when no plan of that size was found in time.
    """
    points = []
    for ratio in ratios:
        budget = Budget(ratio=ratio) if within is None else within.resized(ratio)
        problem = table.problem(budget, interactions)
        with explained(table.layout, table.costs, table.fixed_costs, table.offsets, table.kept_because):
            solution = solve_problem(problem, solver, time_limit=time_limit, seed=seed)
        points.append(FrontPoint(float(ratio), table.plan(solution), solution.energy, solution.bound, solution))
    return tuple(points)
