"""Groupings as text in a file: ``"layer"``, ``"filter"``, an expression, or what a function made of a network."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping

from qubo_compress._internal.reader import inflated, parsed_json
from qubo_compress.errors import InvalidMenu
from qubo_compress.network.patterns import is_quick

CUSTOM = "custom:"
"""Begins a grouping that is stored by what it made of a network."""

MOST_LABELS = 8 * 2**20
"""Bytes of the names and labels of a stored grouping: 50,000 weights with names of 80 letters."""

LONGEST_RULE = 4000
"""Letters of a regular expression in a file."""


def labels_text(labels: Mapping[str, str | None]) -> str:
    """What a grouping made of a network, as text."""
    text = json.dumps({name: label for name, label in labels.items() if label is not None})
    return CUSTOM + base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def stored_labels(rule: str) -> dict[str, str]:
    """Name -> label of a grouping that was stored by what it made of a network.

    Raises:
        InvalidMenu: when the text is damaged, or stands for more than the names of a large network.
    """
    try:
        stored = parsed_json(inflated(rule[len(CUSTOM) :], MOST_LABELS))
        if not isinstance(stored, dict) or not all(isinstance(label, str) for label in stored.values()):
            raise ValueError("it is no table of names")
    except ValueError as cause:
        raise InvalidMenu(f"the stored grouping {rule[:40]!r} cannot be read ({cause})") from cause
    return stored


def refuse_unreadable_rule(rule: str) -> None:
    """Raise an error unless text from a file is a grouping rule, whatever network it is of."""
    if rule.startswith(CUSTOM):
        stored_labels(rule)
    elif len(rule) > LONGEST_RULE:
        raise InvalidMenu(f"a grouping has at most {LONGEST_RULE} letters; got {len(rule):,}")
    elif is_quick(rule):
        re.compile(rule)


def is_read_back(pattern: re.Pattern[str], labels: Mapping[str, str | None]) -> bool:
    """Whether the text of an expression, read from a file, makes the same groups again, and at once."""
    text = pattern.pattern
    if text in ("layer", "filter") or text.startswith(CUSTOM) or len(text) > LONGEST_RULE or not is_quick(text):
        return False
    return pattern.flags == re.compile(text).flags and any(label is not None for label in labels.values())
