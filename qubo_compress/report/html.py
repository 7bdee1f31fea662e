"""The report as one self-contained HTML file: no network access, no script, no other file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.optional import require
from qubo_compress._internal.text import printable
from qubo_compress.audits.section import audit_sections
from qubo_compress.budget import LATENCY
from qubo_compress.latency import UNITS
from qubo_compress.page.html import STYLE, figure_html, list_html, table_html
from qubo_compress.page.numbers import number, percent, signed, size
from qubo_compress.report import facts, pictures, verdict
from qubo_compress.report.front import Front, find_front, limit_names

if TYPE_CHECKING:
    from qubo_compress.audits import AuditReport
    from qubo_compress.pipeline.compress import CompressionResult
    from qubo_compress.timing import Elsewhere

MOST_ROWS = 160
"""Groups in a table; beyond that, filters are joined to layers."""

MOST_KEPT = 200


def write_report(
    result: CompressionResult,
    path: str | Path,
    *,
    seconds_per_point: float = 1.0,
    audit: AuditReport | None = None,
    elsewhere: Elsewhere | None = None,
) -> Path:
    """Write the whole report as one HTML file and return its path.

    Args:
        result: of :func:`qubo_compress.compress`.
        path: of the file; an older one is replaced only when the new one is complete.
        seconds_per_point: time for each solve of the Pareto front; 0 omits the front.
        audit: of :func:`qubo_compress.audit`, on examples of the caller's choice; adds its sections.
        elsewhere: of ``result.elsewhere()``; adds bytes and milliseconds in other runtimes.

    Raises:
        MissingDependency: without matplotlib, which draws the pictures; ``result.show()`` does without.
        StorageError: when the file cannot be written.
    """
    require("matplotlib")  # before the front is searched
    front = find_front(result, seconds_per_point) if seconds_per_point > 0 else None
    text = page(result, front, audit, elsewhere)
    target = Path(path)
    write_atomically(target, lambda handle: handle.write(text.encode()))
    return target


def page(
    result: CompressionResult,
    front: Front | None,
    audit: AuditReport | None = None,
    elsewhere: Elsewhere | None = None,
) -> str:
    """The whole report as HTML text."""
    model = escape(type(result.original).__name__)
    parts = [
        _header(result),
        _cards(result),
        _warnings(result),
        _plain_words(result),
        _scores(result),
        _candidates(result),
        "" if elsewhere is None else _elsewhere(elsewhere),
        "" if audit is None else audit_sections(audit),
        _layers(result),
        _prediction_and_search(result),
        _interactions(result),
        _front(result, front),
        _groups(result),
        _kept(result),
        _said("How the costs were measured", facts.about_calibration(result)),
    ]
    return printable(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{model}, compressed</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n<footer>Written by qubo_compress. 1 MB is a million bytes; every size counts the whole file, its header "
        "included.</footer>\n</main>\n</body>\n</html>\n"
    )


def _header(result: CompressionResult) -> str:
    plan = result.plan
    name = escape(type(result.original).__name__)
    measured = verdict.measured_text(result)
    return (
        f"<header><h1>{name}, {plan.ratio:.1f} times smaller</h1>"
        f"<p><strong>{escape(measured[:1].upper() + measured[1:])}.</strong></p><p>{plan.parameters:,} parameters in "
        f"{len(plan.choices):,} groups; asked for: {escape(facts.budget_text(result.budget))}</p></header>"
    )


def _cards(result: CompressionResult) -> str:
    plan, before, after, found = result.plan, result.before, result.final, result.comparison
    cards = []
    if not math.isnan(before.accuracy):
        low, high = verdict.accuracy_interval(found)
        change = verdict.points(after.accuracy - before.accuracy)
        more = f"from {percent(before.accuracy)}; {change} points ({verdict.points(low)} to {verdict.points(high)})"
        cards.append(("Held-out accuracy", percent(after.accuracy), more, ""))
    more = f"from {number(before.loss)}; {verdict.plus_minus(found.change)}"
    cards.append(("Held-out loss", number(after.loss), more, ""))
    cards.append(("Size of the file", size(plan.bytes), f"from {size(plan.original_bytes)}", "main"))
    bits = 8 * plan.original_bytes / max(1, plan.parameters)
    cards.append(("Bits per weight", f"{plan.bits_per_weight:.2f}", f"from {bits:.1f}, everything counted", ""))
    cards.append((f"Solver: {result.solution.solver}", *verdict.proof_text(result), "words"))
    return '<div class="cards">' + "".join(_card(*card) for card in cards) + "</div>"


def _card(label: str, value: str, more: str, style: str) -> str:
    return (
        f'<div class="card"><div class="label">{escape(label)}</div><div class="value {style}">{escape(value)}</div>'
        f'<div class="more">{escape(more)}</div></div>'
    )


def _warnings(result: CompressionResult) -> str:
    found = [
        ("The predictions were wrong", verdict.warnings(result)),
        ("Too few held-out examples", verdict.few_examples(result)),
    ]
    return "".join(
        f'<section class="plain warning"><h2>{title}</h2>{list_html(said)}</section>' for title, said in found if said
    )


def _plain_words(result: CompressionResult) -> str:
    said = (*verdict.measured_sentences(result), facts.about_speed(result), *verdict.about_solver(result))
    return f'<section class="plain"><h2>In plain words</h2>{list_html(said)}</section>'


def _elsewhere(found: Elsewhere) -> str:
    """Bytes and milliseconds in runtimes of others."""
    table = table_html(found.HEAD, found.rows(), numeric=range(1, len(found.HEAD)))
    return f"<section><h2>In other runtimes</h2><p>{escape(found.caption)}</p>{table}</section>"


def _candidates(result: CompressionResult) -> str:
    caption = (
        "Plans are chosen by measurement, not by prediction. The solver's best plans compete with the "
        "optimum of the same table without interactions, one choice for all groups (uniform) and greedy. Measured on "
        f"{verdict.counted(result.before.examples)}, before any recovery; ± two standard errors of the paired "
        "differences."
    )
    found = table_html(verdict.CANDIDATE_HEAD, verdict.candidate_rows(result), numeric=range(1, 6))
    return f"<section><h2>Every plan that was measured</h2><p>{escape(caption)}</p>{found}</section>"


def _scores(result: CompressionResult) -> str:
    columns = [("before", result.before), ("plan applied", result.compressed)]
    if result.recovered is not None:
        columns.append((f"recovered{'' if result.recovery_kept else ', not kept'}", result.recovered))
    plan = result.plan
    sizes = [plan.original_bytes, *[plan.bytes] * (len(columns) - 1)]
    rows = [
        ["Held-out loss", *(number(score.loss) for _, score in columns)],
        ["Held-out accuracy", *(percent(score.accuracy) for _, score in columns)],
        ["Bytes", *(f"{count:,}" for count in sizes)],
        ["Times smaller", *(f"{plan.original_bytes / count:.2f}" for count in sizes)],
        ["Bits per weight", *(f"{8 * count / max(1, plan.parameters):.2f}" for count in sizes)],
    ]
    said = verdict.recovery_sentence(result) or "No recovery was asked for."
    said += f" Loss and accuracy are from {verdict.counted(result.before.examples)}."
    head = ["", *(name for name, _ in columns)]
    budgets = [
        [_budget_name(name), *(_amount(name, total) for total in (limit, used)), percent(used / max(1, limit))]
        for name, limit, used in facts.budget_rows(result)
    ]
    used = table_html(["budget", "allowed", "used", "share"], budgets, numeric=(1, 2, 3))
    return (
        f'<section><h2>What it cost</h2><p>{escape(said)}</p><div class="pair"><div>'
        f"{table_html(head, rows, numeric=range(1, len(head)))}</div><div>{used}</div></div></section>"
    )


def _budget_name(name: str) -> str:
    special = {"harmful_flips": "harmful flips, millionths of the examples", LATENCY: "milliseconds of one run"}
    return special.get(name, name.replace("_", " "))


def _amount(name: str, total: int) -> str:
    """A total of a budget in the unit that the user gave."""
    return f"{total / UNITS:.4g}" if name == LATENCY else f"{total:,}"


def _layers(result: CompressionResult) -> str:
    rows = facts.group_rows(result)
    caption = (
        "What the plan does to each group. The code is the bits of one stored value; the bar counts everything that "
        "the file spends on it, scales and masks included. Pale bars are biases and normalisations; a folded "
        "normalisation stores two vectors instead of four, so its bar is shorter than its code. "
        + pictures.picture_bundles(rows).sentence
    )
    figure = figure_html(pictures.layers(result), "bits, zeros and bytes of every layer", caption)
    return f"<section><h2>Bits, zeros and bytes</h2>{figure}</section>"


def _prediction_and_search(result: CompressionResult) -> str:
    rounds = len(result.rounds) - 1
    caption = (
        "Plan 0 is the first solve"
        + (", the others are refinements; a hollow one improved nothing. " if rounds else ". ")
        + "Points on the dashed line cost what was predicted; calibration and held-out examples differ, so some "
        "scatter is noise."
    )
    left = figure_html(pictures.prediction(result), "predicted against measured loss", caption)
    drawn = pictures.trace(result)
    solution = result.solution
    if drawn is None:
        right = f"<p>{escape(solution.solver)} recorded no trace.</p>"
    else:
        bound = "It has no bound." if solution.bound is None else "No plan can lie below the amber line."
        right = figure_html(drawn, "solver trace", f"The solve behind the plan. {bound}")
    return (
        '<section><div class="pair"><div><h2>Predicted against measured</h2>'
        f"{left}</div><div><h2>The search</h2>{right}</div></div></section>"
    )


def _interactions(result: CompressionResult) -> str:
    drawn = pictures.interactions(result)
    if drawn is None:
        return (
            "<section><h2>Interactions</h2><p>The metric gives no cross terms, or there is one group only; nothing to "
            "draw.</p></section>"
        )
    sentence = pictures.picture_bundles(facts.group_rows(result)).sentence
    caption = (
        "Red: the errors of both groups add up, and together they cost more than each alone. Blue: they cancel. The "
        f"colour scale is stretched around zero. {sentence}"
    )
    text = figure_html(drawn, "interactions between the groups of the plan", caption)
    every = pictures.all_choices(result)
    if every is not None:
        text += "<h3 style='margin-top:22px'>All choices of all groups</h3>" + figure_html(
            every,
            "interactions between all choices",
            "Cosine between the effects of any two choices on the network's outputs; white lines separate the groups. "
            "No pair was measured: all of it follows from the effects of single choices.",
        )
    elif result.table.factor is not None:
        text += (
            f'<p class="note">The map of all {result.table.linear.size:,} choices is omitted: it is drawn for up to '
            f"{pictures.MOST_CHOICES:,}.</p>"
        )
    return f"<section><h2>Interactions</h2>{text}</section>"


def _front(result: CompressionResult, front: Front | None) -> str:
    if front is None:
        return ""
    drawn = pictures.pareto_front(result, front)
    rows = [
        [
            f"{point.plan.ratio:.2f}", f"{point.plan.bytes:,}", signed(point.energy),
            "none" if point.bound is None else "met" if point.solution.status == "optimal" else signed(point.bound),
        ]
        for point in front.points
    ]  # fmt: skip
    head = ["times smaller", "bytes", "predicted loss change", "lower bound"]
    table = table_html(head, rows, numeric=range(4))
    left_out = [f"{ratio:g} times smaller: {reason}." for ratio, reason in front.missing]
    more = f'<p class="note" style="margin-top:12px">Not reached:</p>{list_html(left_out)}' if left_out else ""
    caption = "The best plans at other sizes, from solving the first table again; none of them was measured."
    if others := limit_names(result.budget.names):
        caption += f" The budget's limits on {others} hold for them too."
    if drawn is None:
        return f'<section class="said"><h2>Smaller or larger</h2><p>No other size could be solved.</p>{more}</section>'
    picture = figure_html(drawn, "Pareto front", "")
    return (
        f'<section class="said"><h2>Smaller or larger</h2><p>{caption}</p><div class="pair"><div>{picture}</div>'
        f"<div>{table}{more}</div></div></section>"
    )


def _groups(result: CompressionResult) -> str:
    every = facts.group_rows(result)
    bundles = facts.bundle(every, most=MOST_ROWS, vectors_from=len(every) + 1)
    rows = [
        [
            row.name, row.kind, row.choice, f"{row.bits:.3g}", percent(row.zeros), f"{row.original_bytes:,}",
            f"{row.bytes:,}", signed(row.alone),
        ]
        for row in facts.bundled_rows(every, bundles)
    ]  # fmt: skip
    overhead = int(result.table.fixed_costs["bytes"])
    kept = sum(item.nbytes for item in result.table.layout.kept)
    totals = [
        ["file header, tensors outside all groups", "", "", "", "", f"{kept:,}", f"{overhead:,}", ""],
        ["in all", "", "", "", "", f"{result.plan.original_bytes:,}", f"{result.plan.bytes:,}", ""],
    ]
    head = ["group", "kind", "choice", "bits", "zeros", "bytes before", "bytes after", "loss change alone"]
    said = f"The loss change of a choice alone is with everything else unchanged. {bundles.sentence}"
    if bundles.sentence:
        said += " The plan's own file, written by plan.save, has them all."
    table = table_html(head, rows, numeric=range(3, 8), names=(0, 2), totals=totals)
    return f"<section><h2>Every group</h2><p>{escape(said)}</p>{table}</section>"


def _kept(result: CompressionResult) -> str:
    rows = facts.kept_rows(result)
    shared = facts.shared_tensors(result)
    text = "<section class='said'><h2>What was kept, and why</h2>"
    if rows:
        shown = [[row.name, f"{row.nbytes:,}", row.reason] for row in rows[:MOST_KEPT]]
        text += table_html(["tensor or group", "bytes", "reason"], shown, numeric=(1,), names=(0,))
        if len(rows) > MOST_KEPT:
            text += f'<p class="note">{len(rows) - MOST_KEPT:,} more are not listed.</p>'
    else:
        text += "<p>Nothing: every tensor is in a group, and every group was compressed.</p>"
    if shared:
        text += "<p style='margin-top:12px'>Stored once, used under several names:</p>"
        text += list_html(f"{name} is {first}" for name, first in shared[:MOST_KEPT])
    return text + "</section>"


def _said(title: str, sentences: Iterable[str]) -> str:
    return f'<section class="said"><h2>{escape(title)}</h2>{list_html(sentences)}</section>'
