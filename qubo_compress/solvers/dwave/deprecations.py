"""What the service says will be switched off, in the header ``X-Deprecation`` of any answer.

The header is a list in the notation of RFC 9651: ``id; deprecated=@1767225600; sunset=@1798761600; link="https://x"``
and possibly ``message="..."`` and ``context=...``. Ocean's client would log and warn whatever it says, from its own
threads, and ignores headers that lack a field. Here, the text is bounded and printable, and malformed parts are left
out.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

HEADER = "X-Deprecation"

_LONGEST_HEADER = 8192
_LONGEST_VALUE = 200
_MOST = 16
"""Deprecations that are shown per connection; a hostile service may invent any number."""

_PART = re.compile(r'"(?:[^"\\]|\\.)*"?|[^",;]+|[,;]')
_LATEST = 32503680000
"""The year 3000, in seconds since 1970: later dates are not believed."""


class Deprecations:
    """The deprecations that answers announced, by id, each once.

    Example:
        >>> found = Deprecations()
        >>> found.read('old-api; deprecated=@1767225600; sunset=@1798761600; link="https://example.com/new"')
        >>> found.read("old-api; sunset=@0")
        >>> found.texts()
        ['"old-api" is deprecated since 2026-01-01 and ends on 2027-01-01; see https://example.com/new']
    """

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._lock = threading.Lock()

    def read(self, header: str) -> None:
        """Add what a header announces; from any thread."""
        with self._lock:
            for name, values in _items(header[:_LONGEST_HEADER]):
                if len(self._found) < _MOST:
                    self._found.setdefault(name, _text(name, values))

    def texts(self) -> list[str]:
        """One sentence each, printable and of bounded length."""
        with self._lock:
            return list(self._found.values())


def _items(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and parameters of every item; items without a name are left out."""
    item: list[str] = [""]
    for part in [*_PART.findall(header), ","]:
        if part == ",":
            name, *parameters = map(str.strip, item)
            if name:
                yield _plain(name), dict(_parameter(parameter) for parameter in parameters)
            item = [""]
        elif part == ";":
            item.append("")
        else:
            item[-1] += part


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip().lower(), value.strip()


def _text(name: str, values: dict[str, str]) -> str:
    since, until = _day(values.get("deprecated", "")), _day(values.get("sunset", ""))
    text = f'"{name}" is deprecated' + (f" since {since}" if since else "") + (f" and ends on {until}" if until else "")
    message, link = _plain(values.get("message", "")), _plain(values.get("link", ""))
    return text + (f": {message}" if message else "") + (f"; see {link}" if link else "")


def _day(value: str) -> str | None:
    """The day of a date such as ``@1767225600``; None if it is none."""
    number = value.removeprefix("@")
    if not (number.isascii() and number.isdecimal() and len(number) <= len(str(_LATEST)) and int(number) < _LATEST):
        return None
    return datetime.fromtimestamp(int(number), UTC).date().isoformat()


def _plain(value: str) -> str:
    """A value without its quotes, in printable ASCII of bounded length."""
    bare = value.removeprefix('"').removesuffix('"').replace('\\"', '"').replace("\\\\", "\\")
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in bare).strip()
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
