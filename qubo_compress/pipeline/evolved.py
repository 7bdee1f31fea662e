"""The plan that a search on the network found, among the candidates of the round that it started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qubo_compress.budget import Budget
from qubo_compress.calibration.examples import Examples
from qubo_compress.pipeline.refinement import Round
from qubo_compress.plan import Plan
from qubo_compress.selection.candidates import EVOLVED, TIE, Candidate
from qubo_compress.selection.comparison import HeldOut
from qubo_compress.selection.evolution import Evolution, evolve
from qubo_compress.selection.held_out_loss import joined
from qubo_compress.sensitivity.specimen import Specimen
from qubo_compress.sensitivity.table import SensitivityTable

SHARED_FROM = 256
"""Of at least this many held-out examples, the search gets half; fewer are all needed to check its plan."""

FEWEST_CHECKS = 30
"""Output rows that can tell a gain from chance. Divergences have long tails: on eight, a plan of a digits network was
better by more than two standard errors, and worse on the test."""


def search_examples(measured: Examples, held_out: Examples) -> tuple[Examples, Examples]:
    """The examples to search on, and those that check: no example does both.

    The search runs on the measured examples, since the real loss on them says more than the table, and on half of the
    held-out ones if there are many.
    """
    if held_out.count < SHARED_FROM or held_out.whole:
        return measured, held_out
    searched, checking = held_out.split(0.5)
    return joined(searched, measured), checking


def evolved(
    specimen: Specimen,
    table: SensitivityTable,
    budget: Budget,
    accepted: Sequence[Round],
    judge: HeldOut,
    evaluations: int,
) -> tuple[Evolution, Round]:
    """Search from the accepted plans; the plan found is one more candidate of the last of these rounds.

    It wins only if it measures better than the round's winner on examples that the search has not seen, by more than a
    standard error, and only if these are not too few: it was fitted to the examples of the search.

    Args:
        specimen: the original network on the examples of the search.
        table: the first one, with all choices.
        budget: limits of the plan.
        accepted: the rounds whose plans were incumbents, the last one first in line.
        judge: compares the candidates.
        evaluations: most examples forwarded by the search.
    """
    held_out = HeldOut.of(specimen.model, specimen.examples, judge.loss)
    plans: list[Plan] = [found.plan for found in accepted]
    plans += [candidate.plan for candidate in accepted[-1].candidates]
    settings = specimen.settings
    found = evolve(table, budget, held_out, evaluations, starts=plans, seed=settings.seed, progress=settings.progress)
    return found, _joining(accepted[-1], found, judge)


def _joining(incumbent: Round, found: Evolution, judge: HeldOut) -> Round:
    """The round with the plan of the search among its candidates."""
    same = [number for number, c in enumerate(incumbent.candidates) if c.plan.choices == found.plan.choices]
    candidates = list(incumbent.candidates)
    winner = incumbent.chosen
    if same:
        named = candidates[same[0]]
        candidates[same[0]] = replace(named, also=(*named.also, EVOLVED))
        return Round.of(incumbent.table, incumbent.solution, tuple(candidates), _named(candidates, winner), True)
    network = found.plan.apply(judge.model)
    comparison = judge.compare(network)
    predicted = found.plan.predicted_loss
    # The mean divergence on the examples of the search is a prediction that the checking examples had no part in.
    expected = found.loss if comparison.by_divergence else predicted
    candidates.append(Candidate(EVOLVED, found.plan, predicted, comparison, expected=expected))
    if comparison.measure < winner.comparison.measure - TIE:
        lead = judge.lead(winner.plan.apply(judge.model), network)
        enough = max(comparison.rows, comparison.examples) >= FEWEST_CHECKS
        winner = candidates[-1] if enough and lead.mean > lead.standard_error else winner
    return Round.of(incumbent.table, incumbent.solution, tuple(candidates), winner, True)


def _named(candidates: Sequence[Candidate], winner: Candidate) -> Candidate:
    return next(candidate for candidate in candidates if candidate.name == winner.name)
