"""Plans, problems and tables on disk: one damaged byte, or a path that is no file, is refused with the file's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, Plan
from qubo_compress.errors import CorruptArtifact, StorageError
from qubo_compress.sensitivity import SensitivityTable
from tests.problem.test_file import WHOLE, same
from tests.sensitivity import test_table_file as table_file
from tests.test_plan_file import PLAN


@dataclass(frozen=True)
class Kind:
    """One thing that is saved, and how it is told from another."""

    name: str
    saved: Any
    load: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]


KINDS = (
    Kind("plan", PLAN, Plan.load, lambda one, other: one == other),
    Kind("problem", WHOLE, ChoiceProblem.load, same),
    Kind("table", table_file.WHOLE, SensitivityTable.load, table_file.same),
)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def whole(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bytes") / "whole"
    kind.saved.save(path)
    return path


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_one_byte_changes_nothing_or_is_refused(place: float, change: int, kind: Kind, whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[int(place * len(data))] ^= change
    altered = whole.with_name("altered")
    altered.write_bytes(data)
    try:
        assert kind.same(kind.load(altered), kind.saved)
    except CorruptArtifact as refusal:
        assert "altered" in str(refusal)


def test_what_was_cut_short_or_goes_on_is_refused(kind: Kind, whole: Path) -> None:
    data = whole.read_bytes()
    cut = whole.with_name("cut")
    for length in np.linspace(0, len(data) - 1, 40).astype(int):
        cut.write_bytes(data[:length])
        with pytest.raises(CorruptArtifact, match="cut"):
            kind.load(cut)
    cut.write_bytes(data + b"more")
    with pytest.raises(CorruptArtifact, match="cut"):
        kind.load(cut)


def test_what_is_no_file_is_refused(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match=f"is a folder, not a .*{kind.name}"):
        kind.load(tmp_path)
    with pytest.raises(CorruptArtifact, match="no regular file"):
        kind.load("/dev/zero")
    with pytest.raises(FileNotFoundError):
        kind.load(tmp_path / "absent")
    with pytest.raises(StorageError, match="cannot be read"):
        kind.load("a\0b")
    with pytest.raises(StorageError, match="a folder"):
        kind.saved.save(tmp_path)
