"""The summary on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from qubo_compress._internal.text import broken
from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import facts, verdict
from qubo_compress.report.candidates import candidate_rows


def test_terminal(result: CompressionResult, printed: Callable[..., str]) -> None:
    words = printed(result)
    for row in facts.group_rows(result):
        assert row.name in words
    for part in (f"{result.plan.bytes:,}", "repaired", "temperature", verdict.SIMULATED, facts.SPEED[:60]):
        assert part in words
    assert verdict.headline(result) in words


def test_terminal_is_no_wider_than_it_may(result: CompressionResult, printed: Callable[..., str]) -> None:
    assert max(len(line) for line in printed(result, width=80).splitlines()) <= 80


def test_names_and_choices_are_not_broken_within_words(result: CompressionResult, printed: Callable[..., str]) -> None:
    lines = printed(result, width=80).splitlines()
    below = lines[lines.index(next(line for line in lines if line.startswith("Groups"))) :]
    words = {word for line in below for word in line.split()}
    for row in facts.group_rows(result):
        for part in (*broken(row.name, 20).split("\n"), *row.choice.replace(",", ", ").split()):
            assert part in words, part


def test_the_plans_shown_are_the_taken_one_and_the_best_of_each_kind(
    result: CompressionResult, printed: Callable[..., str]
) -> None:
    words = printed(result)
    for name in ("taken: ", "uniform", "greedy", "corrected: the same times measured"):
        assert name in words
    others = [c for c in result.taken.candidates if c.name.startswith("solver ") and not c.also]
    hidden = len([one for one in others if one.name != result.taken.winner and one.repaired is None])
    assert (f"Not shown: {hidden} more" in words) == bool(hidden)
    uniform = next(row for row in candidate_rows(result) if "uniform" in row[0])
    assert uniform[2] == "–"  # the table did not choose it
