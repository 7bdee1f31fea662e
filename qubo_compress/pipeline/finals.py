"""The final choice between the best plans of every kind, each repaired and judged as it would be returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from qubo_compress.pipeline.refinement import Round
from qubo_compress.plan import compression_of
from qubo_compress.recovery.reconstruction import can_be_reconstructed
from qubo_compress.selection.candidates import TIE, Candidate, finalists
from qubo_compress.selection.comparison import Comparison, HeldOut


@dataclass(frozen=True, eq=False)
class Final:
    """The plan taken, and its networks.

    Attributes:
        round: the round whose winner is that plan.
        applied: the plan applied.
        repaired: the same after its repair, or None.
        reconstructed: what ``repaired`` measures, if its layers were stored again for their inputs in the compressed
            network; None if they were not. The candidates of the round keep the figures of their common repair.
    """

    round: Round
    applied: nn.Module
    repaired: nn.Module | None
    reconstructed: Comparison | None = None


def judged_repaired(
    found: Round, judge: HeldOut, repair: Callable[[nn.Module], nn.Module] | None, epochs: int
) -> Final:
    """The round's finalist that is best after repair; with fine-tuning, which is slow, the round's winner.

    Args:
        found: the round to take a plan from.
        judge: the held-out examples.
        repair: applied network -> repaired or fine-tuned one; None for neither.
        epochs: of fine-tuning.
    """
    if repair is None:
        return Final(found, found.plan.apply(judge.model), None)
    running = (found.chosen,) if epochs else finalists(found.candidates, found.chosen)
    judged: dict[str, Candidate] = {}
    best: tuple[Candidate, nn.Module, nn.Module] | None = None
    for candidate in running:
        applied = candidate.plan.apply(judge.model)
        repaired = repair(applied)
        known = replace(candidate, repaired=judge.compare(repaired))
        judged[candidate.name] = known
        if best is None or known.final_measure < best[0].final_measure - TIE:
            best = (known, applied, repaired)
    assert best is not None  # noqa: S101 - the winner itself is running
    candidates = tuple(judged.get(candidate.name, candidate) for candidate in found.candidates)
    taken = Round.of(found.table, found.solution, candidates, best[0], found.accepted)
    return Final(taken, best[1], best[2])


def judged_reconstructed(final: Final, judge: HeldOut, reconstruct: Callable[[nn.Module], nn.Module]) -> Final:
    """The plan with its layers stored again for their inputs in the compressed network, if that is better.

    Args:
        final: the plan taken, repaired.
        judge: the held-out examples.
        reconstruct: repaired network -> the same with layers stored again.
    """
    if final.repaired is None or not can_be_reconstructed(compression_of(final.repaired)):
        return final
    network = reconstruct(final.repaired)
    compared = judge.compare(network)
    if not compared.measure < final.round.chosen.final_measure:
        return final
    return replace(final, repaired=network, reconstructed=compared)
