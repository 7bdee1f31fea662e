"""The only place that connects all rooms."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qubo_compress._internal.checks import whole
from qubo_compress.budget import Budget, refuse_other_than_a_budget
from qubo_compress.calibration.evaluation import ALL_EXAMPLES, Score, settle
from qubo_compress.calibration.examples import Examples, read_examples, set_aside
from qubo_compress.calibration.weights import ExampleWeights
from qubo_compress.errors import ForwardFailed, InvalidBatches, InvalidBudget, InvalidModel, InvalidOption
from qubo_compress.menu.menu import Menu
from qubo_compress.network.discovery import GroupRule
from qubo_compress.network.groups import Layout
from qubo_compress.network.losses.classification import AUTO, LossLike
from qubo_compress.network.scores import OutputLike
from qubo_compress.pipeline.close import closely_measured
from qubo_compress.pipeline.decisions import decided
from qubo_compress.pipeline.evolved import evolved, search_examples
from qubo_compress.pipeline.finals import judged_reconstructed, judged_repaired
from qubo_compress.pipeline.refinement import Refinement, Round, refine
from qubo_compress.pipeline.result import CompressionResult
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.recovery import recover as recover_model
from qubo_compress.recovery.objectives import RecoveryObjective, make_objective
from qubo_compress.recovery.recover import refuse_missing_labels, refuse_unfit_objective
from qubo_compress.recovery.training import Objective
from qubo_compress.selection.candidates import TIE, select
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.selection.evolution import refuse_too_few
from qubo_compress.selection.weight_errors import weight_errors
from qubo_compress.sensitivity.choices import StoredChoices
from qubo_compress.sensitivity.coupled.remainder import Remainder
from qubo_compress.sensitivity.latency_costs import with_latency
from qubo_compress.sensitivity.measure import measure_specimen
from qubo_compress.sensitivity.measurement import Measurement, about_channels
from qubo_compress.sensitivity.metric import Metric
from qubo_compress.sensitivity.metrics.auto import wants_close
from qubo_compress.sensitivity.progress import say
from qubo_compress.sensitivity.specimen import Specimen
from qubo_compress.solvers.solution import Solution
from qubo_compress.solvers.solver import Solver, make_solver
from qubo_compress.solvers.verification import check_time_limit, refuse_unreachable
from qubo_compress.solvers.verification import solve as solve_problem

__all__ = ["CompressionResult", "compress"]

logger = logging.getLogger(__name__)

TRIAL = 512
"""Examples that the best plans of every kind are repaired with, to choose among them; the winner gets all."""

EXPORTED = 256
"""Held-out inputs that a result keeps, for checking exported files."""


@torch.inference_mode(False)  # inference mode allows no gradients, and hides writes
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
    evaluations: int = 0,
    reconstruct: bool = True,
) -> CompressionResult:
    """Compress a trained network to a budget: measure, solve, refine, apply, recover, score.

    The given model is unchanged.

    Candidates are measured on held-out examples, and the one that measures best wins: the best plans of the solver's
    pool, the optimum of the same table without interactions, ``uniform``, ``greedy`` and ``magnitude``. With recovery,
    the best plan of each kind and the solver's own answer are then repaired, and the one that is best after it wins;
    with fine-tuning, which is slow, only the best plan is fine-tuned. For losses on class outputs (``"cross-entropy"``,
    ``"kl"``, ``"binary-cross-entropy"``) the measure is the mean KL divergence from the original's outputs: for a
    calibrated network it is the expected rise of the loss, without the noise of drawn labels. For other losses it is
    the loss itself. The same measure decides whether a refinement is accepted and whether the recovered network is
    kept.

    Args:
        model: trained network.
        batches: calibration batches; see :func:`qubo_compress.calibration.examples.read_examples`.
        budget: the limits.
        validation: held-out batches that choose between plans; default: a fifth of the calibration
            examples, at least 64 or half of them.
        menu: the choices to offer; default: ``Menu()``.
        metric: a registered name or an object; see :func:`qubo_compress.measure`.
        loss: ``"auto"``: the one that fits outputs and targets, see
            :func:`qubo_compress.calibration.fitting_loss.fitting_loss`; ``"cross-entropy"``, ``"kl"``,
            ``"binary-cross-entropy"``, ``"squared-error"`` or a function (outputs, targets) -> (N,).
        groups: ``"layer"``, ``"filter"``, a regular expression or a function; see :func:`qubo_compress.menu.discover`;
            or ``"channel"``, to remove coupled channels. With a menu, layers choose from it and channels choose to
            stay, in one problem; the layers that are left are then measured and chosen for again, and the network with
            all channels competes; see :func:`qubo_compress.measure`.
        solver: a registered name or an object; see :func:`qubo_compress.solve`.
        time_limit: wall-clock seconds for each solve.
        rounds: refinement rounds: each re-measures every swap from the best plan so far.
        recover: repair normalisation statistics and biases, and fine-tune for ``epochs`` > 0; kept unless it did harm
            on the held-out examples. Without fine-tuning, a repair that is kept is repeated
            with all examples; the scores are those of the repair without the held-out ones, and with at most 512.
        seed: of all random draws.
        cache: folder for the measurements, including those of the rounds, which are resumed from it; solving,
            checking and recovering start over.
        progress: show progress bars.
        max_examples: calibration examples read.
        epochs: fine-tuning epochs of the recovery, on the calibration batches.
        shrinkage: share of the divergence from the original network in the linear terms; see
            :func:`qubo_compress.measure`.
        example_weights: which examples count more in the choice and in fine-tuning, such as ``"tail"``; see
            :func:`qubo_compress.measure`. Validation batches keep their own weights.
        objective: what fine-tuning minimises; see :func:`qubo_compress.recover`.
        output: which part of the return value of forward holds the outputs; see :func:`qubo_compress.measure`.
        class_axis: of outputs with three or more axes; see :func:`qubo_compress.measure`.
        seconds: about how long the measurement may take; see :func:`qubo_compress.measure`.
        batch_size: examples per run of a network; default: the batches' own number; see
            :func:`qubo_compress.measure`. Fine-tuning sums the gradients of several runs for a step.
        evaluations: most examples forwarded through the network by a search for better plans on its real loss, which
            starts from the best plans so far; see :func:`qubo_compress.selection.evolution.evolve`. It runs on the
            measured examples, and on half of the held-out ones if there are at least 256. Its plan is taken only if it
            does better on the other held-out examples. 0: no search. The measurement and the checks are not counted.
        reconstruct: with ``recover``, store the compensated choices of the best plans again, layer after layer, for the
            inputs that the compressed network gives them; kept if one does better on the held-out examples. See
            :mod:`qubo_compress.recovery.reconstruction`. Other choices do not look at inputs and stay as they are.

    Raises:
        InfeasibleBudget: when the budget is below the smallest reachable size, which it names.
        InvalidOption: when the evaluations do not suffice for one pass over the examples of the search.
        InvalidBatches, InvalidModel, InvalidMenu, NonFiniteLoss, ForwardFailed, CacheMismatch, UnknownName:
            for what cannot be used; the message says what to do.
    """
    refuse_other_than_a_budget(budget)
    check_time_limit(time_limit)
    if budget.ratio is not None and budget.ratio < 1:
        warnings.warn(
            f"ratio={budget.ratio:g} allows a file larger than the network; for a tenth of the size give ratio=10",
            stacklevel=3,  # inference_mode wraps this function
        )
    rounds, epochs, evaluations = whole("rounds", rounds), whole("epochs", epochs), whole("evaluations", evaluations)
    # A misspelt name must fail before the measurement.
    chosen_solver = make_solver(solver)
    make_objective(objective)
    if budget.harmful_flips is not None and about_channels(groups):
        raise InvalidBudget(
            "harmful_flips was given, and groups='channel' is measured by 'products', which counts no flips; leave it "
            "out, and audit the result"
        )
    if metric == "auto" and budget.harmful_flips is not None:
        metric = "gauss-newton"  # which counts them
    everything = Specimen.of(
        model, batches, Measurement(
            menu, metric, loss, groups, max_examples, cache, seed, progress, shrinkage=shrinkage,
            example_weights=example_weights, output=output, class_axis=class_axis, seconds=seconds,
            process_group=False, batch_size=batch_size,
        ), "calibration",
    )  # fmt: skip
    if everything.settings.about_channels and (rounds or evaluations):
        raise InvalidOption(
            f"rounds={rounds} and evaluations={evaluations} were given; with groups='channel' plans are "
            "neither refined nor evolved: leave both at 0"
        )
    if epochs:
        refuse_missing_labels(objective, everything.examples)
        refuse_unfit_objective(objective, everything.loss)
    refuse_uncounted_flips(budget, everything)
    specimen, held_out = _held_out(everything, validation)
    searched = specimen
    if evaluations:
        among, checking = search_examples(specimen.examples, held_out.examples)
        searched, held_out = specimen.on(among), held_out.on(checking)
        refuse_too_few(evaluations, among.count)
    judge, before = _judge(held_out, "calibration" if validation is None else "validation")
    tell = say if progress else logger.info

    def solve(problem: ChoiceProblem) -> Solution:
        tell(f"solving by {chosen_solver.name} for at most {time_limit:g} s")
        return solve_problem(problem, chosen_solver, time_limit=time_limit, seed=seed)

    def settled(network: Specimen, limits: Budget, remainder: Remainder | None = None) -> Round:
        """Measure the choices of a network, solve, and take the best plan on held-out examples."""
        table = measure_specimen(network, priced=partial(_refuse_out_of_reach, limits, network.layout))
        table = replace(table, remainder=remainder)
        if table.removals is None and wants_close(metric, table.provenance.metric) and shrinkage in (None, 1):
            table = closely_measured(network, table, limits, solve, tell)
        problem = table.problem(limits)
        solution = solve(problem)
        tell(f"measuring the best plans on {judge.examples.count:,} held-out examples")
        errors = weight_errors(network.model, table) if table.removals is None else None
        return Round.of(table, solution, *select(table, problem, solution, judge, seed=seed, weight_errors=errors))

    def repair(applied: nn.Module, given: Examples, passes: int, again: bool = False) -> nn.Module:
        return recover_model(
            applied, given, teacher=judge.model, epochs=passes, seed=seed, max_examples=max_examples,
            progress=progress, objective=objective, loss=judge.loss, reconstruct=again,
        )  # fmt: skip

    decisions = None
    if specimen.settings.mixed:
        each = (lambda applied: repair(applied, specimen.examples, 0)) if recover else None
        first, decisions = decided(specimen, measure_specimen(specimen), budget, solve, settled, judge, each)
    else:
        first = settled(specimen, budget)
    table = first.table
    history = refine(specimen, table, first, judge, budget, solve, Refinement(rounds))
    last = max(number for number, found in enumerate(history) if found.accepted)
    evolution = None
    if evaluations:
        tell(f"searching for better plans with {evaluations:,} evaluations on {searched.examples.count:,} examples")
        accepted = [found for found in history if found.accepted]
        evolution, history[last] = evolved(searched, table, budget, accepted, judge, evaluations)

    # Not with the held-out examples: the scores on them must be trustworthy.
    if recover:
        tell("fine-tuning the best plan" if epochs else "repairing the best plan of each kind, without training")
    trained = reconstruct and epochs > 0  # then layers are stored again before the training
    few = epochs or specimen.examples.count <= TRIAL
    some = specimen.examples if few else specimen.examples.spread(TRIAL)
    mend = (lambda applied: repair(applied, some, epochs, trained)) if recover else None
    final = judged_repaired(history[last], judge, mend, epochs)
    if recover and reconstruct and not epochs:
        again, all_of_them = partial(repair, passes=0, again=True), specimen.examples
        thoroughly = None if some is all_of_them else partial(again, given=all_of_them)
        final = judged_reconstructed(final, judge, partial(again, given=some), thoroughly)
    history[last] = final.round
    chosen, small = final.round.chosen, final.applied
    recovered = final.reconstructed or chosen.repaired
    kept = recovered is not None and recovered.measure <= chosen.comparison.measure + TIE
    if kept and final.repaired is not None:
        small = final.repaired
        if not epochs and some is not everything.examples:
            # The judged repair had not seen the held-out examples. Now they are too valuable to leave out.
            small = repair(final.applied if final.reconstructed is None else small, everything.examples, 0)
    return CompressionResult(
        model=small,
        original=judge.model,
        compressed_model=final.applied,
        plan=chosen.plan,
        solution=final.round.solution,
        table=table,
        rounds=tuple(history),
        before=before,
        compressed=judge.score(final.applied),
        recovered=None if final.repaired is None else judge.score(final.repaired),
        applied_comparison=chosen.comparison,
        recovered_comparison=recovered,
        recovery_kept=kept,
        held_out_is_validation=validation is not None,
        budget=budget,
        evolution=evolution,
        decisions=decisions,
        inputs=tuple(part.inputs for part in judge.examples.leading(EXPORTED).slices),
        epochs=epochs if recover else 0,
        reconstructed=final.reconstructed is not None,
    )


def refuse_uncounted_flips(budget: Budget, specimen: Specimen) -> None:
    """Refuse a limit on harmful flips that the measurement to come would not count.

    Raises:
        InvalidBudget: without class labels, or under a metric that does not run every choice.
    """
    if budget.harmful_flips is None:
        return
    chosen = specimen.settings.asked
    if not chosen.counts_flips:
        raise InvalidBudget(
            f"harmful_flips was given, and the metric {chosen.metric_name!r} does not run every choice and so counts "
            "no flips; use 'gauss-newton' or 'pairwise', or measured_linear=True of 'jacobian' and 'fisher'"
        )
    if any(part.targets is None or part.targets.is_floating_point() for part in specimen.examples.slices):
        raise InvalidBudget(
            "harmful_flips was given, and the batches have no class labels, so nobody knows which flips are harmful; "
            "give (inputs, labels) batches, or leave it out"
        )


def _refuse_out_of_reach(
    budget: Budget, layout: Layout, costs: Mapping[str, IntArray], fixed: Mapping[str, int], choices: StoredChoices
) -> None:
    """Refuse a budget out of reach before the measurement, as far as the costs are known."""
    if budget.latency is not None:
        costs, fixed = with_latency(budget.latency, layout, [tuple(names) for names in choices], costs, fixed)
    limits = budget.limits(layout.original_bytes, layout.parameters)
    limits = {name: limit for name, limit in limits.items() if name in costs}  # flips are not counted yet
    if not limits:
        return
    refuse_unreachable(
        ChoiceProblem(
            linear=np.zeros(int(choices.offsets[-1])),
            group_offsets=choices.offsets,
            costs=np.stack([costs[name] for name in limits]),
            limits=np.array(list(limits.values()), dtype=np.int64),
            fixed_costs=np.array([fixed.get(name, 0) for name in limits], dtype=np.int64),
            budget_names=tuple(limits),
        )
    )


def _held_out(everything: Specimen, validation: Iterable[Any] | None) -> tuple[Specimen, Specimen]:
    """The examples to measure, and those that judge plans: the validation batches, or some of the examples."""
    if validation is None:
        measured, aside = set_aside(everything.examples)
        return everything.on(measured), everything.on(aside)
    settings = everything.settings
    read = read_examples(validation, ALL_EXAMPLES, settings.batch_size, settings.reading, "validation")
    return everything, everything.on(read)


def _judge(held_out: Specimen, whose: str) -> tuple[HeldOut, Score]:
    """The original network's score on the held-out examples; bad ones fail before the measurement.

    Args:
        held_out: the uncompressed network on them.
        whose: batches they came in, for errors.
    """
    try:
        examples, loss = settle(held_out.model, held_out.examples, held_out.loss)
        judge = HeldOut.of(held_out.model, examples, loss)
        return judge, judge.score(judge.model)
    except (InvalidBatches, InvalidModel, ForwardFailed) as cause:
        raise type(cause)(f"{whose} batches: {cause}") from cause.__cause__
