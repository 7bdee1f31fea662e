"""The one place that strings the rooms together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qubo_compress._internal.checks import whole
from qubo_compress.artifact.writing import save
from qubo_compress.audits import AuditReport
from qubo_compress.budget import Budget, refuse_other_than_a_budget
from qubo_compress.calibration.evaluation import ALL_EXAMPLES, Score, score_examples, settle
from qubo_compress.calibration.examples import Examples, read_examples, set_aside
from qubo_compress.calibration.weights import ExampleWeights, check_example_weights, with_example_weights
from qubo_compress.errors import ForwardFailed, InvalidBatches, InvalidBudget, InvalidModel
from qubo_compress.menu.menu import Menu, refuse_other_than_a_menu
from qubo_compress.network.discovery import GroupRule, discover
from qubo_compress.network.losses.classification import AUTO, LossLike
from qubo_compress.network.scores import OutputLike, OutputReading
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.pipeline.close import closely_measured
from qubo_compress.pipeline.finals import judged_repaired
from qubo_compress.pipeline.refinement import Round, refine
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.recovery import recover as recover_model
from qubo_compress.recovery.objectives import RecoveryObjective, make_objective
from qubo_compress.recovery.recover import refuse_missing_labels, refuse_unfit_objective
from qubo_compress.recovery.training import Objective
from qubo_compress.report import print_summary, write_report
from qubo_compress.selection.candidates import TIE, select
from qubo_compress.selection.comparison import Comparison, HeldOut
from qubo_compress.sensitivity.forecast import check_seconds
from qubo_compress.sensitivity.measure import measure_around, say
from qubo_compress.sensitivity.metrics.auto import wants_close
from qubo_compress.sensitivity.shrinkage import check_shrinkage, refuse_unshrinkable
from qubo_compress.sensitivity.subject import refuse_unfit
from qubo_compress.sensitivity.table import SensitivityTable
from qubo_compress.sensitivity.task import Metric, make_metric
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.solver import Solver, check_time_limit, make_solver, refuse_unreachable
from qubo_compress.solvers.solver import solve as solve_problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CompressionResult:
    """Everything that one call of :func:`compress` found.

    Attributes:
        model: the compressed network, recovered if that helped, in eval mode; it carries its plan.
        original: the network given, untouched.
        compressed_model: the plan applied, before any recovery.
        plan: which choice every group got.
        solution: the solver's answer behind the plan, with its bound.
        table: the sensitivity table that was solved first.
        rounds: the first solve and every refinement.
        before, compressed, recovered: scores on the held-out examples: the original, the plan applied,
            and the plan recovered (None when no recovery was asked for), whether it was kept or not.
        applied_comparison, recovered_comparison: the same two networks against the original, example by example.
        recovery_kept: whether ``model`` is the recovered network: it is when the held-out examples do not say that
            recovery made it worse, by the measure that chose the plan.
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
    applied_comparison: Comparison
    recovered_comparison: Comparison | None
    recovery_kept: bool
    held_out_is_validation: bool
    budget: Budget

    @property
    def taken(self) -> Round:
        """The round whose plan was taken: the last that was accepted."""
        return [found for found in self.rounds if found.accepted][-1]

    @property
    def expected_loss(self) -> float:
        """Predicted loss change of the plan, corrected by what was measured for another plan of its table.

        ``plan.predicted_loss`` is the table's own. Both are of the plan applied, before any recovery; see
        :func:`qubo_compress.selection.candidates.expectations`.
        """
        return self.taken.chosen.expected

    @property
    def final(self) -> Score:
        """Score of ``model`` on the held-out examples."""
        return self.recovered if self.recovered is not None and self.recovery_kept else self.compressed

    @property
    def comparison(self) -> Comparison:
        """``model`` against the original on the held-out examples."""
        kept = self.recovered_comparison if self.recovery_kept else None
        return self.applied_comparison if kept is None else kept

    def save(self, path: str | Path) -> int:
        """Write the compressed network; returns the bytes written."""
        return save(self.model, path)

    def report(self, path: str | Path, audit: AuditReport | None = None) -> Path:
        """Write one self-contained HTML file, with the sections of an audit if given, and return its path."""
        return write_report(self, path, audit=audit)

    def show(self) -> None:
        """Print the summary tables on the terminal."""
        print_summary(self)


