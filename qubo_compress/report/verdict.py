"""Sentences about the held-out examples: the change with its interval, the predictions compared with it, the proof.

The measured result comes first. Predictions and proofs are about the loss model, and their sentences say how good that
model was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qubo_compress.calibration.intervals import NORMAL_95, paired_change
from qubo_compress.page.numbers import number, percent, signed, size
from qubo_compress.report.amounts import counted, plus_minus, points
from qubo_compress.report.comparisons import compared_repaired, harm, shown, solvers_candidate, when
from qubo_compress.report.facts import gap_text
from qubo_compress.selection.candidates import EVOLVED, Candidate
from qubo_compress.selection.comparison import Comparison, Estimate

if TYPE_CHECKING:
    from qubo_compress.calibration.evaluation import Score
    from qubo_compress.pipeline.compress import CompressionResult
    from qubo_compress.solvers.solution import Solution

GIVEN = "the given plan"
"""Name of the solver of a plan that does not say what its solver proved."""

SIMULATED = "The annealer was simulated locally; no quantum hardware was used."

LOCAL_ANNEALERS = ("annealer", "simulated-annealing")
"""Solvers whose names suggest hardware that they do not use; ``auto`` lists those it ran in its notes."""

OFF_BY = 2.0
"""A prediction is called wrong if it is off by more than this factor beyond two standard errors."""

NEGLIGIBLE = 1e-3
"""Divergences below this change hardly any answer, so their predictions are not judged."""

FEWEST_ROWS = 30
"""With fewer labelled held-out rows, nothing is said about accuracy."""

WIDE_POINTS = 0.1
"""An accuracy interval wider than this on either side cannot tell a good plan from a poor one."""

WIDE_LOSS = 0.1
"""The same for the change of a loss, as a share of the original's loss; or half of the change itself."""

UNCHANGED = 1e-3
"""A repair that changes the held-out measure by less than this share made no difference."""

OPPONENTS = {
    "additive": "the optimum without interactions", "uniform": "one choice for all groups", "greedy": "greedy",
    "layerwise": "the same choice for all parts of each layer", "magnitude": "the least squared error of the weights",
}  # fmt: skip


@dataclass(frozen=True)
class Disagreement:
    """A prediction that the held-out examples contradict.

    Attributes:
        predicted: loss change.
        measured: loss change on the held-out examples.
        factor: measured over predicted; None if either is not above zero.
    """

    predicted: float
    measured: Estimate
    factor: float | None

    @property
    def how_far(self) -> str:
        """The factor as a phrase, such as "3 times more"."""
        if self.factor is None:
            return "which no factor describes"
        return f"{number(self.factor)} times more" if self.factor > 1 else f"{number(1 / self.factor)} times less"


def held_against(result: CompressionResult, candidate: Candidate) -> Estimate:
    """The measured value of a candidate in the unit of its prediction."""
    return candidate.comparison.held_against(result.table.provenance.shrinkage)


def disagreement(result: CompressionResult, candidate: Candidate) -> Disagreement | None:
    """Whether prediction and measurement of a plan differ by more than a factor of 2, beyond two standard errors."""
    measured, predicted = held_against(result, candidate), candidate.predicted
    if candidate.comparison.by_divergence and max(abs(predicted), abs(measured.mean)) < NEGLIGIBLE:
        return None
    low, high = measured.interval
    more = low > OFF_BY * max(predicted, 0.0)
    less = predicted > OFF_BY * max(high, 0.0)
    if not math.isfinite(measured.mean) or not (more or less):
        return None
    factor = measured.mean / predicted if predicted > 0 and measured.mean > 0 else None
    return Disagreement(predicted, measured, factor)


# ---------------------------------------------------------------------------------------------- measured


def headline(result: CompressionResult) -> str:
    """One sentence: how much smaller, and what was measured."""
    plan = result.plan
    return (
        f"{type(result.original).__name__}: {size(plan.original_bytes)} to {size(plan.bytes)}, "
        f"{plan.ratio:.1f} times smaller; {measured_text(result)}"
    )


def measured_text(result: CompressionResult) -> str:
    """The change of accuracy, or of the loss where there are no labels, on the held-out examples."""
    before, after, found = result.before, result.final, result.comparison
    if math.isnan(before.accuracy):
        return f"{loss_text(before, after, found)} on {counted(found.examples)}"
    return accuracy_text(before, after, found)


