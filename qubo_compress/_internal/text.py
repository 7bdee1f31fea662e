"""Makes text from elsewhere, such as names of modules, safe for a terminal, a page or a picture."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    r"""The text with unprintable characters escaped as in Python.

    Names of modules may contain control characters, which a terminal would execute and SVG and HTML forbid, and lone
    surrogates, which cannot be encoded. Line ends stay.

    Example:
        >>> print(printable("a\x1b[31m\ud800"), printable("ähnlich"))
        a\x1b[31m\ud800 ähnlich
    """
    if text.isprintable():
        return text
    return "".join(letter if _shown(letter) else letter.encode("unicode_escape").decode("ascii") for letter in text)


def _shown(letter: str) -> bool:
    """Whether to show a character as it is: also line ends and all kinds of spaces, unlike ``isprintable``."""
    return letter.isprintable() or letter == "\n" or unicodedata.category(letter) == "Zs"
