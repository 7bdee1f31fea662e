"""The one way to write a file: a reader sees the old one or the new one, never half of either.

The new content goes into a file next to the target, ``.name.0.partial``, which is synced and renamed into place. Its
writer holds a lock on it, which the operating system releases when the process dies, however it dies. So the next
writer of the same target can tell leftovers from the files of living writers, and removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from qubo_compress.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows: no locks there, so leftovers stay
    fcntl = None  # type: ignore[assignment]

MOST_WRITERS = 256
"""Writers of one target at a time."""

SLOTS_LOOKED_AT = 8
"""Leftovers of concurrent writers are searched under this many names."""

LONGEST_NAME = 200
"""Bytes of the target's name that the temporary name repeats; file systems allow 255."""

OLD = 3600.0
"""Version 0.4 held no locks: its partial files count as leftovers after this many seconds."""

MOST_LOOKED_AT = 1000
"""Such leftovers are searched among this many names at most, so that many writes into one folder stay cheap."""

_OLDER_SUFFIX = re.compile(r"[a-z0-9_]{8}\.partial")

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a temporary name next to its target, sync it, and rename it into place.

    An older file keeps its mode, and its owner where that is allowed; a new one follows the umask. A symbolic link
    stays, and its target is written.

    Args:
        path: of the file; an older one stays until the new one is complete.
        write: called once with the open binary file.

    Raises:
        StorageError: when the target is not a regular file or is read-only, the disk is full or the folder cannot be
            written; an older file is unchanged.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(target, lambda handle: handle.write(b"kept"))
        >>> target.read_bytes()
        b'kept'
    """
    target, older = _target_of(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _slot(target, 0o666 if older is None else 0o600) as (temporary, handle):
            write(handle)
            handle.flush()
            if older is not None:
                _take_over(handle.fileno(), older)
            os.fsync(handle.fileno())
            temporary.replace(target)
    except OSError as cause:
        raise StorageError(
            f"{path} could not be written ({cause.strerror or cause}); it is as it was before. "
            "Free some space or choose another folder"
        ) from cause


def refuse_unwritable(path: str | Path) -> None:
    """Raise :class:`StorageError` where :func:`write_atomically` certainly would, before work is spent.

    Example:
        >>> import tempfile
        >>> refuse_unwritable(tempfile.mkdtemp())
        Traceback (most recent call last):
        ...
        qubo_compress.errors.StorageError: ... is a folder; name a file
    """
    _target_of(path)


def _target_of(path: str | Path) -> tuple[Path, os.stat_result | None]:
    """The file that a path resolves to, and the status of the older one there."""
    try:
        target = Path(os.path.realpath(path))
        older = target.stat()
    except FileNotFoundError:
        return target, None
    except (OSError, ValueError, TypeError) as cause:
        raise StorageError(f"{path} cannot be written ({cause}); choose another name or folder") from cause
    if not stat.S_ISREG(older.st_mode):
        kind = _KINDS.get(stat.S_IFMT(older.st_mode), "no regular file")
        raise StorageError(f"{path} is {kind}; name a file")
    if not os.access(target, os.W_OK):
        raise StorageError(f"{path} is read-only; make it writable or choose another name")
    return target, older


def _take_over(descriptor: int, older: os.stat_result) -> None:
    """Give a file the owner and the mode of an older one."""
    with contextlib.suppress(OSError):  # only the superuser may give files away
        os.fchown(descriptor, older.st_uid, older.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(older.st_mode))


@contextlib.contextmanager
def _slot(target: Path, mode: int) -> Iterator[tuple[Path, IO[bytes]]]:
    """A locked temporary file of this writer alone, removed at the end; leftovers are removed too."""
    number, temporary, descriptor = _open_slot(target, mode)
    with os.fdopen(descriptor, "wb") as handle:
        try:
            for other in range(number + 1, number + SLOTS_LOOKED_AT):
                _remove_leftover(_slot_path(target, other))
            _remove_older_leftovers(target)
            yield temporary, handle
        finally:
            # Before the lock is released, so that no other writer can have taken the name.
            if _is_same(temporary, descriptor):
                temporary.unlink()


def _slot_path(target: Path, number: int) -> Path:
    name = target.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return target.with_name(f".{name}.{number}.partial")


def _open_slot(target: Path, mode: int) -> tuple[int, Path, int]:
    """Number, path and descriptor of the first name that no living writer holds."""
    number = 0
    while number < MOST_WRITERS:
        temporary = _slot_path(target, number)
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | _NO_FOLLOW, mode)
        except FileExistsError:
            number += 0 if _remove_leftover(temporary) else 1
            continue
        if _locked(descriptor, wait=True) and not _is_same(temporary, descriptor):
            os.close(descriptor)  # another writer took it for a leftover before it was locked
            continue
        return number, temporary, descriptor
    raise StorageError(f"{MOST_WRITERS} other writers are at work on {target}; wait for them")


def _remove_leftover(temporary: Path) -> bool:
    """Whether a name is free: nothing was there, or a dead writer's leftover was removed."""
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_NONBLOCK | _NO_FOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _locked(descriptor, wait=False):
            return False
        if _is_same(temporary, descriptor):
            temporary.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _remove_older_leftovers(target: Path) -> None:
    """Remove a target's leftovers of killed writers of version 0.4: ``.name.XXXXXXXX.partial`` with random letters."""
    begin = f".{target.name}."
    with os.scandir(target.parent) as entries:
        for entry in itertools.islice(entries, MOST_LOOKED_AT):
            if entry.name.startswith(begin) and _OLDER_SUFFIX.fullmatch(entry.name, len(begin)):
                with contextlib.suppress(OSError):  # already gone, or not ours to remove
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > OLD:
                        Path(entry.path).unlink()


def _locked(descriptor: int, wait: bool) -> bool:
    """Try to lock a file; False if another writer holds the lock, or the file system has none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_same(path: Path, descriptor: int) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
