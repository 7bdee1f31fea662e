"""Makes text from elsewhere, such as names of modules, safe for a terminal, a page or a picture."""

from __future__ import annotations

import re
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


def broken(text: str, width: int) -> str:
    """The text in lines of at most some characters, broken after blanks and marks, within words only where it must be.

    Example:
        >>> print(broken("block1.depthwise_norm.weight", 20))
        block1.depthwise_
        norm.weight
    """
    lines = [""]
    for piece in re.findall(r"[^.,;_ ]*[.,;_ ]+|[^.,;_ ]+", text):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        while len(piece.rstrip()) > width:
            lines[-1], piece = piece[:width], piece[width:]
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines if line)