def accuracy_text(before: Score, after: Score, found: Comparison) -> str:
    """Accuracy before and after with the interval of the change."""
    low, high = accuracy_interval(found)
    lost_and_gained = f"{found.lost:,} right answer{'s' * (found.lost != 1)} lost, {found.gained:,} gained"
    return (
        f"accuracy {percent(before.accuracy)} to {percent(after.accuracy)} on {counted(found.examples)} "
        f"({points(after.accuracy - before.accuracy)} points, 95 % interval {points(low)} to {points(high)}; "
        f"{lost_and_gained})"
    )


def accuracy_interval(found: Comparison) -> tuple[float, float]:
    """95 % interval of the change of accuracy: Bonett and Price's for pairs; normal if examples have many rows."""
    if found.rows == found.examples:
        return paired_change(found.lost, found.gained, found.rows)
    half = NORMAL_95 * found.accuracy.standard_error
    return max(-1.0, found.accuracy.mean - half), min(1.0, found.accuracy.mean + half)


def loss_text(before: Score, after: Score, found: Comparison) -> str:
    """Loss before and after, and the change."""
    return f"loss {number(before.loss)} to {number(after.loss)} ({plus_minus(found.change)})"


def measured_sentences(result: CompressionResult) -> tuple[str, ...]:
    """Measurements of the returned network, beyond the headline."""
    found = result.comparison
    said = [
        f"The held-out loss went from {number(result.before.loss)} to {number(result.final.loss)}: "
        f"{plus_minus(found.change)}, two standard errors over {counted(found.examples)}."
    ]
    if found.by_divergence:
        said.append(
            f"The mean KL divergence from the original's outputs is {plus_minus(found.divergence, signs=False)}. If "
            "the original's probabilities are right, this is by how much the loss rises on new examples; the measured "
            "change of the loss also depends on which labels these examples happen to have."
        )
    if not math.isnan(result.before.accuracy) and found.rows == found.examples:
        said.append(f"One example is {100 / found.rows:.2g} points of accuracy.")
    if (sentence := recovery_sentence(result)) is not None:
        said.append(sentence)
    return tuple(said)


def recovery_sentence(result: CompressionResult) -> str | None:
    """Whether the repaired or fine-tuned network was kept, and why; None without either."""
    recovered = result.recovered_comparison
    if recovered is None:
        return None
    applied = result.applied_comparison
    what = "divergence" if applied.by_divergence else "loss"
    figures = f"held-out {what} {number(applied.measure)} before it, {number(recovered.measure)} after it"
    if result.recovery_kept:
        return f"{_repair_name(result)} was kept: {figures}."
    did = "changed nothing worth keeping" if _alike(applied, recovered) else "did harm and was not kept"
    return f"{_repair_name(result)} {did}: {figures}. The network returned is the plan as applied."


def _repair_name(result: CompressionResult) -> str:
    if result.epochs:
        return "Fine-tuning"
    if result.reconstructed:
        return "The repair, which stored layers again for their inputs in the small network,"
    return "The repair" if compared_repaired(result) else "The repair or fine-tuning"


def stage_name(result: CompressionResult) -> str:
    """What the network after the plan is called in tables."""
    name = "fine-tuned" if result.epochs else "repaired" if compared_repaired(result) else "repaired or tuned"
    return name if result.recovery_kept else f"{name}, not kept"


def _alike(first: Comparison, second: Comparison) -> bool:
    """Whether the measures of two networks differ only by rounding, or by less than two standard errors of both."""
    apart = abs(second.measure - first.measure)
    if not math.isfinite(apart):
        return False
    errors = [found.divergence if found.by_divergence else found.change for found in (first, second)]
    noise = 2 * math.hypot(*(error.standard_error for error in errors))
    return apart <= max(UNCHANGED * abs(first.measure), noise)


def few_examples(result: CompressionResult) -> tuple[str, ...]:
    """Sentences for held-out examples that are too few to tell a good plan from a poor one."""
    found = result.comparison
    wide = _unclear_accuracy(found) if found.rows else _unclear_loss(result)
    if wide is None:
        return ()
    remedy = (
        "more validation examples" if result.held_out_is_validation else "more calibration examples, or validation="
    )
    verb = "cannot tell" if found.examples != 1 else "alone cannot tell"
    return (f"{counted(found.examples)} {verb} a good plan from a poor one: {wide}. Give {remedy}.",)


