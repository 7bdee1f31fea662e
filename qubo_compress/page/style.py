"""The style of every page: light and dark, on paper and on a phone; and the colours of its pictures."""

from __future__ import annotations

COLOURS = {
    "#1f2933": "ink", "#64707d": "soft", "#e4e7eb": "line", "#cbd2d9": "rule", "#ffffff": "paper", "#2456c7": "blue",
    "#b9cdf5": "pale", "#0f8a7e": "teal", "#c77700": "amber", "#c62f3b": "red",
}  # fmt: skip
"""Colours that pictures are drawn in -> the variable of the style that replaces them, which dark pages redefine."""

_LIGHT = """--ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --rule: #cbd2d9; --paper: #ffffff; --ground: #f4f6f8;
--blue: #2456c7; --pale: #b9cdf5; --teal: #0f8a7e; --amber: #c77700; --red: #c62f3b; --bad: #b3261e; --good: #0b6e64;
--hover: #f4f7fb;"""

_DARK = """--ink: #e6eaf0; --soft: #a3b0bf; --line: #2c3542; --rule: #44505f; --paper: #171c24; --ground: #0e1218;
--blue: #7aa5ff; --pale: #34548f; --teal: #3fbfae; --amber: #e5a03c; --red: #ff7b80; --bad: #ff8f85; --good: #56cdbd;
--hover: #1e2530;"""

_PARTS = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 20px 56px; }
header h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); }
a { color: var(--blue); }
section { margin-top: 20px; background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
          padding: 20px 24px 22px; }
h2 { font-size: 20px; margin: 0 0 4px; }
h3 { font-size: 16px; margin: 20px 0 2px; }
section > p, figcaption, .note { color: var(--soft); margin: 0 0 10px; max-width: 82ch; font-size: 15px; }
.plain { border-left: 5px solid var(--soft); }
.warning { border-left-color: var(--bad); }
.warning h2 { color: var(--bad); }
.plain ul, .said ul { margin: 6px 0 0; padding-left: 20px; max-width: 92ch; }
.plain li, .said li { margin: 4px 0; overflow-wrap: anywhere; }
figure { margin: 12px 0 0; }
figure svg { display: block; width: 100%; height: auto; max-width: var(--wide, 100%); margin: 0 auto; }
figure svg text { font-family: inherit !important; }
figure svg image { image-rendering: pixelated; }
figure svg use:hover { opacity: .6; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 8px 24px; }
.scroll { overflow-x: auto; }
.tall { max-height: 640px; overflow: auto; border: 1px solid var(--line); border-radius: 8px; padding-left: 12px; }
.tall table { margin: 0; } .tall th { padding-top: 8px; }
.tall:focus-visible { outline: 2px solid var(--blue); }
.tall thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; margin-top: 8px; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13.5px; vertical-align: bottom; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 13px;
          overflow-wrap: break-word; min-width: 9em; }
tbody tr:hover, tbody tr:target { background-color: var(--hover); }
tbody tr.first td { font-weight: 600; }
tfoot tr:last-child td { font-weight: 600; border-bottom: none; }
th button { all: unset; cursor: pointer; color: inherit; font: inherit; }
th button:focus-visible { outline: 2px solid var(--blue); }
th button::after { content: "\\2195"; opacity: .45; padding-left: 3px; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
td.bar { background: linear-gradient(var(--fill, var(--pale)) 0 0) no-repeat right 12px bottom 3px / 0 3px;
         background-size: calc(var(--v) * 76px) 3px; }
td.amber { --fill: var(--amber); }
td.teal { --fill: var(--teal); }
td.blue { --fill: var(--blue); }
footer { color: var(--soft); font-size: 14px; margin-top: 20px; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 14px;
           margin-top: 18px; }
.answers section { margin: 0; padding: 14px 20px 16px; min-width: 0; }
.answers h2 { font-size: 14px; font-weight: 600; color: var(--soft); margin: 0; }
.answers .value { font-size: 28px; font-weight: 650; line-height: 1.25; letter-spacing: -0.015em; }
.answers .good { color: var(--good); } .answers .bad { color: var(--bad); } .answers .main { color: var(--blue); }
.answers p { margin: 4px 0 0; font-size: 14.5px; color: var(--ink); }
.answers p.note { color: var(--soft); font-size: 13.5px; }
.answers table { font-size: 13.5px; margin-top: 4px; }
.answers td, .answers th { padding: 3px 7px 3px 0; white-space: nowrap; font-size: inherit; }
@media (min-width: 1060px) { .answers { grid-template-columns: 1.3fr 1fr; } }
.span { display: block; width: 64px; height: 14px; }
.strip { display: flex; align-items: flex-end; height: 120px; margin: 18px 0 0 34px; position: relative; gap: 1px;
         border-bottom: 1px solid var(--rule); }
.strip.low { height: 64px; }
.strip i { flex: 1 1 0; min-width: 0; height: calc(var(--v) * 100%); background: var(--blue); min-height: 1px;
           position: relative; }
.strip i.pale { background: var(--pale); }
.strip i.grey { background: var(--line); }
.strip i b { position: absolute; left: 0; right: 0; bottom: 0; height: calc(var(--v) * 100%);
             background: var(--amber); min-height: 1px; }
.strip i:hover, .strip i.here { outline: 2px solid var(--ink); z-index: 1; }
.strip em { position: absolute; left: -34px; right: 0; bottom: calc(var(--v) * 100%); border-top: 1px solid var(--line);
            font-size: 11px; line-height: 1.2; font-style: normal; color: var(--soft); pointer-events: none; }
.strip:focus-visible { outline: 2px solid var(--blue); outline-offset: 3px; }
.key { color: var(--soft); font-size: 13.5px; margin: 12px 0 0; }
.told { min-height: 1.5em; margin: 6px 0 0; font-size: 14px; color: var(--ink); overflow-wrap: anywhere; }
@media (max-width: 600px) {
  main { padding: 18px 12px 40px; } section { padding: 16px 14px 18px; } header h1 { font-size: 24px; }
  .answers .value { font-size: 24px; } .span { width: 64px; }
  .wide { overflow-x: auto; } .wide svg { width: 640px; max-width: none; }
  td.name { min-width: 7.5em; font-size: 12px; }
}
@media print {
  :root { color-scheme: light; LIGHT }
  body { background: white; font-size: 12px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  figure, .answers section, tr, .strip { break-inside: avoid; } h2, h3 { break-after: avoid; }
  section { border-width: 1px 0 0; border-radius: 0; padding: 10px 0; } .plain { border-left: none; }
  .answers { grid-template-columns: 1fr 1fr; gap: 8px 20px; }
  .tall { max-height: none; overflow: visible; border: none; padding: 0; }
  .scroll { overflow: visible; } .told { display: none; }
  table, th, td.name { font-size: 10px; } th, td { padding: 3px 8px 3px 0; } td.name { min-width: 6em; }
  .answers .value { font-size: 19px; } .answers p, .answers p.note { font-size: 11px; }
  .answers table { font-size: 9.5px; } .answers td, .answers th { padding-right: 5px; } .span { width: 40px; }
  th button::after { content: ""; }
  .pair { grid-template-columns: 1fr 1fr; }
}
"""

STYLE = (
    f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n{_PARTS.replace('LIGHT', _LIGHT)}"
)
