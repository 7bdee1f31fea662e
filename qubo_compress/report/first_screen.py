"""What a reader asks first: what was gained, what was lost, against what, and whether to trust the prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from qubo_compress.page.numbers import number, percent, signed, size
from qubo_compress.report import amounts, facts, verdict
from qubo_compress.report.comparisons import REPAIR, basis, compared_repaired, harm, opponents, shown, solvers_candidate
from qubo_compress.selection.candidates import Candidate
from qubo_compress.selection.comparison import Comparison, Estimate

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult
    from qubo_compress.timing import Elsewhere

WHAT_THEY_ARE = (
    "Uniform is one choice for all layers, additive the optimum without interactions, greedy the best next step, "
    "magnitude the least squared error of the weights."
)

SPAN = 64
"""Width of the picture of an interval, in pixels."""


def first_screen(result: CompressionResult, elsewhere: Elsewhere | None = None) -> str:
    """The four answers as HTML."""
    answers = (_gained(result, elsewhere), _lost(result), _alternatives(result), _trust(result))
    return f'<div class="answers">{"".join(answers)}</div>'


def _answer(question: str, value: str, style: str, sentences: Sequence[str], more: str = "") -> str:
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences if sentence)
    return f'<section><h2>{escape(question)}</h2><div class="value {style}">{escape(value)}</div>{said}{more}</section>'


def _gained(result: CompressionResult, elsewhere: Elsewhere | None) -> str:
    plan = result.plan
    before = 8 * plan.original_bytes / max(1, plan.parameters)
    said = [
        f"{size(plan.original_bytes)} to {size(plan.bytes)}, the whole file. {_budgets(result)}",
        f"{plan.bits_per_weight:.2f} bits per weight, from {before:.1f}.",
    ]
    if plan.removal is not None:
        left = sum(parameter.numel() for parameter in result.model.parameters())
        said.append(f"{left:,} of {plan.parameters:,} parameters are left: channels were removed.")
    return _answer("What was gained", f"{plan.ratio:.1f} times smaller", "main", [*said, *_time(result, elsewhere)])


def _budgets(result: CompressionResult) -> str:
    used = [
        f"{percent(used / max(1, limit))} of the {amounts.budget_name(name)} allowed"
        for name, limit, used in facts.budget_rows(result)
    ]
    return f"Used: {', '.join(used)}."


def _time(result: CompressionResult, elsewhere: Elsewhere | None) -> list[str]:
    if elsewhere is not None:
        return [
            f"{one.runtime}: {number(one.plain_milliseconds)} ms to {number(one.milliseconds)} ms, {one.speed:.2f} "
            "times as fast."
            for one in elsewhere.runtimes
        ]
    if result.predicted_latency is not None:
        return [f"Predicted time: {number(result.predicted_latency)} ms; not measured."]
    return ["Time was not measured; result.elsewhere() does it."]


def _lost(result: CompressionResult) -> str:
    before, after, found = result.before, result.final, result.comparison
    examples = amounts.counted(found.examples)
    if math.isnan(before.accuracy):
        said = [f"Loss {number(before.loss)} to {number(after.loss)}, on {examples}."]
        if found.by_divergence:
            said.append(
                "If the original's probabilities are right, this is by how much the loss rises on new examples."
            )
            value = f"{amounts.plus_minus(found.divergence, signs=False)} divergence"
        else:
            value = f"{amounts.plus_minus(found.change)} loss"
        return _answer("What was lost", value, "", said)
    low, high = verdict.accuracy_interval(found)
    worse = "bad" if high < 0 else ""
    said = [
        f"Accuracy {percent(before.accuracy)} to {percent(after.accuracy)}, on {examples}; 95 % interval of the change "
        f"{amounts.points(low)} to {amounts.points(high)} points.",
        f"Loss {number(before.loss)} to {number(after.loss)}: {amounts.plus_minus(found.change)}.",
        f"{found.lost:,} right answer{'s' * (found.lost != 1)} lost, {found.gained:,} gained, of {found.rows:,}.",
    ]
    return _answer(
        "What was lost", f"{amounts.points(after.accuracy - before.accuracy)} points of accuracy", worse, said
    )


# -------------------------------------------------------------------------------------------- alternatives


def against_uniform(result: CompressionResult) -> str:
    """A few words: how the plan compares with one choice for all layers; after repair, where all had it."""
    found = dict(opponents(result)).get("uniform")
    if found is None:
        return "No uniform plan fits the budget"
    taken = result.taken.chosen
    if found is taken:
        return "The uniform plan is the best"
    mine, other = (harm(shown(result, candidate)) for candidate in (taken, found))
    if not math.isfinite(other.mean):
        return "Uniform destroys the network"
    apart, noise = other.mean - mine.mean, 2 * math.hypot(mine.standard_error, other.standard_error)
    if not apart > noise:
        return "Not clearly better than uniform"
    if taken.comparison.by_divergence and mine.mean > 0:
        return f"{other.mean / mine.mean:.2g} times closer than uniform"
    return f"Loss {number(apart)} below uniform's"


def _alternatives(result: CompressionResult) -> str:
    taken = result.taken.chosen
    rows = [("this plan", taken), *opponents(result)]
    measured = [harm(shown(result, candidate)) for _, candidate in rows]
    finite = [found for found in measured if math.isfinite(found.mean)]
    most = max((abs(found.mean) + _error(found) for found in finite), default=1.0) or 1.0
    labelled = taken.comparison.rows > 0
    measure = "divergence" if taken.comparison.by_divergence else "loss change"
    head = ["plan", measure, "", *(["points", "lost / gained"] if labelled else []), "bytes"]
    lines = []
    for number_, (name, candidate) in enumerate(rows):
        same = number_ > 0 and candidate is taken
        cells = [f"{name}: the same plan"] if same else _cells(name, candidate, shown(result, candidate), most)
        kind = ' class="first"' * (number_ == 0)
        row = f'<td colspan="{len(head)}">{cells[0]}</td>' if same else "".join(cells)
        lines.append(f"<tr{kind}>{row}</tr>")
    heads = "".join(f"<th{' class=n' * (place > 0)}>{name}</th>" for place, name in enumerate(head))
    table = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    note = (
        f"{WHAT_THEY_ARE} All on the same {amounts.counted(taken.comparison.examples)}{_channels(result)}; these also "
        f"chose the plan, which flatters it a little.{f' {REPAIR}' * compared_repaired(result)}"
    )
    clear = against_uniform(result)
    style = "good" if "times closer" in clear or "below" in clear or "destroys" in clear else ""
    return _answer(
        "Against what alternative", clear, style, [basis(result)], f'{table}<p class="note">{escape(note)}</p>'
    )


def _channels(result: CompressionResult) -> str:
    """The best plan that removes nothing, where channels could be removed."""
    trials = [] if result.decisions is None else result.decisions.trials
    kept = [trial.measure for trial in trials if trial.removed == 0 and trial.measure is not None]
    removed = result.plan.removal is not None
    return f" (the best plan that removes no channels: {number(kept[0])})" if kept and removed else ""


def _cells(name: str, candidate: Candidate, found: Comparison, most: float) -> list[str]:
    measured = harm(found)
    texts = [amounts.points(found.accuracy.mean), f"{found.lost:,} / {found.gained:,}"] if found.rows else []
    texts.append(f"{candidate.plan.bytes:,}")
    cells = [
        f"<td>{escape(name)}</td>",
        f'<td class="n">{escape(amounts.plus_minus(measured, signs=not found.by_divergence))}</td>',
        f"<td>{_span(measured, most)}</td>",
    ]
    return [*cells, *(f'<td class="n">{escape(text)}</td>' for text in texts)]


def _error(found: Estimate) -> float:
    return 2 * found.standard_error if math.isfinite(found.standard_error) else 0.0


def _span(found: Estimate, most: float) -> str:
    """An interval and its middle, on a scale from zero that all rows share."""
    if not math.isfinite(found.mean):
        return ""

    def place(value: float) -> float:
        return 4 + (SPAN - 8) * min(1.0, max(0.0, value / most))

    low, high = place(found.mean - _error(found)), place(found.mean + _error(found))
    return (
        f'<svg class="span" viewBox="0 0 {SPAN} 14" aria-hidden="true"><path d="M4 1v12" stroke="var(--rule)"/>'
        f'<path d="M{low:.1f} 7H{high:.1f}" stroke="var(--pale)" stroke-width="5"/>'
        f'<circle cx="{place(found.mean):.1f}" cy="7" r="3.5" fill="var(--blue)"/></svg>'
    )


# --------------------------------------------------------------------------------------------------- trust


def _trust(result: CompressionResult) -> str:
    taken = result.taken.chosen
    measured = verdict.held_against(result, taken)
    applied = "" if result.recovered is None else f", before {'fine-tuning' if result.epochs else 'repair'}"
    said = [
        f"For the plan taken the loss model predicted {signed(taken.predicted)}; held-out examples say "
        f"{amounts.plus_minus(measured)}{applied}."
    ]
    words, below = verdict.proof_text(result)
    between = " " if result.solution.status == "optimal" else ", "
    other = verdict.not_the_optimum(result)
    said.append(other or f"Solver {result.solution.solver}: {words.lower()}{between}{below}.")
    value, style = trusted(result)
    few = verdict.few_examples(result)
    said += [f"{few[0].split(':')[0]}."] if few else []
    wrong = bool(verdict.warnings(result)) or bool(few)
    more = '<p><a href="#warnings">Why, and what to do</a></p>' if wrong else ""
    return _answer("Can the prediction be trusted?", value, style, said, more)


def trusted(result: CompressionResult) -> tuple[str, str]:
    """(a few words, their style): what the held-out examples say of the prediction."""
    taken = result.taken.chosen
    measured = verdict.held_against(result, taken)
    if not math.isfinite(measured.mean):
        return "No: the outputs are not finite", "bad"
    found = verdict.disagreement(result, taken)
    if found is not None:
        return f"No{'' if found.factor is None else f': {found.how_far} was measured'}", "bad"
    if verdict.disagreement(result, solvers_candidate(result)) is not None:
        return "Not for every plan", "bad"
    if verdict.few_examples(result):
        return "Too few examples to say", ""
    if taken.comparison.by_divergence and max(abs(taken.predicted), abs(measured.mean)) < verdict.NEGLIGIBLE:
        return "Yes, as small as predicted", "good"
    low, high = measured.interval
    if low <= taken.predicted <= high:
        return "Yes: measured as predicted", "good"
    if taken.predicted > 0 and measured.mean > 0:
        apart = verdict.Disagreement(taken.predicted, measured, measured.mean / taken.predicted).how_far
        return f"Roughly: {apart} was measured", ""
    return "Roughly", ""
