"""What the report says of the plan, its proof, its prediction and its repair, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest

from qubo_compress.page import numbers
from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import verdict
from qubo_compress.report.candidates import candidate_rows
from qubo_compress.report.html import page
from qubo_compress.selection.comparison import Comparison, Estimate


def test_solver_sentences(result: CompressionResult) -> None:
    said = " ".join(verdict.about_solver(result))
    assert verdict.SIMULATED in said
    assert "annealer" in said
    unbounded = dataclasses.replace(result, solution=dataclasses.replace(result.solution, bound=None, gap=None))
    assert "no lower bound" in " ".join(verdict.about_solver(unbounded))
    energy = result.solution.energy
    loose = dataclasses.replace(result, solution=dataclasses.replace(result.solution, bound=energy - 0.25, gap=0.5))
    assert "at most 0.25 from" in " ".join(verdict.about_solver(loose))
    proven = dataclasses.replace(result, solution=dataclasses.replace(result.solution, bound=energy, gap=0.0))
    assert "proven optimal for the loss model" in " ".join(verdict.about_solver(proven))
    exact = dataclasses.replace(result, solution=dataclasses.replace(result.solution, solver="exact"))
    assert verdict.SIMULATED not in verdict.about_solver(exact)


@pytest.mark.usefixtures("undrawn")
def test_a_wrong_prediction_is_said_and_takes_the_proof_with_it(
    result: CompressionResult,
    printed: Callable[..., str],
    plain: Callable[[str], str],
    told: Callable[..., CompressionResult],
) -> None:
    wrong = told(result, 0.0027, Estimate(0.025, 0.004))
    said = " ".join(verdict.warnings(wrong))
    assert "the model predicted +0.0027, but held-out examples say +0.025 ± 0.0080: 9.26 times more" in said
    assert f"{result.table.provenance.examples} calibration examples: give more" in said
    proof = " ".join(verdict.about_solver(wrong))
    assert "is proven optimal for the loss model, which was off by a factor of 9.26 on held-out examples." in proof
    assert verdict.proof_text(wrong) == ("Proven best", "for a loss model off by a factor of 9.26")
    assert "9.26 times more" in printed(wrong, 1000)
    assert "9.26 times more" in plain(page(wrong, None))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("predicted", "mean", "error", "says"),
    [
        (-4.12, 1.2, 0.1, ""),  # no factor leads from a gain to a loss
        (0.5, 0.05, 0.02, "10 times less"),
        (0.01, 0.025, 0.004, None),  # 2.5 times, but not beyond the error
        (0.01, 0.1, 0.05, None),
        (0.02, 0.03, 0.0001, None),
        (1e-6, 9e-4, 1e-6, None),  # nobody would see such a divergence
        (0.01, 3.0, math.inf, None),  # one example
    ],
)
def test_only_what_the_error_does_not_explain_is_called_wrong(
    result: CompressionResult,
    predicted: float,
    mean: float,
    error: float,
    says: str | None,
    printed: Callable[..., str],
    plain: Callable[[str], str],
    told: Callable[..., CompressionResult],
) -> None:
    made = told(result, predicted, Estimate(mean, error))
    said = verdict.warnings(made)
    assert bool(said) == (says is not None)
    assert ("Warning" in printed(made)) == bool(said)
    assert ("The predictions were wrong" in plain(page(made, None))) == bool(said)
    if says is not None:
        assert says in said[0]
        assert "was" in verdict.about_solver(made)[1] or "contradict" in " ".join(verdict.about_solver(made))


def test_the_solvers_plan_is_held_against_its_prediction_when_another_one_won(
    result: CompressionResult, told: Callable[..., CompressionResult]
) -> None:
    made = told(result, 0.1, Estimate(0.1, 0.01))
    turn = made.rounds[0]
    solvers = dataclasses.replace(
        turn.candidates[0], also=(), predicted=-2.0,
        comparison=dataclasses.replace(turn.candidates[0].comparison, divergence=Estimate(3.0, 0.1)),
    )  # fmt: skip
    uniform = dataclasses.replace(turn.candidates[0], name="uniform", also=("additive",))
    both = dataclasses.replace(turn, candidates=(solvers, uniform), winner="uniform")
    said = " ".join(verdict.warnings(dataclasses.replace(made, rounds=(both,))))
    assert "For the solver's best plan the model predicted −2, but held-out examples say +3 ± 0.20." in said
    assert "For the plan taken" not in said
    rows = candidate_rows(dataclasses.replace(made, rounds=(both,)))
    assert [row[0] for row in rows] == ["solver", "taken: uniform = additive"]


@pytest.mark.usefixtures("undrawn")
def test_the_headline_is_measured_and_has_an_interval(
    result: CompressionResult,
    printed: Callable[..., str],
    plain: Callable[[str], str],
    told: Callable[..., CompressionResult],
) -> None:
    made = dataclasses.replace(
        told(result, 0.1, Estimate(0.1, 0.01)),
        before=dataclasses.replace(result.before, accuracy=0.93),
        compressed=dataclasses.replace(result.compressed, accuracy=0.925),
    )  # fmt: skip
    assert (
        "accuracy 93.0 % to 92.5 % on 200 held-out examples (−0.5 points, 95 % interval −2.7 to +1.7; "
        "2 right answers lost, 1 gained)" in verdict.headline(made)
    )
    assert "One example is 0.5 points of accuracy." in verdict.measured_sentences(made)
    words = plain(page(made, None))
    asked = ("What was gained", "What was lost", "Against what alternative", "Can the prediction be trusted?", "Layers")
    places = [words.index(question) for question in asked]
    assert places == sorted(places)
    assert places[1] < words.index("95 % interval") < places[2] < places[3] < words.index("loss model") < places[4]
    shown = printed(made, 1000)
    assert shown.index("95 % interval") < shown.index("predicted")


def test_many_rows_an_example_are_not_many_examples() -> None:
    even = Comparison(1.0, Estimate(0.0, 0.1), Estimate(0.0, 0.1), True, 30, 10, Estimate(-0.1, 0.05), 200, 10)
    low, high = verdict.accuracy_interval(even)
    assert (low, high) == (pytest.approx(-0.198, abs=1e-3), pytest.approx(-0.002, abs=1e-3))


def test_every_candidate_and_the_winner_are_named(
    result: CompressionResult, text: str, printed: Callable[..., str], plain: Callable[[str], str]
) -> None:
    turn = result.taken
    names = {name for candidate in turn.candidates for name in candidate.names}
    assert {"solver", "additive", "uniform", "greedy"} <= names
    for words, candidates in ((plain(text), turn.candidates), (printed(result), [turn.candidates[0], turn.chosen])):
        for candidate in candidates:
            assert verdict.quoted(candidate) in words
        assert f"taken: {turn.winner}" in words
        assert "additive (the optimum without interactions), uniform (one choice for all groups), greedy" in " ".join(
            words.split()
        )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kept", [True, False])
def test_the_report_says_whether_recovery_was_kept(
    result: CompressionResult, kept: bool, printed: Callable[..., str], plain: Callable[[str], str]
) -> None:
    harmed = dataclasses.replace(result.applied_comparison, divergence=Estimate(9.0, 0.1))
    recovered = result.recovered_comparison if kept else harmed
    made = dataclasses.replace(result, recovery_kept=kept, recovered_comparison=recovered)
    said = verdict.recovery_sentence(made)
    assert said is not None
    assert ("was kept" in said, "did harm" in said) == (kept, not kept)
    assert said in plain(page(made, None)) and said[:40] in printed(made)
    assert ("repaired, not kept" in plain(page(made, None))) is not kept
    final = made.recovered if kept else made.compressed
    assert final is made.final
    assert f"to {numbers.percent(final.accuracy)}" in verdict.headline(made)


@pytest.mark.parametrize(
    ("before", "after", "error", "harm"),
    [
        (0.5, 0.50001, 0.0, False),  # rounding
        (0.5, 0.51, 0.0, True),
        (0.5, 0.51, 0.01, False),  # two standard errors of both: 0.028
        (0.5, 0.54, 0.01, True),
        (0.5, math.inf, 0.01, True),
        (0.5, 0.9, math.inf, False),  # one example
    ],
)
def test_a_repair_that_changed_nothing_is_not_called_harmful(
    result: CompressionResult, before: float, after: float, error: float, harm: bool
) -> None:
    applied, recovered = (
        dataclasses.replace(result.applied_comparison, divergence=Estimate(mean, error)) for mean in (before, after)
    )
    made = dataclasses.replace(result, recovery_kept=False, applied_comparison=applied, recovered_comparison=recovered)
    said = verdict.recovery_sentence(made) or ""
    assert ("did harm" in said, "changed nothing worth keeping" in said) == (harm, not harm)
    assert said.endswith("The network returned is the plan as applied.")


@pytest.mark.usefixtures("undrawn")
def test_auto_says_why(compressed: Callable[..., CompressionResult], plain: Callable[[str], str]) -> None:
    found = compressed(solver="auto", rounds=0)
    assert found.solution.notes
    words = plain(page(found, None))
    for note in found.solution.notes:
        assert note[1:] in words
