"""Measurements shared by the ranks of torch.distributed: one table for any number of them, and none is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubo_compress.sensitivity import SensitivityTable
from qubo_compress.sensitivity.cache import _turns
from qubo_compress.sensitivity.forecast import FEWEST_EXAMPLES
from qubo_compress.sensitivity.ranks import ALONE
from tests.sensitivity import on_ranks

SCRIPT = Path(on_ranks.__file__)
ROOT = SCRIPT.parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
SECONDS = 3000
"""Far more than it takes: a hang shall end the tests, not a busy machine."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=ENVIRONMENT, cwd=ROOT, timeout=SECONDS, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and one[k].tobytes() == other[k].tobytes() for k in one
    )


@pytest.mark.parametrize("metric", sorted(on_ranks.OPTIONS))
def test_two_ranks_measure_the_table_of_one_process(shared: Path, metric: str) -> None:
    alone = on_ranks.numbers(on_ranks.measured(metric))
    assert equal(alone, read(shared / f"{metric}-0.npz"))
    assert equal(alone, read(shared / f"{metric}-1.npz"))


def test_a_rank_may_measure_alone(shared: Path) -> None:
    assert equal(read(shared / "alone-0.npz"), read(shared / "products-0.npz"))


@pytest.mark.parametrize("folders", ["own", "common"])
def test_units_of_any_rank_are_measured_once(shared: Path, folders: str) -> None:
    first, again = ([read(shared / f"{folders}-{when}-{rank}.npz") for rank in (0, 1)] for when in ("first", "again"))
    assert equal(*first) and equal(*again)
    resumed = [arrays["known"][3] for arrays in (first[0], again[0])]
    for arrays in (first[0], again[0]):
        arrays["known"][3] = 0
    assert equal(first[0], again[0])
    groups = len(list(shared.glob("common/forward_*.npz")))
    # In a common folder, a rank that lags behind finds what the other has written meanwhile.
    assert resumed[0] == 0 if folders == "own" else resumed[0] < groups
    assert resumed[1] == groups - 1 + 1  # all but the unit deleted, and the prices
    if folders == "own":
        written = [{path.name for path in (shared / f"own-{rank}").glob("forward_*.npz")} for rank in (0, 1)]
        assert len(written[0] | written[1]) == groups
        assert min(map(len, written)) >= groups // 2 - 1


def test_an_error_on_one_rank_ends_both(shared: Path) -> None:
    zero, one = (json.loads((shared / f"errors-{rank}.json").read_text()) for rank in (0, 1))
    for case, kind in (("unit", "InvalidModel"), ("after", "InvalidModel"), ("no examples", "InvalidBatches")):
        assert one[case]["kind"] == kind
        assert zero[case]["kind"] == "RankFailed" and zero[case]["rank"] == 1
        assert f"{kind}: {one[case]['said']}" in zero[case]["said"]


def test_ranks_that_were_given_different_things_are_refused(shared: Path) -> None:
    for rank in (0, 1):
        found = json.loads((shared / f"errors-{rank}.json").read_text())
        own, other = found["own examples"], found["other arguments"]
        assert own["kind"] == other["kind"] == "RanksDisagree"
        assert "rank 1 was given other data" in own["said"] and "SensitivityTable.merge" in own["said"]
        assert "other max_rank" in other["said"] and "other seconds" in found["other limits"]["said"]
        assert found["other tables"]["kind"] == "RanksDisagree" and "other costs, menu" in found["other tables"]["said"]
        assert found["not in the group"]["kind"] == ("none" if rank == 0 else "RanksDisagree")


def test_tables_of_own_examples_are_merged_on_every_rank(shared: Path) -> None:
    merged = SensitivityTable.merge([on_ranks.own_examples(rank) for rank in (0, 1)])
    for rank in (0, 1):
        assert equal(on_ranks.numbers(merged), read(shared / f"merged-{rank}.npz"))


def test_a_time_limit_takes_the_examples_that_rank_0_says(shared: Path) -> None:
    found = [read(shared / f"limited-{rank}.npz") for rank in (0, 1)]
    assert equal(*found) and found[0]["known"][4] == FEWEST_EXAMPLES


def test_arrays_of_any_form_arrive(shared: Path) -> None:
    zero, one = (json.loads((shared / f"odd-{rank}.json").read_text()) for rank in (0, 1))
    assert zero == one and zero[0] == {}
    assert zero[1]["scalar"] == ["<f8", [], 1.5] and zero[1]["empty"] == ["<f4", [0, 3], []]
    assert zero[1]["columns"][1:] == [[2, 3], [[1, 2, 3], [4, 5, 6]]]
    assert zero[1]["bools"][2] == [False, True] * 4 + [False] and bytes(zero[1]["locked"][2]) == b"bytes" * 3


def test_a_rank_that_is_killed_ends_the_other(shared: Path) -> None:
    assert json.loads((shared / "killed.json").read_text()) == [0, -9]
    found = json.loads((shared / "killed-0.json").read_text())
    assert found["kind"] == "RankFailed" and "another rank ended" in found["said"] and found["rank"] is None


def test_nothing_is_shared_where_nothing_is_initialised() -> None:
    arrays: Any = {"some": np.arange(3)}
    assert ALONE.exchange(arrays)[0] is arrays and ALONE.flags([True, False]).tolist() == [[True, False]]


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 15), st.floats(0, 10)), max_size=20))
def test_every_unit_has_one_turn(ranks: int, units: list[tuple[int, float]]) -> None:
    held = np.array([[bool(who >> rank & 1) for who, _ in units] for rank in range(ranks)], dtype=bool)
    costs = [cost for _, cost in units]
    turns = list(_turns(held, costs))
    assert all(len(turn) == ranks for turn in turns)
    taken = [(number, rank) for turn in turns for rank, number in enumerate(turn) if number is not None]
    assert sorted(number for number, _ in taken) == list(range(len(units)))
    assert all(held[rank, number] for number, rank in taken if held[:, number].any())
    if ranks > 1:
        # Waiting: what the turns take is little above an even share of the work.
        missing = [turn for turn in turns if not held[:, max(n for n in turn if n is not None)].any()]
        work = [[0.0 if n is None else costs[n] for n in turn] for turn in missing]
        longest = sum(max(row) for row in work)
        assert longest <= sum(map(sum, work)) / ranks + max(costs, default=0.0) + 1e-9
