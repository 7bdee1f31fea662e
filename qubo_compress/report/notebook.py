"""What a notebook shows of a result: the four answers of the report's first screen, as text and one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qubo_compress._internal.notebook import fragment
from qubo_compress.page.numbers import size
from qubo_compress.report import amounts, verdict
from qubo_compress.report.comparisons import basis, harm, opponents, shown
from qubo_compress.report.first_screen import against_uniform, trusted

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult


def result_html(result: CompressionResult) -> str:
    """What was gained and lost, against what alternative, and whether to trust the prediction."""
    plan, taken = result.plan, result.taken.chosen
    measured = verdict.measured_text(result)
    labelled = taken.comparison.rows > 0
    rows = []
    for name, candidate in (("this plan", taken), *opponents(result)):
        found = shown(result, candidate)
        cells = [name, amounts.plus_minus(harm(found), signs=not found.by_divergence)]
        cells += [amounts.points(found.accuracy.mean), f"{found.lost:,} / {found.gained:,}"] if labelled else []
        rows.append([*cells, f"{candidate.plan.bytes:,}"])
    measure = "divergence" if taken.comparison.by_divergence else "loss change"
    return fragment(
        f"{type(result.original).__name__}: {plan.ratio:.1f} times smaller",
        [
            f"Gained: {size(plan.original_bytes)} to {size(plan.bytes)}, {plan.bits_per_weight:.2f} bits per weight.",
            f"Lost: {measured}.",
            f"Can the prediction be trusted? {trusted(result)[0]}.",
            f"Against the alternatives: {against_uniform(result)[:1].lower()}{against_uniform(result)[1:]}."
            f"{f' {basis(result)}' * bool(basis(result))}",
        ],
        ["plan", measure, *(["points", "lost / gained"] if labelled else []), "bytes"],
        rows,
    )


def result_text(result: CompressionResult) -> str:
    """The same in one line."""
    return f"CompressionResult({verdict.headline(result)})"
