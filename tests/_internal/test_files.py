"""Writing: the old file or the new one, with its mode, behind its links; and nothing left behind."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from qubo_compress._internal import files
from qubo_compress._internal.files import refuse_unwritable, write_atomically
from qubo_compress.errors import StorageError


def put(path: Path, data: bytes) -> None:
    write_atomically(path, lambda handle: handle.write(data))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o777])
def test_a_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(mode)
    put(tmp_path / "a", b"new")
    assert mode_of(tmp_path / "a") == mode and (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        put(tmp_path / "a", b"new")
    finally:
        assert os.umask(before) == mask
    assert mode_of(tmp_path / "a") == 0o666 & ~mask


def test_what_is_written_over_a_private_file_is_never_readable_by_others(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o600)
    seen: list[int] = []

    def write(handle: object) -> None:
        seen.extend(mode_of(item) for item in tmp_path.iterdir())

    write_atomically(tmp_path / "a", write)
    assert seen == [0o600, 0o600]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real").write_bytes(b"old")
    (tmp_path / "near").symlink_to("far/real")
    (tmp_path / "nearer").symlink_to("near")
    put(tmp_path / "nearer", b"new")
    assert (tmp_path / "nearer").is_symlink() and (tmp_path / "near").is_symlink()
    assert (tmp_path / "far" / "real").read_bytes() == b"new" and len(list((tmp_path / "far").iterdir())) == 1
    (tmp_path / "dangling").symlink_to("far/absent")
    put(tmp_path / "dangling", b"new")
    assert (tmp_path / "far" / "absent").read_bytes() == b"new" and (tmp_path / "dangling").is_symlink()


def test_what_is_no_file_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(tmp_path / "socket"))
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_bytes(b"old")
    cases = {"folder": "a folder", "pipe": "a pipe", "socket": "a socket", "null": "a device"}
    for name, kind in cases.items():
        before = (tmp_path / name).lstat()
        for attempt in (refuse_unwritable, lambda path: put(path, b"new")):
            with pytest.raises(StorageError, match=f"{name} is {kind}"):
                attempt(tmp_path / name)
        assert (tmp_path / name).lstat() == before
    for strange in (tmp_path / "circle", tmp_path / "file" / "below", "a\0b", "\ud800"):
        with pytest.raises(StorageError, match="cannot be written|could not be written"):
            put(strange, b"new")
    bound.close()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([*cases, "circle", "file"])


def test_a_read_only_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o444)
    if os.geteuid() == 0:  # who may write anything
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(StorageError, match="read-only"):
        put(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    put(tmp_path / "a", b"old")

    def write(handle: object) -> None:
        handle.write(b"half")  # type: ignore[attr-defined]
        raise failure

    with pytest.raises(StorageError if isinstance(failure, OSError) else type(failure)):
        write_atomically(tmp_path / "a", write)
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        (tmp_path / f".a.{number}.partial").write_bytes(b"left")
    (tmp_path / ".b.0.partial").write_bytes(b"of another target")
    put(tmp_path / "a", b"new")
    assert sorted(item.name for item in tmp_path.iterdir()) == [".b.0.partial", "a"]

    begun, finish = threading.Event(), threading.Event()

    def slow(handle: object) -> None:
        handle.write(b"slow")  # type: ignore[attr-defined]
        begun.set()
        assert finish.wait(30)

    writer = threading.Thread(target=write_atomically, args=(tmp_path / "a", slow))
    writer.start()
    assert begun.wait(30)
    put(tmp_path / "a", b"quick")
    assert (tmp_path / "a").read_bytes() == b"quick" and (tmp_path / ".a.0.partial").exists()
    finish.set()
    writer.join()
    assert (tmp_path / "a").read_bytes() == b"slow" and not (tmp_path / ".a.0.partial").exists()


def test_leftovers_of_version_0_4_are_removed_once_nobody_can_be_writing_them(tmp_path: Path) -> None:
    old, young = tmp_path / ".a.k3_x9abc.partial", tmp_path / ".a.zzzzzzzz.partial"
    others = [tmp_path / name for name in (".b.k3_x9abc.partial", ".a.b.k3_x9abc.partial", ".a.K3_x9abc.partial", "z")]
    for path in (old, young, *others):
        path.write_bytes(b"left")
        if path != young:
            os.utime(path, (0, 0))
    put(tmp_path / "a", b"new")
    assert sorted(tmp_path.iterdir()) == sorted([young, *others, tmp_path / "a"])


def test_a_link_laid_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / ".a.0.partial").symlink_to("victim")
    put(tmp_path / "a", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious" and (tmp_path / "a").read_bytes() == b"new"


def test_many_writers_side_by_side_leave_one_whole_file(tmp_path: Path) -> None:
    contents = [bytes([number]) * 50_000 for number in range(8)]

    def repeat(data: bytes) -> None:
        for _ in range(15):
            put(tmp_path / "a", data)

    threads = [threading.Thread(target=repeat, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "a").exists():
            assert (tmp_path / "a").read_bytes() in contents
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_without_locks_nothing_of_others_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / ".a.0.partial").write_bytes(b"perhaps of a living writer")
    put(tmp_path / "a", b"new")
    assert sorted(item.name for item in tmp_path.iterdir()) == [".a.0.partial", "a"]


def test_long_names_have_short_temporary_ones(tmp_path: Path) -> None:
    put(tmp_path / ("n" * 255), b"new")
    assert [item.name for item in tmp_path.iterdir()] == ["n" * 255]


@pytest.mark.parametrize("path", [None, 3.5, b"name"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        refuse_unwritable(path)
