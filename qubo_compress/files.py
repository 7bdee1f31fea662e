"""Writing files so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from qubo_compress.errors import StorageError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a temporary name beside ``path``, sync it, and rename it into place.

    Args:
        path: where the file shall stand; an older one there stays until the new one is complete.
        write: called once with the open binary file.

    Raises:
        StorageError: when the disk is full or the folder cannot be written; ``path`` is unchanged.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(target, lambda handle: handle.write(b"kept"))
        >>> target.read_bytes()
        b'kept'
    """
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        with os.fdopen(descriptor, "wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        Path(temporary).chmod(0o666 & ~_current_umask())
        Path(temporary).replace(path)
    except OSError as cause:
        raise StorageError(
            f"{path} could not be written ({cause.strerror or cause}); it is as it was before. "
            "Free some space or choose another folder"
        ) from cause
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()


def _current_umask() -> int:
    # The umask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
