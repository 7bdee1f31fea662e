"""Units of a cache: each says what it is, and answers for nothing else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress.errors import CacheMismatch
from qubo_compress.sensitivity.cache import Unit, UnitCache

SIGNATURE = {"weights": "1234", "data": "5678"}
NAMES = ("losses_00000", "losses_00001", "features_00000")
MADE = {name: {"linear": np.arange(4.0) + n, "flips": np.arange(3) == n} for n, name in enumerate(NAMES)}


def cache_in(folder: Path, **changes: str) -> UnitCache:
    return UnitCache(folder, {**SIGNATURE, **changes})


def filled(folder: Path, **changes: str) -> UnitCache:
    cache = cache_in(folder, **changes)
    for name, arrays in MADE.items():
        cache.get(name, lambda arrays=arrays: arrays)
    return cache


def never() -> Any:
    raise AssertionError("the unit is there")


def test_units_come_back_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path)
    cache = cache_in(tmp_path)
    found = cache.gather([Unit(name, never) for name in NAMES])
    assert cache.loaded == 3
    for name, arrays in zip(NAMES, found, strict=True):
        assert arrays.keys() == MADE[name].keys()
        for key, array in arrays.items():
            assert np.array_equal(array, MADE[name][key]) and array.dtype == MADE[name][key].dtype
            assert array.flags.writeable


def test_exchanged_units_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    for one, other in itertools.permutations(NAMES, 2):
        first, second = tmp_path / f"{one}.npz", tmp_path / f"{other}.npz"
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        with pytest.raises(CacheMismatch, match=rf"{one}\.npz.*says that it is {other}"):
            cache_in(tmp_path).get(one, never)
        first.write_bytes(kept)


def test_units_of_another_measurement_are_refused(tmp_path: Path) -> None:
    filled(tmp_path / "here")
    filled(tmp_path / "there", weights="9999")
    unit = f"{NAMES[0]}.npz"
    (tmp_path / "here" / unit).write_bytes((tmp_path / "there" / unit).read_bytes())
    with pytest.raises(CacheMismatch, match="another measurement"):
        cache_in(tmp_path / "here").get(NAMES[0], never)


def test_units_that_do_not_say_what_they_are_are_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    np.savez(tmp_path / f"{NAMES[0]}.npz", **MADE[NAMES[0]])
    with pytest.raises(CacheMismatch, match="does not say what it is"):
        cache_in(tmp_path).get(NAMES[0], never)


@pytest.mark.parametrize(
    "text",
    ["[]", '"x"', "[{}]", "{}", "null", "3", '{"weights": 3}', "{", "\xff", "[" * 10**5, '{"weights": ["1234"]}'],
)
def test_a_damaged_signature_is_refused(text: str, tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "signature.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CacheMismatch, match=tmp_path.name):
        cache_in(tmp_path)
    assert json.dumps(sorted(item.name for item in tmp_path.iterdir())).count("npz") == 3


def test_a_folder_in_the_place_of_a_unit_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / f"{NAMES[0]}.npz").unlink()
    (tmp_path / f"{NAMES[0]}.npz").mkdir()
    with pytest.raises(CacheMismatch, match="is a folder"):
        cache_in(tmp_path).get(NAMES[0], never)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("cache")
    filled(found)
    return found


@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_bit_changes_nothing_or_is_refused(place: float, bit: int, folder: Path) -> None:
    path = folder / f"{NAMES[0]}.npz"
    whole = path.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = cache_in(folder).get(NAMES[0], never)
        assert all(np.array_equal(found[key], MADE[NAMES[0]][key]) for key in MADE[NAMES[0]])
    except CacheMismatch as refusal:
        assert path.name in str(refusal)
    finally:
        path.write_bytes(whole)
