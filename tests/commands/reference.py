"""The table of all recipe keys, as docs/how_to/command_line.md has it: run as a module, it writes the page anew."""

from __future__ import annotations

import re
from pathlib import Path

from qubo_compress.commands.settings import Setting, settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how_to" / "command_line.md"
EXAMPLE = ROOT / "examples" / "recipes" / "example.yaml"

KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
KEYS = re.compile(r"(?<=<!-- all keys -->\n\n).*?(?=\n\n<!-- end of all keys -->)", re.DOTALL)
RECIPE = re.compile(r"(?<=<!-- the example -->\n\n```yaml\n).*?(?=```\n)", re.DOTALL)


def keys() -> str:
    """One row for every key."""
    rows = ["| key | type | default | what it is | option |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(rows + [_row(setting) for setting in settings()])


def _row(setting: Setting) -> str:
    kind = KINDS[setting.kind]
    form = {"one": kind, "list": f"list of {kind}s", "table": "table of names and values"}[setting.form]
    default = f"`{setting.about.default}`" if setting.about.default else ""
    return f"| `{setting.key}` | {form} | {default} | {setting.about.help} | `{setting.about.option}` |"


def page(text: str) -> str:
    """The text of the page, with the table and the example as they are now."""
    text = KEYS.sub(lambda _: keys(), text)
    return RECIPE.sub(lambda _: EXAMPLE.read_text(encoding="utf-8"), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
