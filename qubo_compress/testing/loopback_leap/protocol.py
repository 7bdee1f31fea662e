"""Requests and responses of the solver API, version 3, as ``dwave-cloud-client`` 0.14 speaks it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, urlsplit

BASE_PATH = "/sapi/v2/"
VERSION = "3.0.0"


@dataclass(frozen=True)
class Request:
    """A request of a client, as received by the server."""

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        """Path below the base path, without the query; ``""`` outside of it."""
        path = urlsplit(self.target).path
        return path.removeprefix(BASE_PATH) if path.startswith(BASE_PATH) else ""

    @property
    def query(self) -> dict[str, str]:
        """Query parameters; of repeated ones, the last counts."""
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    def content(self) -> bytes:
        """The body, unpacked.

        Raises:
            BadRequest: when it claims to be a deflate stream and is not.
        """
        if self.headers.get("Content-Encoding", "").lower() != "deflate":
            return self.body
        try:
            return zlib.decompress(self.body)
        except zlib.error as cause:
            raise BadRequest(f"the body is no deflate stream: {cause}") from cause

    def json(self) -> Any:
        """The body, parsed.

        Raises:
            BadRequest: when it is not JSON.
        """
        try:
            return json.loads(self.content())
        except ValueError as cause:
            raise BadRequest(f"the body is no JSON: {cause}") from cause


class BadRequest(Exception):
    """The request is answered with this HTTP status, 400 unless told otherwise."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Response:
    """A response of the server, to be sent to the client."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    drip: float | None = None
    """Seconds between the spaces that follow the body without end."""


def json_response(content: Any, resource: str | None = None) -> Response:
    """A response of a resource, with the versioned content type on which the client insists.

    Example:
        >>> json_response([], "problems").content_type
        'application/vnd.dwave.sapi.problems+json; version=3.0.0'
    """
    kind = "application/json" if resource is None else f"application/vnd.dwave.sapi.{resource}+json; version={VERSION}"
    return Response(json.dumps(content).encode(), kind)


def error_response(status: int, message: str, retry_after: int | None = None, location: str | None = None) -> Response:
    """An error in the solver API's format, or a redirect."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if location is not None:
        headers["Location"] = location
    body = json.dumps({"error_code": status, "error_msg": message}).encode()
    return Response(body, status=status, headers=headers)


def filtered(record: Mapping[str, Any], rule: str) -> dict[str, Any]:
    """The fields of a solver record that pass a filter.

    Args:
        record: the whole record.
        rule: ``all`` or ``none``, then ``-field`` or ``+field``, separated by commas; dots lead inside.

    Raises:
        BadRequest: for any other rule.

    Example:
        >>> filtered({"status": "ONLINE", "avg_load": 0.1}, "none,+status")
        {'status': 'ONLINE'}
    """
    first, *changes = rule.split(",") if rule else ["all"]
    if first not in ("all", "none") or any(change[:1] not in ("+", "-") for change in changes):
        raise BadRequest(f"a filter is all or none, then +field and -field; got {rule!r}")
    found: dict[str, Any] = dict(record) if first == "all" else {}
    for change in changes:
        *outer, last = change[1:].split(".")
        source: Any = record
        target: Any = found
        for name in outer:
            source = source.get(name, {})
            target[name] = dict(target.get(name, {}))  # the record itself stays as it is
            target = target[name]
        if change[0] == "-":
            target.pop(last, None)
        elif last in source:
            target[last] = source[last]
    return found
