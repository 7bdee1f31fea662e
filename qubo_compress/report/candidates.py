"""The plans that were compared on held-out examples, as rows of a table, and what its columns mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qubo_compress.page.numbers import signed
from qubo_compress.report import verdict
from qubo_compress.selection.comparison import Comparison, Estimate

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult


def candidate_rows(result: CompressionResult) -> tuple[tuple[str, ...], ...]:
    """The cells below :data:`CANDIDATE_HEAD`, of every candidate of the round taken."""
    found = result.taken
    rows = []
    for candidate in found.candidates:
        comparison = candidate.comparison
        right = f"{comparison.lost:,} / {comparison.gained:,}" if comparison.rows else "–"
        mark = "taken: " if candidate.name == found.winner else ""
        divergence = verdict.plus_minus(comparison.divergence, signs=False)
        change = verdict.plus_minus(comparison.change)
        predicted, corrected = signed(candidate.predicted), signed(candidate.expected) if candidate.sought else "–"
        repaired = "–" if candidate.repaired is None else _harm_text(candidate.repaired)
        rows.append((mark + verdict.quoted(candidate), predicted, corrected, divergence, repaired, change, right))
    return tuple(rows)


CANDIDATE_HEAD = ("plan", "predicted", "corrected", "divergence", "repaired", "loss change", "lost / gained")


def column_sentences(result: CompressionResult) -> tuple[str, ...]:
    """What the columns of the candidates mean."""
    found = result.taken.candidates
    by = found[0].comparison.by_divergence
    said = [
        "predicted: the loss change by the table, before repair. corrected: times measured over predicted of the plan "
        "with the closest prediction; – where the table did not choose the plan, as for uniform.",
        f"{'divergence' if by else 'loss change'}: measured on held-out examples before repair, ± two standard errors.",
    ]
    if any(candidate.repaired is not None for candidate in found):
        said.append("repaired: the same after repair, for the best plan of each kind. The plan taken is best in that.")
    return tuple(said)


def harm(comparison: Comparison) -> Estimate:
    """What plans are chosen by: the divergence from the original, or else the change of the loss."""
    return comparison.divergence if comparison.by_divergence else comparison.change


def _harm_text(comparison: Comparison) -> str:
    return verdict.plus_minus(harm(comparison), signs=not comparison.by_divergence)
