"""A few real kills of every writer; ``python -m tests.fuzz.kills --rounds 200`` makes many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.kills import Writer, rounds, writers

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
