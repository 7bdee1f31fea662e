"""Pictures inside a page: they take its colours, dark or light, and tell what is below the pointer."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Mapping, Sequence

from qubo_compress.page.style import COLOURS

_COLOUR = re.compile("|".join(COLOURS), re.IGNORECASE)
_OWN_ID = re.compile(r"url\(#")
_DROPPED = ("metadata", "title")


def inline(drawn: bytes, title: str, hovers: Mapping[str, Sequence[str]] | None = None) -> str:
    """An SVG file drawn by matplotlib as an element of an HTML page.

    Args:
        drawn: the file. It must be our own: nothing in it is filtered.
        title: alternative text.
        hovers: identifier of a series of points -> what each of its points tells.
    """
    root = ET.fromstring(drawn)  # noqa: S314 - written by matplotlib in this process
    # Equal pictures get equal identifiers, which does no harm: they define the same.
    prefix = f"p{zlib.crc32(drawn):x}-"
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        for name in list(element.attrib):
            _rename(element, name, prefix)
    for parent in root.iter():
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
    for identifier, texts in (hovers or {}).items():
        _tell(root, prefix + identifier, texts)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", title)
    return ET.tostring(root, encoding="unicode")


def _rename(element: ET.Element, name: str, prefix: str) -> None:
    """Plain attribute names, identifiers of this picture alone, and the page's colours."""
    value = element.attrib.pop(name)
    plain = name.split("}")[-1]
    if plain == "id":
        value = prefix + value
    elif plain == "href" and value.startswith("#"):
        value = f"#{prefix}{value[1:]}"
    value = _OWN_ID.sub(f"url(#{prefix}", value)
    if plain == "style":
        value = _COLOUR.sub(lambda found: f"var(--{COLOURS[found.group().lower()]})", value)
    element.set(plain, value)


def _tell(root: ET.Element, identifier: str, texts: Sequence[str]) -> None:
    """A title for every point of a series, which browsers show below the pointer."""
    for series in root.iter("g"):
        points = list(series.iter("use"))
        if series.get("id") == identifier and len(points) == len(texts):
            for point, text in zip(points, texts, strict=True):
                ET.SubElement(point, "title").text = text


def width(drawn: bytes) -> float:
    """The width of an SVG file in points, from its view box."""
    found = re.search(rb'viewBox="[-\d.]+ [-\d.]+ ([\d.]+)', drawn)
    return float(found.group(1)) if found else 0.0
