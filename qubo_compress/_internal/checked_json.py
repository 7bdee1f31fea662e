"""JSON files with a checksum over their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from qubo_compress._internal.reader import parsed_json

CHECKSUM = "checksum"


def checksum_of(values: Mapping[str, Any]) -> str:
    """Checksum over the content, not its formatting: spaces and line ends may change."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def with_checksum(values: Mapping[str, Any], indent: int | None = None) -> bytes:
    """The file's text: the values and their checksum.

    Example:
        >>> with_checksum({"bits": 2})
        b'{"bits": 2, "checksum": "..."}'
    """
    return json.dumps({**values, CHECKSUM: checksum_of(values)}, indent=indent).encode()


def refuse_altered(values: dict[str, Any]) -> None:
    """Remove the checksum from a file's values.

    Raises:
        ValueError: when it does not match.
    """
    if values.pop(CHECKSUM, None) != checksum_of(values):
        raise ValueError("its checksum does not match: it was altered after it was written")


def read_checked(data: bytes) -> dict[str, Any]:
    """The values of a file, without the checksum.

    Raises:
        ValueError: when the file is not a JSON object, or was altered.

    Example:
        >>> read_checked(with_checksum({"bits": 2}))
        {'bits': 2}
        >>> read_checked(with_checksum({"bits": 2}).replace(b"2", b"4", 1))
        Traceback (most recent call last):
        ...
        ValueError: its checksum does not match: it was altered after it was written
    """
    values = parsed_json(data)
    if not isinstance(values, dict):
        raise ValueError("it is JSON of something else")
    refuse_altered(values)
    return values
