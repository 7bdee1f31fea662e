"""The pieces that every page is made of: the page itself, lists, tables, figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from qubo_compress._internal.text import printable
from qubo_compress.page import svg
from qubo_compress.page.script import POLICY, SCRIPT
from qubo_compress.page.style import STYLE

WIDE = 400.0
"""Pictures of more points than this scroll on a phone instead of shrinking."""


def page_html(title: str, body: str) -> str:
    """A whole page that needs no other file and no network.

    Args:
        title: of the window.
        body: HTML.
    """
    return printable(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def list_html(sentences: Iterable[str]) -> str:
    """Sentences as an HTML list."""
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def table_html(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Iterable[int] = (),
    names: Iterable[int] = (),
    totals: Iterable[Sequence[str]] = (),
    bars: Mapping[int, tuple[str, Sequence[float]]] | None = None,
    tall: bool = False,
) -> str:
    """A table, which sorts by a click on a heading if it has several rows.

    Args:
        head: names of the columns.
        rows: of text.
        numeric: columns of numbers.
        names: columns of names.
        totals: lines below the rule, which stay there.
        bars: numeric column -> colour, and the share of its longest bar that every row gets.
        tall: whether the table scrolls in a box.
    """
    numbers = dict.fromkeys(numeric, "n")
    styled = {**numbers, **dict.fromkeys(names, "name")}
    drawn = bars or {}
    lines = []
    for number, row in enumerate(rows):
        shares = {column: (colour, values[number]) for column, (colour, values) in drawn.items()}
        lines.append(_line(row, "td", styled, shares))
    foot = "".join(_line(row, "td", numbers, {}) for row in totals)
    box, sorts = ("scroll tall", " tabindex=0") if tall else ("scroll", ""), ' class="sorts"' * (len(lines) > 1)
    return (
        f'<div class="{box[0]}"{box[1]}><table{sorts}><thead>{_line(head, "th", numbers, {})}</thead>'
        f"<tbody>{chr(10).join(lines)}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def _line(cells: Sequence[str], tag: str, styles: Mapping[int, str], bars: Mapping[int, tuple[str, float]]) -> str:
    texts = []
    for column, cell in enumerate(cells):
        style, extra = styles.get(column, ""), ""
        if column in bars:
            colour, share = bars[column]
            style, extra = f"{style} bar {colour}", f' style="--v:{share:.3g}"'
        named = f' class="{style}"' if style else ""
        text = escape(cell).replace(".", ".<wbr>") if style == "name" and "=" not in cell else _breakable(cell)
        texts.append(f"<{tag}{named}{extra}>{text}</{tag}>")
    return f"<tr>{''.join(texts)}</tr>"


def _breakable(cell: str) -> str:
    """Escaped text; choice names may break after commas, and joined ones get a line each."""
    if "=" not in cell:
        return escape(cell)
    # Split before escaping: entities end in a semicolon too.
    lines = (escape(part).replace(",", ",<wbr>").replace(" × ", "&nbsp;×&nbsp;") for part in cell.split("; "))
    return "<br>".join(lines)


def figure_html(
    image: bytes,
    title: str,
    caption: str,
    *,
    hovers: Mapping[str, Sequence[str]] | None = None,
    pairs: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """An SVG picture with its caption above.

    Args:
        image: an SVG file that this library drew.
        title: alternative text.
        caption: HTML is escaped.
        hovers: see :func:`qubo_compress.page.svg.inline`.
        pairs: ``names`` and ``values`` of a square map: the lower triangle row by row, without the diagonal.
    """
    above = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    wide, drawn = svg.width(image), svg.inline(image, title, hovers) if image else ""
    data = "" if pairs is None else f' data-pairs="{escape(json.dumps({k: list(v) for k, v in pairs.items()}))}"'
    told = "" if pairs is None else '<output class="told"></output>'
    kind = ' class="wide"' * (wide > WIDE)
    return f'<figure{kind} style="--wide:{1.4 * wide:.0f}px"{data}>{above}{drawn}{told}</figure>'
