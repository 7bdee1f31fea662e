"""Turns what a recipe or an option says into the value of a setting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from qubo_compress.commands.settings import Setting

LONGEST_TEXT = 4000
"""Letters of a text in a recipe."""

MOST_ITEMS = 1000
"""Items of a list or a table in a recipe."""

_SAID = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a file's name"}


def value_from(setting: Setting, given: Any) -> Any:
    """The value of a setting, from the value in a recipe.

    Raises:
        ValueError: when it is of another type; the message says what is allowed.

    Example:
        >>> from qubo_compress.commands.settings import settings
        >>> by_key = {setting.key: setting for setting in settings()}
        >>> value_from(by_key["menu.bits"], [2, 4]), value_from(by_key["budget.ratio"], 8)
        ((2, 4), 8.0)
        >>> value_from(by_key["budget.ratio"], "eight")
        Traceback (most recent call last):
        ValueError: must be a number; got 'eight'
    """
    if setting.form == "list":
        if not isinstance(given, list) or len(given) > MOST_ITEMS:
            raise ValueError(f"must be a list of at most {MOST_ITEMS} items, each {_SAID[setting.kind]}; got {given!r}")
        return tuple(_one(setting.kind, item) for item in given)
    if setting.form == "table":
        if not isinstance(given, dict) or len(given) > MOST_ITEMS:
            raise ValueError(f"must be a table of names and values; got {given!r}")
        return {name: _scalar(value) for name, value in given.items()}
    return _one(setting.kind, given)


def value_of_text(setting: Setting, given: Any) -> Any:
    """The value of a setting, from that of an option, which a shell gives as text.

    Example:
        >>> from qubo_compress.commands.settings import settings
        >>> by_key = {setting.key: setting for setting in settings()}
        >>> value_of_text(by_key["menu.bits"], "2,4"), value_of_text(by_key["solver.options"], ["restarts=8"])
        ((2, 4), {'restarts': 8})
    """
    if setting.form == "table":
        pairs = [text.partition("=") for text in given]
        wrong = [name for name, sign, _ in pairs if not (name and sign)]
        if wrong:
            raise ValueError(f"must be name=value; got {wrong[0]!r}")
        return {name: _guessed(text) for name, _, text in pairs}
    if setting.form == "list" and setting.kind is not str:
        return value_from(setting, [_guessed(text.strip()) for text in given.split(",")])
    return value_from(setting, list(given) if setting.form == "list" else given)


def _one(kind: type, given: Any) -> Any:
    if kind is float and isinstance(given, int) and not isinstance(given, bool):
        given = float(given) if abs(given) < 2**63 else math.inf
    if kind is Path and isinstance(given, str):
        given = Path(_text(given))
    right = isinstance(given, kind) and not (kind is not bool and isinstance(given, bool))
    if not right or (isinstance(given, float) and not math.isfinite(given)):
        raise ValueError(f"must be {_SAID[kind]}; got {given!r}")
    return _text(given) if isinstance(given, str) else given


def _text(given: str) -> str:
    if not given or len(given) > LONGEST_TEXT:
        raise ValueError(f"must be text of 1 to {LONGEST_TEXT} letters; got {len(given):,}")
    return given


def _scalar(given: Any) -> Any:
    if not isinstance(given, (str, int, float, bool)):
        raise ValueError(f"must be numbers, texts, true or false; got {given!r}")
    return given


def _guessed(text: str) -> Any:
    """A number, a truth value, or the text itself."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