def _unclear_accuracy(found: Comparison) -> str | None:
    """The width of the accuracy's interval, if it is too wide or rests on too few rows."""
    low, high = accuracy_interval(found)
    if found.rows >= FEWEST_ROWS and high - low <= 2 * WIDE_POINTS:
        return None
    return f"the 95 % interval of the accuracy's change is {100 * (high - low):.0f} points wide"


def _unclear_loss(result: CompressionResult) -> str | None:
    """How uncertain the change of the loss is, if that is too much."""
    found, change = result.comparison, result.comparison.change
    known = 2 * change.standard_error
    if not math.isfinite(change.mean):
        return None  # more examples would not make this plan a good one
    if not math.isfinite(known):
        return "the change of its loss says nothing about others"
    least = NEGLIGIBLE if found.by_divergence else 0.0
    if known <= max(least, WIDE_LOSS * abs(result.before.loss), abs(change.mean) / 2):
        return None
    return f"the loss changed by {plus_minus(change)}, from {number(result.before.loss)}"


# --------------------------------------------------------------------------------------------- candidates


def winner_sentence(result: CompressionResult) -> str:
    """Which candidate won, among which ones, and by which measure."""
    found = result.taken
    where = "your validation examples" if result.held_out_is_validation else "the examples set aside"
    running = [name for candidate in found.candidates for name in candidate.names]
    pool = sum(name.startswith("solver") for name in running)
    others = [f"{name} ({OPPONENTS[name]})" if name != "greedy" else name for name in OPPONENTS if name in running]
    others += [f"{name} (the search on the network)" for name in running if name == EVOLVED]
    measure = "divergence from the original" if found.chosen.comparison.by_divergence else "loss"
    repaired = [quoted(candidate) for candidate in found.candidates if candidate.repaired is not None]
    said = f"The plan taken is {quoted(found.chosen)}. It had the lowest {measure} on {where}"
    compared = f"{pool} plan{'s' * (pool != 1)} of the solver's pool" + f" and {', '.join(others)}" * bool(others)
    if len(repaired) > 1:
        said += (
            f" after repair, among the {len(repaired)} plans that were repaired: {', '.join(repaired)}. These are the "
            f"solver's own answer and the best of each kind before repair, of {compared}."
        )
    else:
        said += f"{f' {when(result)}' * bool(result.epochs)}, among {compared}."
    missing = [name for name in OPPONENTS if name not in (*running, "layerwise")]
    return said + (f" Not found in time: {', '.join(missing)}." if missing else "")


def not_the_optimum(result: CompressionResult) -> str:
    """A sentence for results whose plan is not the solver's own answer; "" where it is."""
    taken, solvers = result.taken.chosen, solvers_candidate(result)
    if solvers.name == taken.name:
        return ""
    answer = "optimum" if result.solution.status == "optimal" else "best plan"
    said = f"The solver's {answer} of the loss model was not the plan taken: "
    mine, other = (harm(shown(result, candidate)).mean for candidate in (taken, solvers))
    if not math.isfinite(other):
        return f"{said}its outputs are not finite."
    state = f"{when(result)} ".lstrip()
    said += f"{state}{quoted(taken)} was better on the held-out examples ({number(mine)} against {number(other)})."
    return f"{said} So interactions gained nothing here." if "additive" in taken.names else said


def quoted(candidate: Candidate) -> str:
    """A candidate's names: of every method that found the same plan."""
    return " = ".join(candidate.names)


def warnings(result: CompressionResult) -> tuple[str, ...]:
    """Sentences on predictions that the held-out examples contradict: for the plan taken and the solver's best."""
    taken, solvers = result.taken.chosen, solvers_candidate(result)
    looked_at = [(taken, "the plan taken")]
    if solvers.name != taken.name:
        looked_at.append((solvers, "the solver's best plan"))
    said = []
    for candidate, what in looked_at:
        found = disagreement(result, candidate)
        if found is None:
            continue
        far = f": {found.how_far}" if found.factor is not None else ""
        said.append(
            f"For {what} the model predicted {signed(found.predicted)}, but held-out examples say "
            f"{plus_minus(found.measured)}{far}."
        )
    if not said:
        return ()
    if math.isfinite(taken.expected) and taken.expected != taken.predicted:
        said.append(
            f"Corrected by the other plan with the closest prediction, the plan taken is at {signed(taken.expected)}."
        )
    examples = result.table.provenance.examples
    return (
        *said,
        "Do not trust this table's predictions, those for other sizes included; what was measured on held-out examples "
        f"stands. The table comes from {examples:,} calibration examples: give more, and ones that the network was "
        "not trained on, if you can.",
    )


