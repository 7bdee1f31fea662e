"""The four answers of a report's first screen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import facts
from qubo_compress.report.first_screen import against_uniform, first_screen, opponents, trusted
from qubo_compress.selection.candidates import Candidate
from qubo_compress.selection.comparison import Estimate


def _with(result: CompressionResult, mine: Estimate, uniform: Estimate | None) -> CompressionResult:
    """The result with a taken plan and, maybe, a uniform one of given divergences."""
    base = dataclasses.replace(result.taken.candidates[0], repaired=None)
    taken = dataclasses.replace(
        base, name="solver", also=(), comparison=dataclasses.replace(base.comparison, divergence=mine)
    )
    candidates = [taken]
    if uniform is not None:
        other = dataclasses.replace(base.comparison, divergence=uniform)
        candidates.append(dataclasses.replace(base, name="uniform", also=("greedy",), comparison=other))
    turn = dataclasses.replace(result.rounds[0], candidates=tuple(candidates), winner="solver")
    return dataclasses.replace(result, rounds=(turn,))


@pytest.mark.parametrize(
    ("mine", "uniform", "said"),
    [
        (Estimate(0.1, 0.01), Estimate(0.4, 0.02), "4 times closer than uniform"),
        (Estimate(0.1, 0.05), Estimate(0.15, 0.05), "Not clearly better than uniform"),
        (Estimate(0.1, 0.05), Estimate(0.01, 0.001), "Not clearly better than uniform"),
        (Estimate(0.1, 0.05), Estimate(float("inf"), float("nan")), "Uniform destroys the network"),
        (Estimate(0.1, 0.05), None, "No uniform plan fits the budget"),
    ],
)
def test_better_is_said_only_beyond_the_noise(
    result: CompressionResult, mine: Estimate, uniform: Estimate | None, said: str
) -> None:
    made = _with(result, mine, uniform)
    assert against_uniform(made) == said
    assert said in first_screen(made)


def test_repaired_plans_are_compared_once_repaired(result: CompressionResult) -> None:
    made = _with(result, Estimate(0.1, 0.01), Estimate(0.4, 0.02))
    taken, uniform = made.rounds[0].candidates

    def repaired(base: Candidate, mean: float) -> Candidate:
        return dataclasses.replace(
            base, repaired=dataclasses.replace(base.comparison, divergence=Estimate(mean, 0.002))
        )

    def told(*candidates: Candidate) -> str:
        turn = dataclasses.replace(made.rounds[0], candidates=candidates)
        return against_uniform(dataclasses.replace(made, rounds=(turn,)))

    assert told(repaired(taken, 0.01), repaired(uniform, 0.011)) == "Not clearly better than uniform"
    assert told(repaired(taken, 0.01), repaired(uniform, 0.05)) == "5 times closer than uniform"
    assert told(repaired(taken, 0.7), repaired(uniform, 0.3)) == "3 times closer than uniform", "a repair that harms"
    assert told(repaired(taken, 0.01), uniform) == "4 times closer than uniform", "as applied: uniform was not repaired"


def _judged(result: CompressionResult, *after: float, epochs: int = 0) -> CompressionResult:
    """Four plans alike as applied, of given divergences after repair; the first is the solver's, the third taken."""
    base = result.taken.chosen
    names = ("solver", "uniform", "additive", "greedy")
    candidates = [
        dataclasses.replace(
            base, name=name, also=(), comparison=dataclasses.replace(base.comparison, divergence=Estimate(0.4, 0.01)),
            repaired=dataclasses.replace(base.comparison, divergence=Estimate(mean, 0.001), lost=90 + n, gained=80)
            if not epochs or name == "additive" else None,
        )
        for n, (name, mean) in enumerate(zip(names, after, strict=True))
    ]  # fmt: skip
    turn = dataclasses.replace(result.rounds[0], candidates=tuple(candidates), winner="additive")
    return dataclasses.replace(result, rounds=(turn,), epochs=epochs)


