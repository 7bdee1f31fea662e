"""The one way to read a file that comes from elsewhere: sizes are checked before memory is allocated.

No file is trusted: it may be truncated, corrupted by a disk, or malicious. Whatever is wrong with it becomes one error
of this library that names the file and gives the reason in one printable line.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from qubo_compress.errors import CorruptArtifact, MissingDependency, QuboCompressError, StorageError, WrongModel

DEEPEST = 32
"""Deepest nesting of brackets in JSON; files of this library have four levels."""

LONGEST_REASON = 300
"""Characters of a reason that are shown: it may quote the file."""

# Possessive, and to the end if a string is not closed: time and memory stay linear whatever the bytes are.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


@contextlib.contextmanager
def opened(path: str | Path, what: str) -> Iterator[IO[bytes]]:
    """An open regular file.

    Args:
        path: of the file.
        what: what it should be, such as ``"a plan"``.

    Raises:
        FileNotFoundError: when there is none.
        CorruptArtifact: when the path is a folder, a device or a pipe (without waiting for it).
        StorageError: when it cannot be read.

    Example:
        >>> import tempfile
        >>> with opened(tempfile.mkdtemp(), "a plan"):
        ...     pass
        Traceback (most recent call last):
        ...
        qubo_compress.errors.CorruptArtifact: ... is a folder, not a plan; name the file
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as cause:
        raise StorageError(f"{path} cannot be read ({cause}); check its name and its permissions") from cause
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        found = "a folder" if stat.S_ISDIR(kind) else "no regular file"
        raise CorruptArtifact(f"{path} is {found}, not {what}; name the file")
    with os.fdopen(descriptor, "rb") as handle:
        try:
            yield handle
        except QuboCompressError:
            raise
        except OSError as cause:
            raise StorageError(f"{path} cannot be read ({cause}); copy it from elsewhere") from cause


def read_whole(path: str | Path, what: str) -> bytes:
    """All bytes of a file; see :func:`opened` for the errors."""
    with opened(path, what) as handle:
        return handle.read()


@contextlib.contextmanager
def refused_as(
    path: str | Path, what: str, advice: str = "copy or save it again", error: type[QuboCompressError] = CorruptArtifact
) -> Iterator[None]:
    """Turn any error while parsing bytes into one that names their file.

    Bytes may be anything, and the libraries that parse them may raise anything. ``MemoryError`` passes: sizes were
    checked before, so it is not the file's fault. So does ``WrongModel``: the file may be whole.

    Args:
        path: of the file.
        what: what it should be.
        advice: what to do.
        error: the class to raise.

    Example:
        >>> with refused_as("plan.json", "a plan"):
        ...     int("many")
        Traceback (most recent call last):
        ...
        qubo_compress.errors.CorruptArtifact: plan.json is not a plan (invalid ... 'many'); copy or save it again
    """
    try:
        yield
    except (error, MemoryError, MissingDependency, StorageError, WrongModel):
        raise
    except Exception as cause:
        raise error(f"{path} is not {what} ({printable(cause)}); {advice}") from cause


def printable(cause: object) -> str:
    r"""A reason in one line of bounded length without control characters: it may quote the file.

    Example:
        >>> printable(ValueError("no\x1b[31m such\n  name"))
        'no?[31m such name'
    """
    text = " ".join(str(cause)[: 4 * LONGEST_REASON].split()) or type(cause).__name__
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + " ..."


def parsed_json(data: bytes, deepest: int = DEEPEST) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: when it is not JSON in UTF-8, or nested too deeply.

    Example:
        >>> parsed_json(b'{"brackets in text": "[[[["}')
        {'brackets in text': '[[[['}
    """
    if sum(data.count(sign) for sign in (b"[", b"{")) > deepest and _depth(data) > deepest:
        raise ValueError(f"its brackets are nested more than {deepest} deep")
    return json.loads(data.decode("utf-8"))


def _depth(data: bytes) -> int:
    signs = np.frombuffer(_TEXT.sub(b"", data), dtype=np.uint8)
    steps = np.zeros(signs.size, dtype=np.int8)
    for sign, step in ((b"[", 1), (b"{", 1), (b"]", -1), (b"}", -1)):
        steps[signs == sign[0]] = step
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def inflated(text: str, most: int) -> bytes:
    """The bytes behind base64 and zlib, limited in number.

    Raises:
        ValueError: when the text cannot be decoded, or decodes to more bytes.

    Example:
        >>> inflated(base64.b64encode(zlib.compress(b"abc")).decode(), 3)
        b'abc'
    """
    try:
        packed = base64.b64decode(text, validate=True)
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(packed, most + 1)
    except (binascii.Error, zlib.error) as cause:
        raise ValueError(f"it cannot be unpacked ({cause})") from cause
    if len(data) > most:
        raise ValueError(f"it unpacks to more than {most:,} bytes")
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("its packed data is cut short or has something behind it")
    return data
