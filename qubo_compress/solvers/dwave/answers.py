"""Checks of the solver API's answers, for everything that the client takes for granted.

The client's threads die or wait forever when the answer to a submission is a number, when that to a status request is
an empty list, or when a completed problem has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

_Check = Callable[[Any, str], str | None]
_SHOWN = 80


def misshapen(method: str, url: str, body: bytes) -> str | None:
    """What is wrong with the answer to a call, as text; None if it is fine or the call is not checked.

    Args:
        method: of HTTP.
        url: the whole address.
        body: of an answer of status 200.

    Example:
        >>> misshapen("GET", "https://example.com/sapi/v2/solvers/remote/", b"{}")
        "the service's list of solvers is not a list: {}"
    """
    import orjson  # like the client, which parses the answer after this

    path = urlsplit(url).path
    for verb, pattern, what, check in _CALLS:
        if verb != method or re.search(pattern, path) is None:
            continue
        try:
            content = orjson.loads(body)
        except ValueError:
            return f"the service's {what} is not JSON: {_shown(body)}"
        wrong = check(content, url)
        return None if wrong is None else f"the service's {what} {wrong}: {_shown(body)}"
    return None


def _solvers(content: Any, url: str) -> str | None:
    if not isinstance(content, list):
        return "is not a list"
    return next((wrong for one in content if (wrong := _solver(one, url)) is not None), None)


def _solver(content: Any, _: str) -> str | None:
    if not isinstance(content, dict):
        return "does not describe a solver"
    identity = content.get("identity")
    if not isinstance(identity, dict) or not isinstance(identity.get("name"), str):
        return "has a solver without a name"
    if not isinstance(content.get("properties", {}), dict):
        return "has a solver without properties"
    return None


def _submitted(content: Any, _: str) -> str | None:
    """Check the answer to a submission: the library submits problems one at a time."""
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return "is not a list with one problem"
    return None


def _statuses(content: Any, url: str) -> str | None:
    asked = set(",".join(parse_qs(urlsplit(url).query).get("id", [])).split(","))
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        return "is not a list of problems"
    if {one.get("id") for one in content if isinstance(one.get("id"), str)} != asked:
        return "is of other problems"
    return None


def _answer(content: Any, url: str) -> str | None:
    if not isinstance(content, dict):
        return "is not a problem"
    if content.get("status") == "COMPLETED" and not isinstance(content.get("answer"), dict):
        return "says that the problem is completed and holds no answer"
    if "status" in content and content.get("id") != urlsplit(url).path.rstrip("/").rpartition("/")[2]:
        return "is of another problem"
    return None


def _record(content: Any, _: str) -> str | None:
    return None if isinstance(content, dict) else "is not a record"


_CALLS: tuple[tuple[str, str, str, _Check], ...] = (
    ("GET", r"/solvers/remote/?$", "list of solvers", _solvers),
    ("GET", r"/solvers/remote/[^/]+/?$", "description of a solver", _solver),
    ("POST", r"/problems/?$", "answer to a submission", _submitted),
    ("GET", r"/problems/?$", "status of problems", _statuses),
    ("GET", r"/problems/[^/]+/?$", "answer to a problem", _answer),
    ("POST", r"/bqm/multipart/?$", "answer to an upload", _record),
    ("GET", r"/bqm/multipart/[^/]+/status/?$", "status of an upload", _record),
)


def _shown(body: bytes) -> str:
    """The beginning of an answer, in one line."""
    text = " ".join(body[: 4 * _SHOWN].decode("utf-8", "replace").split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
