"""Progress bars: on a terminal, and in a notebook as one output that is updated."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from qubo_compress._internal.live import BETWEEN, SILENT, live_bar, tracked


class Place:
    """An output of a notebook that remembers what it showed."""

    def __init__(self, shown: Any) -> None:
        self.shown = [self.html(shown)]

    def update(self, shown: Any) -> None:
        self.shown.append(self.html(shown))

    @staticmethod
    def html(shown: Any) -> str:
        found = shown._repr_html_() if hasattr(shown, "_repr_html_") else shown._repr_mimebundle_([], [])["text/html"]
        return str(found)


def _bar(places: list[Place], now: list[float], total: float = 4) -> Any:
    def output(shown: Any) -> Place:
        places.append(Place(shown))
        return places[-1]

    console = Console(force_jupyter=True, file=io.StringIO())
    return live_bar("measuring", total, console, output, lambda: now[0])


def test_a_notebook_has_one_output_that_is_updated_and_then_cleared() -> None:
    places: list[Place] = []
    now = [0.0]
    with _bar(places, now) as advance:
        for _ in range(4):
            now[0] += 1.0
            advance(1)
    (place,) = places
    assert "measuring" in place.shown[0] and "0%" in place.shown[0]
    assert "25%" in place.shown[1] and "100%" in place.shown[4]
    assert len(place.shown) == 6 and "measuring" not in place.shown[-1]


def test_outputs_are_not_updated_more_often_than_anyone_can_see() -> None:
    places: list[Place] = []
    now = [0.0]
    with _bar(places, now, 1000) as advance:
        for _ in range(1000):
            now[0] += BETWEEN / 10
            advance(1)
    assert 50 < len(places[0].shown) < 110


def test_a_bar_is_cleared_when_the_work_fails() -> None:
    places: list[Place] = []
    with pytest.raises(KeyboardInterrupt), _bar(places, [0.0]):
        raise KeyboardInterrupt
    assert "measuring" not in places[0].shown[-1]


def test_terminals_get_the_bar_of_rich() -> None:
    stream = io.StringIO()
    with live_bar("storing", 2, Console(file=stream, force_terminal=True, force_jupyter=False, width=80)) as advance:
        advance(2)
    assert "storing" in stream.getvalue()


def test_steps_are_counted_with_and_without_a_bar() -> None:
    assert list(tracked(3, "recovering", show=True)) == list(tracked(3, "recovering", show=False)) == [0, 1, 2]
    assert list(tracked(0, "recovering", show=True)) == []


def test_where_output_is_piped_a_line_now_and_then_says_what_is_left() -> None:
    stream, times = io.StringIO(), iter([0.0, SILENT / 2, SILENT, SILENT + 1, 2 * SILENT, 3 * SILENT])
    with live_bar("measuring", 10, Console(file=stream), clock=lambda: next(times)) as advance:
        for _ in range(5):
            advance(2)
    assert stream.getvalue() == "measuring: 40 %, about 8 s left\nmeasuring: 80 %, about 2 s left\n"
