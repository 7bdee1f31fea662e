"""What a notebook shows of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qubo_compress._internal.notebook import fragment
from qubo_compress.page.numbers import number, percent, signed

if TYPE_CHECKING:
    from qubo_compress.audits.audit import AuditReport


def audit_html(report: AuditReport) -> str:
    """Accuracy, answers that differ, and the classes that lost most; or how far numbers moved."""
    title = f"Audit on {report.examples:,} examples"
    if report.regression is not None:
        rows = [list(row) for row in report.regression.rows()]
        return fragment(title, [], ["", "before", "after", "change"], rows)
    low, high = report.kinds.interval
    facts = [
        f"{report.kinds.total:,} of {report.kinds.rows:,} answers differ: {percent(report.kinds.share)}, 95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f} %. Mean KL divergence {number(report.divergence)}."
    ]
    if report.harmful is not None:
        facts.append(f"{report.harmful:,} right answers were lost, {report.repaired or 0:,} gained.")
    if report.accuracy_before is not None and report.accuracy_after is not None:
        said = f"Accuracy {percent(report.accuracy_before)} before, {percent(report.accuracy_after)} after"
        if report.accuracy_change_interval is not None:
            ends = " to ".join(signed(100 * end, 2) for end in report.accuracy_change_interval)
            said += f"; 95 % interval of the change {ends} points"
        facts.insert(0, f"{said}.")
    if any(item.changed for item in report.classes):
        facts.append(f"Changed beyond chance: by the mid-p McNemar test, {report.correction}, 5 %.")
    worst = sorted(report.classes, key=lambda item: (item.change, item.label))
    rows = [
        [
            str(item.label), f"{item.examples:,}", percent(item.before), percent(item.after),
            signed(100 * item.change), f"{item.lost:,} / {item.gained:,}", "yes" if item.changed else "no",
        ]
        for item in worst
    ]  # fmt: skip
    head = ["class", "examples", "right before", "after", "points", "lost / gained", "beyond chance"] if rows else []
    return fragment(title, facts, head, rows, more=" classes, which lost less; report.write(path) has all")
