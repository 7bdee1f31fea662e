"""Multipart uploads of hybrid problems."""

from __future__ import annotations

import base64
import hashlib
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any


class UploadRefused(Exception):
    """The request is answered with status 400, or 404 for an upload that does not exist."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _Upload:
    size: int
    parts: dict[int, bytes] = field(default_factory=dict)
    data: bytes | None = None


class Uploads:
    """All uploads, in progress and complete."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uploads: dict[str, _Upload] = {}

    def start(self, size: object) -> str:
        """Start an upload of this many bytes and return its identifier."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise UploadRefused(f"size must be a number of bytes; got {size!r}")
        identifier = str(uuid.uuid4())
        with self._lock:
            self._uploads[identifier] = _Upload(size)
        return identifier

    def put(self, identifier: str, number: int, data: bytes, checksum: str | None) -> None:
        """Store a part; ``checksum`` is the base64 MD5 digest that the client sent."""
        digest = base64.b64encode(_md5(data)).decode("ascii")
        if checksum != digest:
            raise UploadRefused(f"part {number} has checksum {digest}, and the client sent {checksum}")
        with self._lock:
            upload = self._find(identifier)
            if upload.data is not None:
                raise UploadRefused(f"upload {identifier} is complete")
            upload.parts[number] = data

    def status(self, identifier: str) -> dict[str, Any]:
        """The status in the wire format."""
        with self._lock:
            upload = self._find(identifier)
            parts = sorted(upload.parts.items())
            done = upload.data is not None
        return {
            "status": "UPLOAD_COMPLETED" if done else "UPLOAD_IN_PROGRESS",
            "parts": [{"part_number": number, "checksum": _md5(data).hex()} for number, data in parts],
        }

    def combine(self, identifier: str, checksum: object) -> None:
        """Combine the parts; ``checksum`` is the hexadecimal MD5 digest of the digests of all parts."""
        with self._lock:
            upload = self._find(identifier)
            parts = [upload.parts[number] for number in sorted(upload.parts)]
            if sorted(upload.parts) != list(range(1, len(parts) + 1)):
                raise UploadRefused(f"parts are missing; there are {sorted(upload.parts)}")
            digest = _md5(b"".join(map(_md5, parts))).hex()
            if checksum != digest:
                raise UploadRefused(f"the parts have checksum {digest}, and the client sent {checksum}")
            data = b"".join(parts)
            if len(data) != upload.size:
                raise UploadRefused(f"{len(data)} bytes arrived; {upload.size} were announced")
            upload.data = data

    def data(self, identifier: str) -> bytes:
        """The bytes of an upload that is complete."""
        with self._lock:
            upload = self._find(identifier)
            if upload.data is None:
                raise UploadRefused(f"upload {identifier} is not complete")
            return upload.data

    def _find(self, identifier: str) -> _Upload:
        if identifier not in self._uploads:
            raise UploadRefused(f"there is no upload {identifier}", 404)
        return self._uploads[identifier]


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()
