"""Progress where there is no terminal: lines of text, at most one every few seconds."""

from __future__ import annotations

import pytest

from qubo_compress.sensitivity.progress import SILENT, progress_bar


def test_lines_say_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, SILENT / 2, SILENT, SILENT + 1, 2 * SILENT, 3 * SILENT])
    with progress_bar(True, "measuring", 10.0, lambda: next(times)) as advance:
        for _ in range(4):
            advance(2.0)
        advance(2.0)
    assert capsys.readouterr().out.splitlines() == [
        "measuring: 40 %, about 8 s left",
        "measuring: 80 %, about 2 s left",
    ]


def test_nothing_is_shown_when_it_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    for show, total in ((False, 3.0), (True, 0.0)):
        with progress_bar(show, "measuring", total) as advance:
            advance(1.0)
    assert capsys.readouterr().out == ""
