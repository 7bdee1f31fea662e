"""The plans that were compared on held-out examples, as rows of a table, and what its columns mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qubo_compress.page.numbers import signed
from qubo_compress.report import amounts, verdict
from qubo_compress.report.comparisons import compared_repaired, harm, shown

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult
    from qubo_compress.selection.comparison import Comparison


def candidate_head(result: CompressionResult) -> tuple[str, ...]:
    """Names of the columns of :func:`candidate_rows`; the first four or, with a repair, five fit a terminal."""
    by = result.taken.chosen.comparison.by_divergence
    measure = "divergence" if by else "loss change"
    after = "fine-tuned" if result.epochs else "after repair"
    measured = (f"before {'' if result.epochs else 'repair'}".strip(), after) if _repaired(result) else (measure,)
    return ("plan", "predicted", "corrected", *measured, *(("loss change",) if by else ()), "lost / gained")


def candidate_rows(result: CompressionResult) -> tuple[tuple[str, ...], ...]:
    """The cells below :func:`candidate_head`, of every candidate of the round taken."""
    found = result.taken
    by, both = found.chosen.comparison.by_divergence, compared_repaired(result)
    rows = []
    for candidate in found.candidates:
        mark = "taken: " if candidate.name == found.winner else ""
        predicted, corrected = signed(candidate.predicted), signed(candidate.expected) if candidate.sought else "–"
        cells = [mark + verdict.quoted(candidate), predicted, corrected, _harm_text(candidate.comparison)]
        if _repaired(result):
            cells.append("–" if candidate.repaired is None else _harm_text(candidate.repaired))
        last = shown(result, candidate)
        known = not both or candidate.repaired is not None
        change = amounts.plus_minus(last.change) if known else "–"
        right = f"{last.lost:,} / {last.gained:,}" if known and last.rows else "–"
        rows.append((*cells, *((change,) if by else ()), right))
    return tuple(rows)


def column_sentences(result: CompressionResult) -> tuple[str, ...]:
    """What the columns of the candidates mean."""
    by = result.taken.chosen.comparison.by_divergence
    measure = "divergence from the original" if by else "loss change"
    said = [
        "predicted: the plan's loss change by the loss model, as applied. corrected: the same times measured over "
        "predicted of the plan with the closest prediction, an estimate of what a plan that nobody measured would "
        "cost; – where the model did not choose the plan, as for uniform.",
    ]
    if not _repaired(result):
        return (*said, f"{measure.split(' from')[0]}: measured on held-out examples, ± two standard errors.")
    said.append(f"{' and '.join(candidate_head(result)[3:5])}: {measure} on held-out examples, ± two standard errors.")
    if compared_repaired(result):
        said.append(
            "Repaired were the best plan of each kind and the solver's own answer; the one that is best then is taken. "
            "Further columns are after repair."
        )
    elif result.epochs:
        said.append("Only the plan that was best before was fine-tuned.")
    return tuple(said)


def _repaired(result: CompressionResult) -> bool:
    return any(candidate.repaired is not None for candidate in result.taken.candidates)


def _harm_text(comparison: Comparison) -> str:
    found = harm(comparison)
    if not math.isfinite(found.mean):
        return "not finite"
    return amounts.plus_minus(found, signs=not comparison.by_divergence)
