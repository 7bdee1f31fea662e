"""A few real kills of every writer and of whole calls.

``python -m tests.fuzz.kills --rounds 200`` and ``python -m tests.fuzz.kills_of_calls --kills 200`` make many.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz.kills import Writer, rounds, writers
from tests.fuzz.kills_of_calls import Call, calls, kills

NAMES = ("plan.save", "save", "problem.save", "unit of a cache", "text")


@pytest.fixture(scope="module")
def every() -> dict[str, Writer]:
    return writers()


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(name: str, every: dict[str, Writer]) -> None:
    counts = rounds(every[name], 8)
    assert counts["rounds"] == 8 and counts["lost"] == 0 and counts["left over"] == 0


def test_a_writer_in_place_would_be_caught(every: dict[str, Writer]) -> None:
    text = every["text"]

    def in_place(path: Path, version: int) -> None:
        with path.open("wb") as handle:
            for _ in range(500):
                handle.write(bytes([version]) * 1000)

    assert rounds(Writer("in place", in_place, text.read), 15)["lost"] > 0


CALLS = ("measure", "measure by products", "compress", "refinement", "recover")


@pytest.fixture(scope="module")
def all_calls() -> dict[str, Call]:
    return calls()


@pytest.mark.parametrize("name", CALLS)
def test_a_killed_call_loses_nothing_and_is_made_again_with_the_same_result(
    name: str, all_calls: dict[str, Call]
) -> None:
    assert tuple(all_calls) == CALLS
    counts = kills(all_calls[name], 3)
    assert counts["kills"] == 3 and counts["resumed"] >= 1 and counts["lost"] == 0 and counts["left over"] == 0


def test_a_call_that_writes_in_place_would_be_caught() -> None:
    def careless(folder: Path) -> int:
        with (folder / "out").open("wb") as handle:
            for _ in range(100):
                handle.write(b"a" * 1000)
                handle.flush()
                time.sleep(0.001)
        return 1

    assert kills(Call("careless", careless, lambda one, other: one == other, "out"), 6)["lost"] > 0
