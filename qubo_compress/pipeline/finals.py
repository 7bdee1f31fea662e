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

RUNNERS_UP = 1
"""Plans whose layers are stored again beside those of the best one.

For EfficientNet-Lite0 and 200 images, ``compress`` took 552 CPU seconds without any and 973 with two.
"""


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


def judged_reconstructed(
    final: Final,
    judge: HeldOut,
    reconstruct: Callable[[nn.Module], nn.Module],
    thoroughly: Callable[[nn.Module], nn.Module] | None = None,
) -> Final:
    """The plan that is best with its layers stored again for their inputs in the compressed network, if that is better.

    Like the repair, this changes the order of plans; and what a plan gained by luck on the held-out examples, it loses
    when it is stored again. So it is tried on the best plans after repair, not only on the first.

    Args:
        final: the plan taken, repaired.
        judge: the held-out examples.
        reconstruct: applied network -> the same, repaired and with layers stored again.
        thoroughly: the same with more examples, for the best plan; None if there are no more.
    """
    best: tuple[Candidate, Comparison, nn.Module, nn.Module] | None = None
    for candidate in _leading(final.round):
        applied = final.applied if candidate is final.round.chosen else candidate.plan.apply(judge.model)
        if not can_be_reconstructed(compression_of(applied)):
            continue
        network = reconstruct(applied)
        compared = judge.compare(network)
        if best is None or compared.measure < best[1].measure:
            best = candidate, compared, applied, network
    if best is None:
        return final
    candidate, compared, applied, network = best
    if thoroughly is not None:
        other = thoroughly(applied)
        again = judge.compare(other)
        if again.measure < compared.measure:
            compared, network = again, other
    if not compared.measure < final.round.chosen.final_measure:
        return final
    found = final.round
    taken = Round.of(found.table, found.solution, found.candidates, candidate, found.accepted)
    return Final(taken, applied, network, compared)


def _leading(found: Round) -> list[Candidate]:
    """The best plans after repair, the one taken first."""
    others = [one for one in found.candidates if one.repaired is not None and one is not found.chosen]
    return [found.chosen, *sorted(others, key=lambda one: one.final_measure)[:RUNNERS_UP]]