@torch.inference_mode(False)  # in which no gradients can be taken, nor writes be noticed
def compress(
    model: nn.Module,
    batches: Iterable[Any],
    budget: Budget,
    validation: Iterable[Any] | None = None,
    menu: Menu | None = None,
    metric: str | Metric = "auto",
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
    seconds: float | None = None,
    batch_size: int | None = None,
) -> CompressionResult:
    """Compress a trained network to a budget: measure, solve, refine, apply, recover, score.

    The model given is left exactly as it was found.

    Candidates are measured on held-out examples and the best one measured wins: the best plans of the solver's
    pool, the optimum of the same table without interactions, ``uniform`` and ``greedy``. For losses on class outputs
    (``"cross-entropy"``, ``"kl"``, ``"binary-cross-entropy"``) the measure is the mean KL divergence from the
    original's outputs: for a calibrated network it is the expected rise of the loss, without the noise of drawn
    labels. For other losses it is the loss itself. The same measure decides whether a refinement is accepted and
    whether the recovered network is kept.

    Args:
        model: trained network.
        batches: calibration batches; see :func:`qubo_compress.calibration.examples.read_examples`.
        budget: what may be stored.
        validation: held-out batches that choose between plans; without them a fifth of the calibration
            examples is set aside, and at least 64 of them or half.
        menu: what is offered; ``Menu()`` when left out.
        metric: a registered name or an object; see :func:`qubo_compress.measure`.
        loss: ``"auto"``: the one that fits outputs and targets, see
            :func:`qubo_compress.calibration.fitting_loss.fitting_loss`; ``"cross-entropy"``, ``"kl"``,
            ``"binary-cross-entropy"``, ``"squared-error"`` or a function (outputs, targets) -> (N,).
        groups: ``"layer"``, ``"filter"``, a regular expression or a function; see :func:`qubo_compress.menu.discover`.
        solver: a registered name or an object; see :func:`qubo_compress.solve`.
        time_limit: wall-clock seconds for each solve.
        rounds: refinement rounds: each re-measures every swap from the best plan so far.
        recover: repair normalisation statistics and biases, and fine-tune for ``epochs`` > 0; kept unless the
            held-out examples say that it did harm. Without validation batches and fine-tuning, a repair that is kept
            is made once more with all examples; the scores are those of the one that had not seen the held-out ones.
        seed: of everything drawn.
        cache: folder for the measurements, those of the rounds included, which are resumed from it; solving,
            checking and recovering begin anew.
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
        seconds: about how long the measurement may take; see :func:`qubo_compress.measure`.
        batch_size: examples that networks are given at once, the batches' own number when left out; see
            :func:`qubo_compress.measure`. Fine-tuning adds the gradients of several runs up for a step.

    Raises:
        InfeasibleBudget: when the budget is below the smallest reachable size, which it names.
        InvalidBatches, InvalidModel, InvalidMenu, NonFiniteLoss, ForwardFailed, CacheMismatch, UnknownName.
    """
    refuse_other_than_a_budget(budget)
    refuse_other_than_a_menu(menu)
    check_time_limit(time_limit)
    rounds, epochs, seed = (whole(*pair) for pair in (("rounds", rounds), ("epochs", epochs), ("seed", seed)))
    model = unwrapped(model)
    layout = discover(model, groups)
    refuse_unfit(model, layout)
    menu = menu or Menu()
    # A misspelt name must not be noticed only after the measurement.
    chosen_solver = make_solver(solver)
    make_objective(objective)
    check_shrinkage(shrinkage)
    check_seconds(seconds)
    check_example_weights(example_weights)
    if metric == "auto" and budget.harmful_flips is not None:
        metric = "gauss-newton"  # which counts them
    refuse_unshrinkable(make_metric(metric), shrinkage)
    reading = OutputReading(output, class_axis)
    read, loss = settle(model, read_examples(batches, max_examples, batch_size, reading, "calibration"), loss)
    if epochs:
        refuse_missing_labels(objective, read)
        refuse_unfit_objective(objective, loss)
    refuse_uncounted_flips(budget, metric, read)
    everything = with_example_weights(model, read, example_weights)
    examples, held_out = _held_out(everything, validation, batch_size, reading)
    judge, before = _judge(model, held_out, loss, "calibration" if validation is None else "validation")
    held_out = judge.examples

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
        shrinkage=shrinkage, priced=refuse_early, seconds=seconds,
    )  # fmt: skip

    tell = say if progress else logger.info

    def solve(problem: ChoiceProblem) -> Solution:
        tell(f"solving by {chosen_solver.name} for at most {time_limit:g} s")
        return solve_problem(problem, chosen_solver, time_limit=time_limit, seed=seed)

    if wants_close(metric, table.provenance.metric) and shrinkage in (None, 1):
        table = closely_measured(model, table, budget, examples, loss, solve, tell)
    problem = table.problem(budget)
    solution = solve(problem)
    tell(f"measuring the best plans on {judge.examples.count:,} held-out examples")
    first = Round.of(table, solution, *select(model, table, problem, solution, judge, seed=seed))
    history = refine(
        model, table, first, rounds=rounds, budget=budget, examples=examples, held_out=judge, menu=menu,
        metric=metric, loss=loss, solve=solve, seed=seed, cache=cache, progress=progress, shrinkage=shrinkage,
    )  # fmt: skip
    last = max(number for number, found in enumerate(history) if found.accepted)

    def repair(applied: nn.Module, given: Examples, passes: int) -> nn.Module:
        return recover_model(
            applied, given, teacher=model, epochs=passes, seed=seed, max_examples=max_examples, progress=progress,
            objective=objective, loss=loss,
        )  # fmt: skip

    # Not with the held-out examples: the scores on them are to be believed.
    final = judged_repaired(
        model, history[last], judge, (lambda a: repair(a, examples, epochs)) if recover else None, epochs
    )
    history[last] = final.round
    chosen, applied, small = final.round, final.applied, final.applied
    applied_comparison, recovered_comparison = chosen.chosen.comparison, chosen.chosen.repaired
    recovered = None if final.repaired is None else score_examples(final.repaired, held_out, loss, judge.reference)
    kept = recovered_comparison is not None and recovered_comparison.measure <= applied_comparison.measure + TIE
    if kept and final.repaired is not None:
        small = final.repaired
        if validation is None and not epochs:
            # What was judged had not seen the held-out examples. Few examples are too precious to leave them out now.
            small = repair(applied, everything, 0)
    return CompressionResult(
        model=small,
        original=model,
        compressed_model=applied,
        plan=chosen.plan,
        solution=chosen.solution,
        table=table,
        rounds=tuple(history),
        before=before,
        compressed=score_examples(applied, held_out, loss, judge.reference),
        recovered=recovered,
        applied_comparison=applied_comparison,
        recovered_comparison=recovered_comparison,
        recovery_kept=kept,
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
    chosen = make_metric(metric)
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
    examples: Examples, validation: Iterable[Any] | None, batch_size: int | None, reading: OutputReading
) -> tuple[Examples, Examples]:
    if validation is not None:
        return examples, read_examples(validation, ALL_EXAMPLES, batch_size, reading, "validation")
    return set_aside(examples)


def _judge(model: nn.Module, held_out: Examples, loss: LossLike, whose: str) -> tuple[HeldOut, Score]:
    """The original network run and scored on the held-out examples: what is wrong with them shows before measuring.

    Args:
        model: the uncompressed network.
        held_out: as they were read.
        loss: resolved.
        whose: batches they came in, for errors.
    """
    try:
        examples = settle(model, held_out, loss)[0]
        judge = HeldOut.of(model, examples, loss)
        return judge, score_examples(model, examples, loss, judge.reference)
    except (InvalidBatches, InvalidModel, ForwardFailed) as cause:
        raise type(cause)(f"{whose} batches: {cause}") from cause.__cause__
