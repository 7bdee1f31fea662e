"""The audit as HTML: a page of its own, or a section of the compression's report."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from qubo_compress._internal.files import write_atomically
from qubo_compress.audits import pictures as tail_pictures
from qubo_compress.audits.exemplars import FEWEST_TESTED
from qubo_compress.page.html import figure_html, list_html, page_html, table_html
from qubo_compress.page.numbers import number, percent, signed

if TYPE_CHECKING:
    from qubo_compress.audits import AuditReport, RegressionChange

MOST_CLASSES = 60
MOST_LISTED = 20


def write_audit(report: AuditReport, path: str | Path) -> Path:
    """Write an audit as one self-contained HTML file, and return its path.

    Raises:
        StorageError: when the file cannot be written.
    """
    body = (
        f"<header><h1>What compression forgot</h1><p>{report.examples:,} examples, both networks on each</p></header>"
        f"{audit_sections(report)}\n<footer>Written by qubo_compress.</footer>"
    )
    text = page_html("What compression forgot", body)
    target = Path(path)
    write_atomically(target, lambda handle: handle.write(text.encode(errors="backslashreplace")))
    return target


def audit_sections(report: AuditReport) -> str:
    """The sections: totals, margins, classes, several networks, and the forgotten examples."""
    if report.regression is not None:
        return _regression(report, report.regression)
    parts = [_totals(report), _margins(report), _classes(report), _population(report), _forgotten(report)]
    return "\n".join(part for part in parts if part)


def _totals(report: AuditReport) -> str:
    kinds = report.kinds
    low, high = kinds.interval
    rows = [["answers that differ", f"{kinds.total:,}", percent(kinds.share), f"{100 * low:.2f} to {100 * high:.2f} %"]]
    for name, value in (
        ("harmful: right before, wrong now", kinds.harmful),
        ("gained: wrong before, right now", kinds.repaired),
        ("both wrong, differently", kinds.both_wrong),
    ):
        if value is not None:
            rows.append([name, f"{value:,}", percent(value / max(1, kinds.rows)), ""])
    said = f"On {report.examples:,} examples; mean KL divergence {number(report.divergence)}."
    if report.accuracy_before is not None and report.accuracy_after is not None:
        said += (
            f" Accuracy {percent(report.accuracy_before)} before and {percent(report.accuracy_after)} after: changes "
            "that cancel in it are counted here."
        )
    if report.accuracy_change_interval is not None:
        ends = " to ".join(signed(100 * end, 2) for end in report.accuracy_change_interval)
        said += f" The 95 % interval of the change is {ends} points."
    found = table_html(["", "answers", "share", "95 % interval of the share"], rows, numeric=(1, 2, 3))
    return f"<section><h2>What it forgot</h2><p>{escape(said)}</p>{found}</section>"


def _regression(report: AuditReport, found: RegressionChange) -> str:
    table = table_html(["", "before", "after", "change"], [list(row) for row in found.rows()], numeric=(1, 2, 3))
    moved = [
        [
            f"{item.row:,}", str(item.column), number(item.before), number(item.after),
            number(item.after - item.before), "–" if item.target is None else number(item.target),
        ]
        for item in found.largest[:MOST_LISTED]
    ]  # fmt: skip
    largest = table_html(["row", "output", "before", "after", "change", "target"], moved, numeric=range(6))
    said = f"On {report.examples:,} examples; outputs are numbers, so what counts is how far they moved."
    section = f"<section><h2>What it forgot</h2><p>{escape(said)}</p>{table}</section>"
    return section + (f"<section><h2>Largest changes</h2>{largest}</section>" if moved else "")


def _margins(report: AuditReport) -> str:
    if not report.margins:
        return ""
    caption = (
        "Examples in equal bins by the original's margin, its largest logit minus its second. Bars are the share of "
        "answers that differ, with 95 % intervals; the dark part is harmful."
    )
    drawn = figure_html(tail_pictures.flips_by_margin(report), "flips by margin", caption)
    return f"<section><h2>Flips by margin</h2>{drawn}</section>"


def _classes(report: AuditReport) -> str:
    if not report.classes:
        return ""
    worst = sorted(report.classes, key=lambda item: (item.change, item.label))
    rows = [
        [
            str(item.label), f"{item.examples:,}", percent(item.before), percent(item.after),
            f"{100 * item.change:+.2f}".replace("-", "−"), f"{item.lost:,}", f"{item.gained:,}",
            number(item.p_value), number(item.corrected_p_value), "yes" if item.changed else "no",
        ]
        for item in worst[:MOST_CLASSES]
    ]  # fmt: skip
    head = ["class", "examples", "before", "after", "points", "lost", "gained", "p", "p corrected", "changed"]
    caption = (
        "Change of each class's recall in points, with 95 % intervals from the pairs. Filled: more than chance by the "
        f"mid-p McNemar test, corrected for {len(report.classes)} classes ({report.correction}, 5 %)."
        + _classes_left_out(len(report.classes))
    )
    drawn = figure_html(tail_pictures.class_changes(report), "change of every class", caption)
    return f"<section><h2>Classes</h2>{drawn}{table_html(head, rows, numeric=range(1, 10))}</section>"


def _classes_left_out(count: int) -> str:
    drawn, listed = tail_pictures.MOST_CLASSES, MOST_CLASSES
    if count <= drawn:
        return ""
    said = f" Drawn are the {drawn} classes that lost most, of {count:,}"
    return said + (f"; the table lists {listed} of them." if count > listed else "; the table lists all.")


def _population(report: AuditReport) -> str:
    said = []
    for name, found in (("compressed networks", report.seed_churn), ("originals", report.original_churn)):
        if found is not None:
            low, high = found.range
            said.append(
                f"Two of {len(found.shares)} {name} differ on {100 * found.mean:.2f} % of the answers on average "
                f"({100 * low:.2f} to {100 * high:.2f} %)."
            )
    if report.exemplars is not None:
        found_exemplars = report.exemplars
        said.append(
            f"{found_exemplars.rows.size:,} examples are compression-identified exemplars: the most frequent answer of "
            f"{found_exemplars.compressed} compressed networks differs from that of the originals "
            f"({found_exemplars.originals}). Accuracy on them: "
            f"{percent(found_exemplars.accuracy_before_on_exemplars)} before, "
            f"{percent(found_exemplars.accuracy_after_on_exemplars)} after."
        )
        moved = [item for item in found_exemplars.classes if item.corrected_p_value < 0.05]
        said += [f"Class {item.label} moved by {signed(100 * item.shift)} points beside the mean." for item in moved]
        if found_exemplars.untested:
            said.append(
                f"For {found_exemplars.untested:,} of {len(found_exemplars.classes):,} classes a shift beside the mean "
                f"is not testable: that needs at least {FEWEST_TESTED} compressed networks which differ on the class."
            )
    return f'<section class="said"><h2>Several networks</h2>{list_html(said)}</section>' if said else ""


def _forgotten(report: AuditReport) -> str:
    if not report.forgotten:
        return ""
    drawn = tail_pictures.forgotten_examples(report, "svg")
    if drawn is not None:
        caption = (
            "Examples that the original gets right and the compressed network gets wrong, those first that the "
            "original was surest of. Below each: its class, and what it is taken for now."
        )
        return f"<section><h2>Forgotten</h2>{figure_html(drawn, 'forgotten examples', caption)}</section>"
    rows = [
        [f"{item.row:,}", str(item.label), str(item.answer), percent(item.confidence), number(item.margin)]
        for item in report.forgotten
    ]
    head = ["example", "class", "taken for", "original's confidence", "original's margin"]
    return f"<section><h2>Forgotten</h2>{table_html(head, rows, numeric=range(5))}</section>"
