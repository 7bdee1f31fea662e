"""The summary on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import facts, verdict


def test_terminal(result: CompressionResult, printed: Callable[..., str]) -> None:
    words = printed(result)
    for row in facts.group_rows(result):
        assert row.name in words
    for part in (f"{result.plan.bytes:,}", "recovered", "temperature", verdict.SIMULATED, facts.SPEED[:60]):
        assert part in words
    assert verdict.headline(result) in words


def test_terminal_is_no_wider_than_it_may(result: CompressionResult, printed: Callable[..., str]) -> None:
    assert max(len(line) for line in printed(result, width=80).splitlines()) <= 80