def test_the_first_screen_has_one_set_of_numbers_all_after_repair(
    result: CompressionResult, plain: Callable[[str], str], printed: Callable[..., str]
) -> None:
    made = _judged(result, 0.25, 0.3, 0.1, 0.2)
    words = plain(first_screen(made))
    assert (
        "3 times closer than uniformAll plans after the same repair." in words
        and "0.4" not in words.split("Can the")[0]
    )
    for lost in (91, 92, 93):
        assert f"{lost} / 80" in words
    assert "not the plan taken: after repair additive was better on the held-out examples (0.1 against 0.25)" in words
    assert "proven best" not in words
    shown = printed(made, 1000)
    assert "Not shown" not in shown and "0.25 ± 0.0020" in shown and "0.4 ± 0.020" in shown
    assert "after repair, among the 4 plans that were repaired: solver, uniform, additive, greedy." in shown


def test_plans_that_were_not_fine_tuned_are_compared_before_it(
    result: CompressionResult, plain: Callable[[str], str]
) -> None:
    made = _judged(result, 0.25, 0.3, 0.1, 0.2, epochs=2)
    words = plain(first_screen(made))
    assert "All plans before fine-tuning: only the plan taken was then fine-tuned, for 2 epochs." in words
    assert "Not clearly better than uniform" in words and "0.4 ± 0.020" in words and "0.1 ± " not in words
    assert "before fine-tuning additive was better" in words


def test_every_alternative_is_a_row_and_its_own_plan_is_named(
    result: CompressionResult, plain: Callable[[str], str]
) -> None:
    made = _with(result, Estimate(0.1, 0.01), Estimate(0.4, 0.02))
    assert [name for name, _ in opponents(made)] == ["uniform", "greedy"]
    alone = _with(result, Estimate(0.1, 0.01), None)
    taken = dataclasses.replace(alone.rounds[0].candidates[0], also=("uniform", "greedy"))
    turn = dataclasses.replace(alone.rounds[0], candidates=(taken,))
    same = dataclasses.replace(alone, rounds=(turn,))
    assert against_uniform(same) == "The uniform plan is the best"
    assert "greedy: the same plan" in plain(first_screen(same))


@pytest.mark.parametrize(
    ("predicted", "measured", "said"),
    [
        (0.1, Estimate(0.11, 0.01), "Yes: measured as predicted"),
        (0.1, Estimate(0.15, 0.005), "Roughly: 1.5 times more was measured"),
        (0.1, Estimate(0.5, 0.01), "No: 5 times more was measured"),
        (-0.1, Estimate(0.5, 0.01), "No"),
        (1e-5, Estimate(2e-4, 1e-5), "Yes, as small as predicted"),
        (0.1, Estimate(float("nan"), 0.0), "No: the outputs are not finite"),
    ],
)
def test_trust_follows_from_the_held_out_examples(
    result: CompressionResult, told: Callable[..., CompressionResult], predicted: float, measured: Estimate, said: str
) -> None:
    assert trusted(told(result, predicted, measured))[0] == said


def test_few_examples_cannot_confirm_a_prediction(
    result: CompressionResult, told: Callable[..., CompressionResult]
) -> None:
    made = told(result, 0.1, Estimate(0.11, 0.01), rows=20, examples=20, lost=2, gained=1)
    assert trusted(made)[0] == "Too few examples to say"
    assert 'href="#warnings"' in first_screen(made)


def test_the_strongest_pairs_are_those_of_the_factor(result: CompressionResult) -> None:
    rows = facts.strongest_pairs(result, most=1000)
    assert [abs(row[2]) for row in rows] == sorted((abs(row[2]) for row in rows), reverse=True)
    chosen = facts.chosen_indices(result.table, result.plan.choices)
    assert result.table.factor is not None
    features = result.table.factor[chosen].astype(float)
    whole = float((features.sum(0) ** 2).sum() - (features**2).sum()) / 2
    assert sum(row[2] for row in rows) == pytest.approx(whole, abs=1e-9)
    assert all(-1.000001 <= row[3] <= 1.000001 for row in rows)
