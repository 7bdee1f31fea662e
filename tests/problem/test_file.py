"""Problems from elsewhere: refused before scipy or the memory learns of what they claim."""

from __future__ import annotations

import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from qubo_compress import ChoiceProblem
from qubo_compress._internal import arrays
from qubo_compress.errors import CorruptArtifact, InvalidProblem

OFFSETS = [0, 4, 8, 12]
FIELDS = ("linear", "group_offsets", "costs", "limits", "fixed_costs", "factor")


def matrix() -> sparse.csr_array:
    dense = np.zeros((12, 12))
    for v, w in ((0, 5), (1, 9), (2, 11), (4, 8), (7, 10)):
        dense[v, w] = dense[w, v] = v + w
    return sparse.csr_array(dense)


def problem_of(pairs: Any) -> ChoiceProblem:
    return ChoiceProblem(
        linear=np.zeros(12), group_offsets=OFFSETS, costs=np.ones((1, 12), int), limits=[9], pairs=pairs
    )


def same(one: ChoiceProblem, other: ChoiceProblem) -> bool:
    pairs = (None if p.pairs is None else p.pairs.toarray().tobytes() for p in (one, other))
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)
        and (one.group_names, one.choice_names, one.budget_names, one.constant)
        == (other.group_names, other.choice_names, other.budget_names, other.constant)
        and len(set(pairs)) == 1
    )


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize("place", [12, 10**6, 2**31 - 1, -1, -(10**6)])
def test_pairs_with_places_that_do_not_exist_are_refused(kind: str, place: int) -> None:
    pairs = matrix().asformat(kind)
    places = pairs.coords[1] if kind == "coo" else pairs.indices
    places[1] = place
    with pytest.raises(InvalidProblem, match=str(place)):
        problem_of(pairs)


@pytest.mark.parametrize("kind", ["csr", "csc", "bsr"])
@pytest.mark.parametrize("start", [10**6, -3, 0])
def test_pairs_with_rows_that_run_backwards_or_beyond_are_refused(kind: str, start: int) -> None:
    pairs = matrix().asformat(kind)
    pairs.indptr[-1 if start == 10**6 else 3] = start
    with pytest.raises(InvalidProblem, match="begin and end"):
        problem_of(pairs)


def test_every_format_of_scipy_gives_the_same_problem() -> None:
    wanted = problem_of(matrix())
    for kind in ("csr", "csc", "coo", "bsr", "lil", "dok", "dia"):
        assert same(problem_of(matrix().asformat(kind)), wanted)
    roomy = matrix()
    roomy.indices, roomy.data = np.append(roomy.indices, 10**6), np.append(roomy.data, 1.0)
    assert same(problem_of(roomy), wanted)  # scipy allows room behind the last row


WHOLE = problem_of(matrix())


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, ChoiceProblem]:
    problem = problem_of(matrix())
    problem.save(tmp_path / "problem.npz")
    return tmp_path / "problem.npz", problem


def rewritten(path: Path, change: Any, comment: bytes | None = None) -> None:
    """The same archive with other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        comment = archive.comment if comment is None else comment
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment


def header(dtype: str, shape: str) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


CRAFTED = {
    "long": ("linear.npy", header("<f8", "(99999999999,)")),
    "without length": ("group_names.npy", header("|V0", "(1000000000000,)")),
    "objects": ("linear.npy", header("|O", "(1,)") + b"cos\nsystem\n."),
    "negative": ("linear.npy", header("<f8", "(-1,)")),
    "many axes": ("linear.npy", header("<f8", "(1," * 1 + "1," * 70 + ")")),
    "deep": ("linear.npy", header("<f8", "(" * 4000 + "1" + ")" * 4000)),
    "minus": ("linear.npy", header("<f8", "(" + "-" * 9000 + "1,)")),
    "letters": ("linear.npy", header("<U8", "(12,)") + b"a\0\0\0" * 96),
    "no letters": ("choice_names.npy", header("<U1", "(12,)") + b"\xff" * 48),
    "not whole": ("pairs_indices.npy", header("<f8", "(10,)") + b"\0" * 80),
    "not an array": ("linear.npy", b"PK"),
    "nothing": ("linear.npy", b""),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_arrays_are_refused_without_memory(saved: tuple[Path, ChoiceProblem], case: str) -> None:
    path, _ = saved
    name, data = CRAFTED[case]
    rewritten(path, lambda members: members.update({name: data}), comment=b"")
    tracemalloc.start()
    with pytest.raises(CorruptArtifact, match=r"problem\.npz"):
        ChoiceProblem.load(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("claimed", [None, 224])
def test_a_small_file_cannot_ask_for_much_memory(saved: tuple[Path, ChoiceProblem], claimed: int | None) -> None:
    path, _ = saved
    bomb = header("<f8", "(12500000,)") + bytes(100_000_000)
    rewritten(path, lambda members: members.update({"linear.npy": bomb}), comment=b"")
    if claimed is not None:  # the directory says that it is small
        data = path.read_bytes().replace(len(bomb).to_bytes(4, "little"), claimed.to_bytes(4, "little"))
        path.write_bytes(data.replace(zlib.crc32(bomb).to_bytes(4, "little"), bytes(4)))
    tracemalloc.start()
    with pytest.raises(CorruptArtifact, match="claim|CRC"):
        ChoiceProblem.load(path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_what_packs_too_well_is_stored_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "ALWAYS_ALLOWED", 10_000)
    problem = ChoiceProblem(
        linear=np.zeros(100), group_offsets=[0, 50, 100], costs=np.zeros((1, 100), int), limits=[0],
        factor=np.zeros((100, 300)),
    )  # fmt: skip
    problem.save(tmp_path / "zeros.npz")
    assert (tmp_path / "zeros.npz").stat().st_size > 120_000 / arrays.LARGEST_RATIO
    assert same(ChoiceProblem.load(tmp_path / "zeros.npz"), problem)


def test_what_was_exchanged_or_left_out_is_noticed(saved: tuple[Path, ChoiceProblem]) -> None:
    path, _ = saved
    whole = path.read_bytes()
    for said, change in {
        "checksum": lambda m: m.update({"limits.npy": m["fixed_costs.npy"], "fixed_costs.npy": m["limits.npy"]}),
        "checksum|lacks": lambda m: m.pop("fixed_costs.npy"),
        "checksum|not known": lambda m: m.update({"more.npy": m["limits.npy"]}),
        "not an array": lambda m: m.update({"readme.txt": b"hello"}),
    }.items():
        path.write_bytes(whole)
        rewritten(path, change)
        with pytest.raises(CorruptArtifact, match=said):
            ChoiceProblem.load(path)
    rewritten(path, lambda m: m.pop("readme.txt"), comment=b'{"format": "qubo_compress unit 1", "checksum": ""}')
    with pytest.raises(CorruptArtifact, match="checksum"):
        ChoiceProblem.load(path)


def test_files_of_version_0_4_are_still_read(saved: tuple[Path, ChoiceProblem]) -> None:
    path, problem = saved
    with np.load(path) as stored:  # which also says that numpy reads ours
        found = dict(stored)
    np.savez_compressed(path, **found)
    assert same(ChoiceProblem.load(path), problem)
