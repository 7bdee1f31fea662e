"""A short run of the fuzzers: every file is read as it was written or refused by the library's own errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import NAMES
from tests.fuzz.damage import KINDS, Edit, damaged
from tests.fuzz.form import Format, made
from tests.fuzz.formats import formats
from tests.fuzz.solver_formats import stop_services
from tests.fuzz.trial import MOST_BYTES, tried

EDITS = st.lists(
    st.builds(Edit, st.sampled_from(KINDS), st.floats(0, 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=4
)


QUICK = tuple(name for name in NAMES if name != "service answer")


@pytest.fixture(scope="module", params=QUICK)
def form(request: pytest.FixtureRequest) -> Format:
    return formats()[request.param]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def known(form: Format, folder: Path) -> set[object]:
    return form.known(folder)


def test_what_the_fuzzers_name_is_all_there_is() -> None:
    assert tuple(formats()) == NAMES


def test_whole_files_are_read(form: Format, folder: Path, known: set[object]) -> None:
    for sample in form.samples:
        (folder / form.name_of_file).write_bytes(sample)
        assert tried(form, folder / form.name_of_file, known, may_differ=False).kind == "same"


@settings(max_examples=30, deadline=None)
@given(edits=EDITS, sample=st.integers(0, 99), other=st.integers(0, 99))
def test_damage_changes_nothing_or_is_refused(
    edits: list[Edit], sample: int, other: int, form: Format, folder: Path, known: set[object]
) -> None:
    count = len(form.samples)
    path = folder / form.name_of_file
    path.write_bytes(damaged(form.samples[sample % count], edits, form.samples[other % count]))
    found = tried(form, path, known, may_differ=not form.checked)
    assert found.kind in ("same", "refused", "other"), found.said
    assert found.kind != "other" or not form.checked
    assert found.memory < MOST_BYTES


@pytest.mark.parametrize("part", range(2))
def test_random_and_crafted_files_are_read_or_refused(
    part: int, form: Format, folder: Path, known: set[object]
) -> None:
    for seed in range(15 * part, 15 * part + 15):
        data, crafted = made(form, seed)
        (folder / form.name_of_file).write_bytes(data)
        found = tried(form, folder / form.name_of_file, known, may_differ=crafted or not form.checked)
        assert found.kind in ("same", "refused", "other"), (seed, found.said)
        assert found.memory < MOST_BYTES, seed


def test_answers_of_a_service_are_taken_or_refused(folder: Path) -> None:
    form, path = formats()["service answer"], folder / "answer"
    try:
        for data in (*form.samples[:2], *(made(form, seed)[0] for seed in range(4))):
            path.write_bytes(data)
            found = tried(form, path, {"solved"}, may_differ=False)
            assert found.kind in ("same", "refused"), found.said
    finally:
        stop_services()


def test_a_foreign_error_and_a_silent_change_would_be_seen(folder: Path) -> None:
    (folder / "file").write_bytes(b"")
    for read, kind in ((lambda path: path.absent, "foreign"), (lambda path: 2, "silent"), (lambda path: 1, "same")):
        assert tried(Format("none", (b"",), read, lambda chance, data: data), folder / "file", {1}, False).kind == kind
