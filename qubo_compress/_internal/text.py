"""Text from elsewhere, such as names of modules, as a terminal, a page or a picture can show it."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    r"""The text with everything that cannot be shown written as Python writes it.

    Names of modules may hold control characters, which a terminal would obey and which no SVG or HTML may hold, and
    lone surrogates, which no file may hold. Line ends stay.

    Example:
        >>> print(printable("a\x1b[31m\ud800"), printable("ähnlich"))
        a\x1b[31m\ud800 ähnlich
    """
    if text.isprintable():
        return text
    return "".join(letter if _shown(letter) else letter.encode("unicode_escape").decode("ascii") for letter in text)


def _shown(letter: str) -> bool:
    """Line ends and spaces of all widths count, which ``isprintable`` leaves out."""
    return letter.isprintable() or letter == "\n" or unicodedata.category(letter) == "Zs"
