"""The pieces that every page is made of: style, lists, tables, figures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --paper: #ffffff; --ground: #f4f6f8; --blue: #2456c7;
        --good: #0f8a7e; --bad: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 20px 64px; }
header h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
header p { margin: 0; color: var(--soft); font-size: 17px; }
header strong { color: var(--ink); font-weight: 600; }
section, .cards { margin-top: 24px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 22px 26px 24px; }
h2 { font-size: 20px; margin: 0 0 4px; }
h3 { font-size: 16px; margin: 0 0 2px; }
section > p, figcaption, .note { color: var(--soft); margin: 0 0 12px; max-width: 82ch; font-size: 15px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(188px, 1fr)); gap: 14px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.card .label { color: var(--soft); font-size: 13.5px; }
.card .value { font-size: 30px; font-weight: 650; line-height: 1.25; letter-spacing: -0.02em; white-space: nowrap; }
.card .value.main { color: var(--blue); }
.card .value.words { font-size: 23px; line-height: 1.63; }
.card .more { color: var(--soft); font-size: 13.5px; line-height: 1.4; }
.plain { border-left: 5px solid var(--soft); }
.warning { border-left-color: var(--bad); }
.warning h2 { color: var(--bad); }
.plain ul, .said ul { margin: 6px 0 0; padding-left: 20px; max-width: 92ch; }
.plain li, .said li { margin: 4px 0; }
figure { margin: 14px 0 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 24px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; margin-top: 10px; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13.5px; vertical-align: bottom; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 13px;
          overflow-wrap: break-word; }
tbody tr:hover { background: #f8fafc; }
tfoot tr:last-child td { font-weight: 600; border-bottom: none; }
footer { color: var(--soft); font-size: 14px; margin-top: 24px; }
@media print { body { background: white; } section, .card { break-inside: avoid; } }
"""


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
) -> str:
    """A table; ``numeric`` and ``names`` are columns, ``totals`` are lines below the rule."""
    numbers = dict.fromkeys(numeric, ' class="n"')
    styled = {**numbers, **dict.fromkeys(names, ' class="name"')}

    def line(cells: Sequence[str], tag: str, styles: Mapping[int, str]) -> str:
        texts = [_breakable(cell) for cell in cells]
        return "<tr>" + "".join(f"<{tag}{styles.get(i, '')}>{text}</{tag}>" for i, text in enumerate(texts)) + "</tr>"

    foot = "".join(line(row, "td", numbers) for row in totals)
    body = "\n".join(line(row, "td", styled) for row in rows)
    return (
        f'<div class="scroll"><table><thead>{line(head, "th", numbers)}</thead><tbody>{body}</tbody>'
        f"<tfoot>{foot}</tfoot></table></div>"
    )


def _breakable(cell: str) -> str:
    """Escaped text; choice names may break after commas, and joined ones get a line each."""
    if "=" not in cell:
        return escape(cell)
    # Split before escaping: entities end in a semicolon too.
    lines = (escape(part).replace(",", ",<wbr>").replace(" × ", "&nbsp;×&nbsp;") for part in cell.split("; "))
    return "<br>".join(lines)


def figure_html(image: bytes, title: str, caption: str) -> str:
    """An SVG picture with its caption above."""
    data = base64.b64encode(image).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{below}<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></figure>'
