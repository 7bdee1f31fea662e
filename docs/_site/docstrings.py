"""Docstrings as Markdown: doctests are examples, and roles such as ``:func:`qubo_compress.measure``` become links."""

from __future__ import annotations

import re

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?(?:([^`<]+?)\s*<)?([\w.\s]+?)>?`")
"""A role, with a text before the name in angle brackets or without one."""


def linked(found: re.Match[str]) -> str:
    """A link where the site has the name, else the name alone."""
    text, path = found.groups()
    path = re.sub(r"\s+", "", path)
    shown = text or (path.rpartition(".")[2] if found.group().partition("`")[2].startswith("~") else path)
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'


class Docstrings(griffe.Extension):
    """What mkdocstrings reads instead of the docstring as written."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Change a docstring before it is parsed."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = ROLE.sub(linked, text)
