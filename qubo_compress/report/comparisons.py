"""Which networks a report compares: repaired with repaired, or, where only one was, both as applied."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qubo_compress.selection.candidates import Candidate
from qubo_compress.selection.comparison import Comparison, Estimate

if TYPE_CHECKING:
    from qubo_compress.pipeline.compress import CompressionResult

REPAIR = (
    "Repair: normalisation statistics and biases are matched to the original's outputs, without training and at the "
    "same bytes."
)

OPPONENTS = ("uniform", "additive", "greedy", "magnitude")
"""The alternatives, in the order of their table."""


def opponents(result: CompressionResult) -> list[tuple[str, Candidate]]:
    """(name, candidate) of every alternative that was measured in the round taken."""
    running = {name: candidate for candidate in result.taken.candidates for name in candidate.names}
    return [(name, running[name]) for name in OPPONENTS if name in running]


def solvers_candidate(result: CompressionResult) -> Candidate:
    """The solver's best plan in the round taken, which its bound is about."""
    return result.taken.candidates[0]


def compared_repaired(result: CompressionResult) -> bool:
    """Whether the plan taken and all its alternatives had the same repair; plans that destroy the network had none."""
    if result.epochs:
        return False
    named = (result.taken.chosen, *(candidate for _, candidate in opponents(result)))
    return all(found.repaired is not None or not math.isfinite(found.comparison.measure) for found in named)


def shown(result: CompressionResult, candidate: Candidate) -> Comparison:
    """What a plan is compared by: repaired if all are and that helped, else as applied."""
    return candidate.final if compared_repaired(result) else candidate.comparison


def harm(comparison: Comparison) -> Estimate:
    """What plans are chosen by: the divergence from the original, or else the change of the loss."""
    return comparison.divergence if comparison.by_divergence else comparison.change


def when(result: CompressionResult) -> str:
    """In which state plans are compared, such as "after repair"; "" where there is only one."""
    if result.recovered is None:
        return ""
    if compared_repaired(result):
        return "after repair"
    if result.epochs:
        return "before fine-tuning"
    return "before repair or fine-tuning"


def basis(result: CompressionResult) -> str:
    """One sentence: in which state the plans are compared; "" where there is only one."""
    if result.recovered is None:
        return ""
    if compared_repaired(result):
        helped = "" if result.recovery_kept else ", where it helped"
        again = " The plan taken is the best after reconstruction, which these figures lack." * result.reconstructed
        return f"All plans after the same repair{helped}.{again}"
    if result.epochs:
        passes = f"{result.epochs} epoch{'s' * (result.epochs != 1)}"
        return f"All plans before fine-tuning: only the plan taken was then fine-tuned, for {passes}."
    return "All plans as applied: only the network given was repaired or fine-tuned."
