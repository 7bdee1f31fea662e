"""The report as one self-contained HTML file: no network access, no other file, all of it readable without a script."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qubo_compress._internal.files import write_atomically
from qubo_compress._internal.optional import require
from qubo_compress.audits.section import audit_sections
from qubo_compress.page.html import figure_html, list_html, page_html, table_html
from qubo_compress.page.numbers import number, percent, signed
from qubo_compress.report import amounts, facts, pictures, verdict
from qubo_compress.report.candidates import candidate_head, candidate_rows, column_sentences
from qubo_compress.report.facts import strongest_pairs
from qubo_compress.report.first_screen import first_screen
from qubo_compress.report.front import Front, find_front, limit_names
from qubo_compress.report.layers import layers_section

if TYPE_CHECKING:
    from qubo_compress.audits import AuditReport
    from qubo_compress.pipeline.compress import CompressionResult
    from qubo_compress.timing import Elsewhere

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
    plan = result.plan
    parts = [
        f"<header><h1>{escape(type(result.original).__name__)}, {plan.ratio:.1f} times smaller</h1>"
        f"<p>{plan.parameters:,} parameters in {len(plan.choices):,} groups; asked for: "
        f"{escape(facts.budget_text(result.budget))}</p></header>",
        first_screen(result, elsewhere),
        _warnings(result),
        _said("In plain words", (*verdict.measured_sentences(result), facts.about_speed(result))),
        "" if elsewhere is None else _elsewhere(elsewhere),
        "" if audit is None else audit_sections(audit),
        layers_section(result),
        _front(result, front),
        _interactions(result),
        _solver(result),
        _scores(result),
        _kept(result),
        _said("How the costs were measured", facts.about_calibration(result)),
        "<footer>Written by qubo_compress. 1 MB is a million bytes; every size counts the whole file, its header "
        "included.</footer>",
    ]
    return page_html(f"{type(result.original).__name__}, compressed", "\n".join(part for part in parts if part))


def _warnings(result: CompressionResult) -> str:
    found = [
        ("The predictions were wrong", verdict.warnings(result)),
        ("Too few held-out examples", verdict.few_examples(result)),
    ]
    shown = [
        f'<section class="plain warning"><h2>{title}</h2>{list_html(said)}</section>' for title, said in found if said
    ]
    return f'<div id="warnings">{"".join(shown)}</div>' if shown else ""


def _elsewhere(found: Elsewhere) -> str:
    """Bytes and milliseconds in runtimes of others."""
    table = table_html(found.HEAD, found.rows(), numeric=range(1, len(found.HEAD)))
    return f"<section><h2>In other runtimes</h2><p>{escape(found.caption)}</p>{table}</section>"


def _solver(result: CompressionResult) -> str:
    """What the solver did, and every plan that was measured: predicted and found."""
    solution, rounds = result.solution, len(result.rounds) - 1
    caption = (
        "Plan 0 is the first solve"
        + (", the others are refinements; a hollow one improved nothing. " if rounds else ". ")
        + "Points on the dashed line cost what was predicted; calibration and held-out examples differ, so some "
        "scatter is noise."
    )
    told = {pictures.POINTS: pictures.told_by_plans(result)}
    left = figure_html(pictures.prediction(result), "predicted against measured loss", caption, hovers=told)
    drawn = pictures.trace(result)
    if drawn is None:
        right = f"<p>{escape(solution.solver)} recorded no trace.</p>"
    else:
        bound = "It has no bound." if solution.bound is None else "No plan can lie below the amber line."
        right = figure_html(drawn, "solver trace", f"The solve behind the plan. {bound}")
    return (
        f'<section class="said"><h2>Solver</h2>{list_html(verdict.about_solver(result))}<div class="pair"><div>'
        f"<h3>Predicted against measured</h3>{left}</div><div><h3>The search</h3>{right}</div></div>"
        f"<h3>Every plan that was measured</h3>{_candidates(result)}</section>"
    )


def _candidates(result: CompressionResult) -> str:
    caption = (
        "Plans are chosen by measurement, not by prediction. The solver's best plans compete with the "
        "optimum of the same table without interactions, one choice for all groups (uniform), greedy, and the least "
        "squared error of the weights (magnitude). Measured on "
        f"{amounts.counted(result.before.examples)}. {' '.join(column_sentences(result))}"
    )
    head = candidate_head(result)
    found = table_html(head, candidate_rows(result), numeric=range(1, len(head)))
    return f'<p class="note">{escape(caption)}</p>{found}'


def _scores(result: CompressionResult) -> str:
    columns = [("before", result.before), ("plan applied", result.compressed)]
    if result.recovered is not None:
        columns.append((verdict.stage_name(result), result.recovered))
    plan = result.plan
    sizes = [plan.original_bytes, *[plan.bytes] * (len(columns) - 1)]
    rows = [
        ["Held-out loss", *(number(score.loss) for _, score in columns)],
        ["Held-out accuracy", *(percent(score.accuracy) for _, score in columns)],
        ["Bytes", *(f"{count:,}" for count in sizes)],
        ["Times smaller", *(f"{plan.original_bytes / count:.2f}" for count in sizes)],
        ["Bits per weight", *(f"{8 * count / max(1, plan.parameters):.2f}" for count in sizes)],
    ]
    said = verdict.recovery_sentence(result) or "No repair was asked for."
    said += f" Loss and accuracy are from {amounts.counted(result.before.examples)}."
    head = ["", *(name for name, _ in columns)]
    budgets = [
        [amounts.budget_name(name), *(amounts.amount(name, n) for n in (limit, used)), percent(used / max(1, limit))]
        for name, limit, used in facts.budget_rows(result)
    ]
    used = table_html(["budget", "allowed", "used", "share"], budgets, numeric=(1, 2, 3))
    return (
        f'<section><h2>What it cost</h2><p>{escape(said)}</p><div class="pair"><div>'
        f"{table_html(head, rows, numeric=range(1, len(head)))}</div><div>{used}</div></div></section>"
    )


def _interactions(result: CompressionResult) -> str:
    drawn = pictures.interactions(result)
    if drawn is None:
        return (
            "<section><h2>Interactions</h2><p>The metric gives no cross terms, or there is one group only; nothing to "
            "draw.</p></section>"
        )
    bundles = pictures.picture_bundles(facts.group_rows(result))
    caption = (
        "Red: the errors of both layers add up, and together they cost more than each alone. Blue: they cancel. The "
        f"colour scale is stretched around zero. {bundles.sentence}"
    )
    told = {"names": bundles.labels, "values": _pair_values(result, bundles)}
    figure = figure_html(drawn, "loss that each pair of layers adds", caption, pairs=told)
    rows = [[one, other, signed(added), signed(cosine, 2)] for one, other, added, cosine in strongest_pairs(result)]
    head = ["layer", "and", "loss the pair adds", "cosine"]
    table = table_html(head, rows, numeric=(2, 3), names=(0, 1)) if rows else "<p>In this plan no pair adds any.</p>"
    text = f"{figure}<h3>The pairs that matter most</h3>{table}{_all_choices(result)}"
    return f"<section><h2>Interactions</h2>{text}</section>"


def _pair_values(result: CompressionResult, bundles: facts.Bundles) -> list[str]:
    found = facts.bundled_factor(result, bundles)
    if found is None:
        return []
    return [signed(float(value), 2) for value in found[0][np.tril_indices(len(bundles.labels), -1)]]


def _all_choices(result: CompressionResult) -> str:
    every = pictures.all_choices(result)
    if every is None:
        return ""
    caption = (
        "Cosine between the effects of any two choices on the network's outputs; lines separate the groups. "
        "What two choices cost together is computed, to second order, from what each of them does to the outputs of "
        "the same examples; the network was not run with every pair."
    )
    if result.table.linear.size > pictures.MOST_CHOICES:
        caption += f" Drawn are {pictures.MOST_CHOICES:,} of {result.table.linear.size:,} choices, or a few less."
    return "<h3>All choices of all groups</h3>" + figure_html(every, "interactions between all choices", caption)


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
    told = {pictures.POINTS: pictures.told_by_sizes(front)}
    picture = figure_html(drawn, "rise of the loss over the size of the file", "", hovers=told)
    return (
        f'<section class="said"><h2>Smaller or larger</h2><p>{caption}</p><div class="pair"><div>{picture}</div>'
        f"<div>{table}{more}</div></div></section>"
    )


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
