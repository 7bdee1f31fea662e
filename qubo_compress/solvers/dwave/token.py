"""The API token: checked at once, never shown, never pickled, and masked in the texts of other libraries."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import quote, quote_plus

from qubo_compress.errors import InvalidToken

MASK: Final = "<token>"

_PART = 8
"""Any run of this many characters of a secret is masked; a shorter secret is masked only as a whole word."""

_LONGEST_TEXT = 20_000
"""Longest foreign text that is kept, in characters, so that masking a long page takes little time."""

_NAMED = re.compile(r"(token['\"]?\s*[:=]\s*['\"]?|X-Auth-Token['\"]?\s*[:=]\s*['\"]?)[^\s'\",}]+", re.IGNORECASE)
_CARRIERS = ("request", "response", "pool", "conn")
"""Attributes of HTTP exceptions that lead to the headers sent."""


class Token:
    """An API token that cannot be printed, formatted, logged or pickled by accident.

    Args:
        value: the token; white space around it is removed.

    Raises:
        InvalidToken: when it is empty, or holds a space, a control character or anything that is not ASCII.

    Example:
        >>> token = Token(" DEV-0123456789 ")
        >>> token, f"{token}", token.reveal(), token.stripped
        (<token>, '<token>', 'DEV-0123456789', True)
    """

    __slots__ = ("_value", "stripped")

    stripped: bool
    """Whether white space around it was removed."""

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise InvalidToken(f"the API token must be text; got {type(value).__name__}")
        self._value = value.strip()
        self.stripped = self._value != value
        _check(self._value)

    @classmethod
    def of(cls, value: str | Token | None) -> Token | None:
        """A token made from text; tokens and None are returned unchanged."""
        return value if value is None or isinstance(value, Token) else cls(value)

    def reveal(self) -> str:
        """The token in clear text, for request headers only."""
        return self._value

    def __repr__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __copy__(self) -> Token:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Token:
        return self

    def __reduce__(self) -> NoReturn:
        raise InvalidToken(
            "a solver or a connection that was given its API token is not pickled, since the token would stand in the "
            "pickle for everybody to read; leave token out, and for D-Wave's service set the DWAVE_API_TOKEN variable "
            "or a profile in dwave.conf where the solver runs"
        )


def _check(value: str) -> None:
    if not value:
        raise InvalidToken("the API token is empty; copy it from the service's dashboard, or leave token out")
    for place, character in enumerate(value, start=1):
        if not "!" <= character <= "~":
            kind = "white space" if character.isspace() else "a control character"
            kind = kind if character.isascii() else "a character that is not ASCII"
            raise InvalidToken(
                f"the API token has {kind} at place {place} of {len(value)}, and nothing was sent; copy it again from "
                "the service's dashboard"
            )


class Secrets:
    """Secrets, and how to find them in foreign texts: whole or in part, plain or escaped.

    Example:
        >>> secrets = Secrets(Token("DEV-0123456789"))
        >>> secrets.mask("no DEV-0123456789, DEV%2D0123456789 or DEV-01234... here")
        'no <token>, <token> or <token>... here'
    """

    def __init__(self, *values: str | Token | None) -> None:
        self._parts: set[str] = set()
        self._short: list[re.Pattern[str]] = []
        self.stripped = False
        """Whether white space around a token was removed."""
        for value in values:
            self.add(value)

    def add(self, value: str | Token | None) -> None:
        """Mask one more secret from now on."""
        if isinstance(value, Token):
            self.stripped = self.stripped or value.stripped
            value = value.reveal()
        if not value:
            return
        for form in map(_lowered, _forms(value)):
            if len(form) < _PART:
                self._short.append(re.compile(rf"(?<![^\W_]){re.escape(form)}(?![^\W_])"))
            self._parts.update(form[start : start + _PART] for start in range(len(form) - _PART + 1))

    def mask(self, text: str) -> str:
        """The text with masked secrets, and with anything masked that follows a word like "token"."""
        if len(text) > _LONGEST_TEXT:
            text = text[:_LONGEST_TEXT] + "..."
        lowered = _lowered(text)
        covered = bytearray(len(text))
        for start in range(len(text) - _PART + 1):
            if lowered[start : start + _PART] in self._parts:
                covered[start : start + _PART] = b"\1" * _PART
        for pattern in self._short:
            for found in pattern.finditer(lowered):
                covered[found.start() : found.end()] = b"\1" * (found.end() - found.start())
        return _NAMED.sub(rf"\1{MASK}", "".join(_masked_runs(text, covered)))

    def masked(self, value: Any) -> Any:
        """The value with every text masked in nested mappings, lists and tuples; everything else unchanged."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, bytes):
            return self.mask(value.decode("latin-1")).encode("latin-1")
        if isinstance(value, Mapping):
            return {self.masked(key): self.masked(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self.masked, value))
        return value

    def clean(self, error: BaseException) -> BaseException:
        """An exception and its causes without the secrets: the exception itself, or a replacement.

        Requests and responses, whose headers hold the token, are removed.
        """
        return self._cleaned(error, {})

    def _cleaned(self, error: BaseException, known: dict[int, BaseException]) -> BaseException:
        if id(error) in known:
            return known[id(error)]
        cause, context, suppressed = error.__cause__, error.__context__, error.__suppress_context__
        clean = known[id(error)] = self._without_secrets(error)
        clean.__cause__ = None if cause is None else self._cleaned(cause, known)
        clean.__context__ = None if context is None else self._cleaned(context, known)
        clean.__suppress_context__ = suppressed
        return clean

    def _without_secrets(self, error: BaseException) -> BaseException:
        if self._told(error.args):
            error.args = self.masked(error.args)
        for name, value in vars(error).items():
            if name in _CARRIERS:
                vars(error)[name] = None
            elif self._told(value):
                vars(error)[name] = self.masked(value)
        if isinstance(error, UnicodeError) or self._told(str(error)) or self._told(repr(error)):
            # Its text comes from attributes that cannot be changed.
            return ClientError(self.mask(f"{type(error).__name__}: {error}")).with_traceback(error.__traceback__)
        return error

    def _told(self, value: Any) -> bool:
        masked = self.masked(value)
        return masked is not value and (type(masked) is not type(value) or bool(masked != value))


class ClientError(Exception):
    """Replaces a client's exception that would have shown the API token."""


def _forms(value: str) -> Iterator[str]:
    """A secret and its escaped forms."""
    escaped = json.dumps(value)[1:-1]
    yield from (value, escaped, escaped.replace("/", r"\/"), repr(value)[1:-1], html.escape(value))
    yield from (quote(value, safe=""), quote_plus(value), value.replace("-", "%2D"))
    yield "".join(f"%{byte:02x}" for byte in value.encode())
    yield "".join(f"\\u{ord(character):04x}" for character in value)
    yield value.encode().hex()
    yield base64.b64encode(value.encode()).decode().rstrip("=")


def _lowered(text: str) -> str:
    """Lower case, character by character, so that positions do not shift."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def _masked_runs(text: str, covered: bytearray) -> Iterator[str]:
    before = 0
    for place, character in enumerate(text):
        if not covered[place]:
            yield character
        elif not before:
            yield MASK
        before = covered[place]
