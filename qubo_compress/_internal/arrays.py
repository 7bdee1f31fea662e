"""Named arrays in one ``.npz`` file that says what it is and has a checksum.

It is numpy's own format, so ``numpy.load`` reads it too. The archive's comment holds the file's description and the
checksum. The checksum covers the description and every array's name, length and CRC, so it takes no time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from qubo_compress._internal.reader import parsed_json

Array = npt.NDArray[Any]

ALWAYS_ALLOWED = 32 * 2**20
"""The arrays of any file may take this many bytes."""

LARGEST_RATIO = 32
"""The arrays of a larger file may take this many bytes per byte of the file."""

_SUFFIX = ".npy"
_KINDS = "biufU"
_CHUNK = 2**18
_LONGEST_HEADER = 512
_END_RECORD = b"PK\5\6"
_END_LENGTH = 22


@dataclass(frozen=True)
class Arrays:
    """The contents of a file.

    Attributes:
        arrays: name -> array.
        said: the file's description of itself; None where it has none, as in files of version 0.4.
    """

    arrays: dict[str, Array]
    said: dict[str, str] | None


def array_writer(arrays: Mapping[str, Array], said: Mapping[str, str], packed: bool) -> Callable[[IO[bytes]], None]:
    """A function that writes arrays to an open file, for :func:`~qubo_compress._internal.files.write_atomically`.

    Args:
        arrays: of numbers, truth values or text.
        said: what the file is.
        packed: deflate them, unless they would become so small that a reader must refuse the file.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> array_writer({"a": np.arange(3)}, {"kind": "example"}, packed=True)(file)
        >>> found = read_arrays(file)
        >>> found.arrays["a"].tolist(), found.said
        ([0, 1, 2], {'kind': 'example'})
    """

    def write(handle: IO[bytes]) -> None:
        taken, size = _written(handle, arrays, said, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
        if taken > _most(size):
            handle.seek(0)
            handle.truncate()
            _written(handle, arrays, said, zipfile.ZIP_STORED)

    return write


def _written(handle: IO[bytes], arrays: Mapping[str, Array], said: Mapping[str, str], method: int) -> tuple[int, int]:
    """Write the arrays; returns their bytes in memory and in the file."""
    with zipfile.ZipFile(handle, "w", method) as archive:
        for name, given in arrays.items():
            array = np.asarray(given)
            if array.dtype.kind not in _KINDS:
                raise TypeError(f"{name} is an array of {array.dtype}, which would not be read again")
            entry = zipfile.ZipInfo(name + _SUFFIX)
            entry.compress_type = method
            with archive.open(entry, "w", force_zip64=array.nbytes > 2**31) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        entries = archive.infolist()
        archive.comment = json.dumps({**said, "checksum": _checksum(entries, said)}).encode()
    return sum(entry.file_size for entry in entries), handle.tell()


def _checksum(entries: list[zipfile.ZipInfo], said: Mapping[str, str]) -> str:
    text = json.dumps([sorted(said.items()), sorted((e.filename, e.file_size, e.CRC) for e in entries)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _most(size: int) -> int:
    return max(ALWAYS_ALLOWED, LARGEST_RATIO * size)


def read_arrays(handle: IO[bytes]) -> Arrays:
    """The arrays of an open file.

    Raises:
        ValueError, zipfile.BadZipFile and whatever else :mod:`zipfile` and :mod:`zlib` raise for damaged archives;
            until then, no more memory is allocated than the file may ask for.
    """
    try:
        with zipfile.ZipFile(handle) as archive:
            return _read(archive, handle)
    except OSError as cause:
        if cause.errno != errno.EINVAL:
            raise
        raise ValueError("it points to places before its own start") from cause


def _read(archive: zipfile.ZipFile, handle: IO[bytes]) -> Arrays:
    entries = archive.infolist()
    said = _said(archive, handle)
    size = handle.seek(0, 2)
    _refuse_strange(entries, size)
    if said is not None and said.pop("checksum", None) != _checksum(entries, said):
        raise ValueError("its checksum does not match: it was altered after it was written")
    return Arrays({entry.filename.removesuffix(_SUFFIX): _array(archive, entry) for entry in entries}, said)


def _said(archive: zipfile.ZipFile, handle: IO[bytes]) -> dict[str, str] | None:
    comment = archive.comment
    handle.seek(-_END_LENGTH - len(comment), 2)
    record = handle.read(_END_LENGTH)
    if record[:4] != _END_RECORD or int.from_bytes(record[-2:], "little") != len(comment):
        raise ValueError("it does not end where its archive does")
    if not comment:
        return None
    said = parsed_json(comment)
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ValueError("its description of itself cannot be parsed")
    return said


def _refuse_strange(entries: list[zipfile.ZipInfo], size: int) -> None:
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) or not all(name.endswith(_SUFFIX) for name in names):
        raise ValueError("it holds something that is not an array, or one name twice")
    for entry in entries:
        stored = entry.compress_type == zipfile.ZIP_STORED
        if entry.flag_bits & 1 or not (stored or entry.compress_type == zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename} is encrypted or packed in an unknown way")
        if entry.compress_size > size or (stored and entry.file_size != entry.compress_size):
            raise ValueError(f"{entry.filename} claims more bytes than the file has")
    claimed = sum(entry.file_size for entry in entries)
    if claimed > _most(size):
        raise ValueError(f"its arrays claim {claimed:,} bytes; a file of {size:,} may hold {_most(size):,}")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    with archive.open(entry) as member:
        shape, fortran, dtype = _header(member)
        size = math.prod(shape) * dtype.itemsize
        if size != entry.file_size - member.tell():
            raise ValueError(f"{entry.filename} says that it is {shape} {dtype}, which its bytes are not")
        found: Array = np.empty(math.prod(shape), dtype=dtype)
        space, at = found.view(np.uint8), 0
        while at < size:
            piece = member.read(min(_CHUNK, size - at))
            if not piece:
                raise ValueError(f"{entry.filename} is cut short")
            space[at : at + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            at += len(piece)
    return found.reshape(shape, order="F" if fortran else "C")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type."""
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"arrays in format {version} are not written by this library")
    shape, fortran, dtype = readers[version](member, max_header_size=_LONGEST_HEADER)
    if dtype.kind not in _KINDS or not dtype.itemsize or dtype.names or dtype.subdtype:
        raise ValueError(f"arrays of {dtype!r} are not written by this library")
    if len(shape) > 8 or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"no array has shape {shape[:8]}")
    return shape, fortran, dtype
