"""Regular expressions of groupings, and how one that comes from a file is kept from taking for ever.

Python's matcher tries one way after another to divide a name among the repeats of an expression. Some expressions of
ten letters have more ways than anybody can wait for, and the matcher cannot be interrupted. So what is not seen at
once to be quick is matched in a process of its own, which the operating system ends after a second of work. This file
is that process's script too, and therefore imports the standard library only.
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
"""Of a quick expression, where a repeat of digits counts 1 and any other 4: two of these divide a name of 100 letters
in 5,000 ways, and names have few digits in a row."""

MOST_WAYS = 64
"""Ways through the alternatives of a quick expression."""

LONGEST_MATCHING = 1
"""Processor seconds that a file's grouping may take."""

LONGEST_WAIT = 60.0
"""Seconds that are waited for them, on a machine that is busy with something else."""


def labels_by(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str, str | None]:
    r"""Name -> captured text of the first match, joined with ``/``, or what matched; None where nothing does.

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
    r"""Whether an expression is seen at once to match any name of some hundred letters within microseconds.

    It is when its repeats are few and not within each other, and its alternatives are few.

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
    """Repeats of different lengths, and ways through the alternatives; infinite for what is not looked into."""
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
    """Whether it is one digit: names have but few in a row."""
    if len(body) != 1 or body[0][0] is not codes.IN:
        return False
    digits = (ord("0"), ord("9"))
    return all(
        (kind is codes.CATEGORY and inside is codes.CATEGORY_DIGIT) or (kind is codes.RANGE and inside == digits)
        for kind, inside in body[0][1]
    )


def labels_within_limits(pattern: str, names: Iterable[str]) -> Mapping[str, str | None]:
    """As :func:`labels_by`, of an expression that somebody else wrote.

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