# ------------------------------------------------------------------------------------------------- solver


def about_solver(result: CompressionResult) -> tuple[str, ...]:
    """Which solver ran and why, how good its answer is for the loss model, and that simulations are not quantum."""
    solution = result.solution
    if solution.solver == GIVEN:
        return (
            f"The plan predicts a loss change of {signed(solution.energy)}. What its solver proved is not recorded in "
            "the plan.",
            winner_sentence(result),
        )
    said = [f"Solver: {solution.solver}, {_work(solution)}."]
    said += [f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in solution.notes]
    if solution.bound is None:
        said.append(
            f"It found a predicted loss change of {signed(solution.energy)}. There is no lower bound: how much better "
            "a plan could be is not known."
        )
    elif solution.status == "optimal":
        said.append(
            f"Its answer, a predicted loss change of {signed(solution.energy)}, is proven optimal for the loss model"
            f"{_model_was(result)}."
        )
    else:
        said.append(
            f"It found a predicted loss change of {signed(solution.energy)}. By the loss model{_model_was(result)}, no "
            f"plan within the budget can be below {signed(solution.bound)}: the answer is at most "
            f"{number(solution.energy - solution.bound)} from the best (gap {gap_text(solution.gap)})."
        )
    if solution.interrupted:
        said.append("The search was interrupted; this is the best plan found until then.")
    if _is_local_annealer(result):
        said.append(SIMULATED)
    said += [sentence for sentence in (not_the_optimum(result), winner_sentence(result)) if sentence]
    return tuple(said)


WORK = {
    "annealer": "sweep", "exact": "node", "clado": "node", "scip": "node", "cfn": "backtrack", "auto": "sweep or node",
    "genetic": "evaluation", "surrogate": "plan", "evopress": "evaluation", "spdy": "evaluation",
    "reinforcement": "episode",
    "simulated-annealing": "sweep", "openjij": "sweep", "path-integral": "sweep", "random": "draw",
}  # fmt: skip
"""The unit of a solver's work; all others count steps."""


def _work(solution: Solution) -> str:
    """How much work was done in how many seconds, without the time for compiling."""
    if not solution.timing.get("total", math.nan):
        return "as the plan records"
    compiling = solution.timing.get("compile", 0.0)
    unit = WORK.get(solution.solver, "step")
    units = unit if solution.work == 1 else " or ".join(f"{word}s" for word in unit.split(" or "))
    seconds = max(0.0, solution.timing.get("total", math.nan) - compiling)
    before = f", after {compiling:.0f} s of compiling" if compiling >= 1.0 else ""
    return f"{solution.work:,} {units} in {seconds:.2f} s{before}"


def _model_was(result: CompressionResult) -> str:
    candidate = solvers_candidate(result)
    found = disagreement(result, candidate)
    measured = plus_minus(held_against(result, candidate))
    if found is None:
        return f" (held-out examples say {measured})"
    if found.factor is None:
        return f", which held-out examples contradict (they say {measured})"
    return f", which was off by a factor of {number(max(found.factor, 1 / found.factor))} on held-out examples"


def proof_text(result: CompressionResult) -> tuple[str, str]:
    """(two words, the line below them) for the solver's card."""
    solution = result.solution
    found = disagreement(result, solvers_candidate(result))
    if found is None:
        model = "for the loss model"
    elif found.factor is None:
        model = "for a loss model that held-out examples contradict"
    else:
        model = f"for a loss model off by a factor of {number(max(found.factor, 1 / found.factor))}"
    if solution.status == "optimal":
        return "Proven best", model
    if solution.solver == GIVEN:
        return "Not recorded", "the plan does not say what its solver proved"
    if solution.bound is None:
        return "Best found", f"no bound, {model}"
    return "Best found", f"gap to the bound {gap_text(solution.gap)}, {model}"


def _is_local_annealer(result: CompressionResult) -> bool:
    solution = result.solution
    if solution.solver in LOCAL_ANNEALERS:
        return True
    return solution.solver == "auto" and any(name in note for note in solution.notes for name in LOCAL_ANNEALERS)
