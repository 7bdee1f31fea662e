"""Regular expressions of groupings, and how one from a file is kept from running forever.

Python's matcher backtracks through all ways to divide a name among the repeats of an expression. Some expressions of
ten letters take practically forever, and the matcher cannot be interrupted. So any expression that is not obviously
fast is matched in a separate process, which the operating system ends after a second of work. This file is also that
process's script, and therefore imports only the standard library.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MOST_REPEATS = 11
"""Most repeats of a fast expression, where a repeat of digits counts 1 and any other 4: two of these divide a name of
100 letters in 5,000 ways, and names have few digits in a row."""

MOST_WAYS = 64
"""Most ways through the alternatives of a fast expression."""

LONGEST_MATCHING = 1
"""CPU seconds that matching a file's grouping may take."""

LONGEST_WAIT = 60.0
"""Seconds of wall clock to wait for them on a busy machine."""


def labels_by(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str, str | None]:
    r"""Name -> captured groups of the first match, joined with ``/``, or the whole match; None without a match.

    Example:
        >>> labels_by(re.compile(r"layer(\d)"), ["layer1.a", "layer1.b", "head"])
        {'layer1.a': '1', 'layer1.b': '1', 'head': None}
    """
    found: dict[str, str | None] = {}
    for name in names:
        match = pattern.search(name)
        found[name] = "/".join(text or "" for text in match.groups()) or match.group(0) if match else None
    return found


def is_quick(pattern: str) -> bool:
    r"""Whether an expression certainly matches any name of some hundred letters within microseconds.

    That holds if it has few repeats, none of them nested, and few alternatives.

    Example:
        >>> is_quick(r"layer(\d+)\.(conv|norm)"), is_quick("(a+)+b"), is_quick("(a|ab)*")
        (True, False, False)
    """
    try:
        repeats, ways = _counted(parser.parse(pattern))
    except (RecursionError, OverflowError):
        return False
    return repeats <= MOST_REPEATS and ways <= MOST_WAYS


def _counted(items: Iterable[tuple[Any, Any]]) -> tuple[float, float]:
    """Repeats of different lengths, and ways through the alternatives; infinite for anything not analysed."""
    repeats, ways = 0.0, 1.0
    for code, value in items:
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, body = value
            inner, inner_ways = _counted(body)
            if most == 1:
                repeats, ways = repeats + inner, ways * (inner_ways + 1)
            elif inner or inner_ways > 1:
                return float("inf"), float("inf")
            elif least < most:
                repeats += 1 if _is_digit(body) else 4
        elif code is codes.BRANCH:
            parts = [_counted(part) for part in value[1]]
            repeats += max(part[0] for part in parts)
            ways *= sum(part[1] for part in parts)
        elif code is codes.SUBPATTERN:
            inner, inner_ways = _counted(value[-1])
            repeats, ways = repeats + inner, ways * inner_ways
        elif code not in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN, codes.AT):
            return float("inf"), float("inf")
        if repeats > MOST_REPEATS or ways > MOST_WAYS:
            return float("inf"), float("inf")
    return repeats, ways


def _is_digit(body: Any) -> bool:
    """Whether it matches one digit: names have only a few in a row."""
    if len(body) != 1 or body[0][0] is not codes.IN:
        return False
    digits = (ord("0"), ord("9"))
    return all(
        (kind is codes.CATEGORY and inside is codes.CATEGORY_DIGIT) or (kind is codes.RANGE and inside == digits)
        for kind, inside in body[0][1]
    )


def labels_within_limits(pattern: str, names: Iterable[str]) -> Mapping[str, str | None]:
    """Like :func:`labels_by`, for an expression from elsewhere.

    Raises:
        ValueError: when matching takes more than :data:`LONGEST_MATCHING` or is refused.

    Example:
        >>> labels_within_limits("((a+)+)+$", ["a" * 50 + "b"])
        Traceback (most recent call last):
        ...
        ValueError: its regular expression takes more than 1 s to match the names of this network
    """
    if is_quick(pattern):
        return labels_by(re.compile(pattern), names)
    given = json.dumps([pattern, list(names)]).encode()
    command = [sys.executable, "-I", __file__]
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=LONGEST_WAIT, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise ValueError(f"its regular expression could not be matched ({cause})") from cause
    if done.returncode == _REFUSED:
        raise ValueError(done.stdout.decode(errors="replace"))
    if done.returncode:
        raise ValueError(
            f"its regular expression takes more than {LONGEST_MATCHING} s to match the names of this network"
        )
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


_REFUSED = 3
_MOST_MEMORY = 2**30


def _main() -> int:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (LONGEST_MATCHING, LONGEST_MATCHING + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    except ImportError:  # Windows: only the wait is limited there
        pass
    pattern, names = json.loads(sys.stdin.buffer.read())
    try:
        sys.stdout.write(json.dumps(labels_by(re.compile(pattern), names)))
    except (re.error, RecursionError, OverflowError, MemoryError) as cause:
        sys.stdout.write(f"its regular expression cannot be used ({cause})")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main())
