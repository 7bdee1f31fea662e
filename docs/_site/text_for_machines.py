"""``llms.txt``, a list of all pages with a sentence each, and every page as plain Markdown beside its HTML.

In the copies, links lead to copies, and what is made from docstrings is written out.
"""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_pages: dict[str, tuple[Page, str]] = {}

LINK = re.compile(r"\]\((?!\w+:)([^)\s#]+\.(?:md|ipynb))(#[^)\s]*)?\)")
"""A link to another page."""

STUB = re.compile(r"^::: (\S+)\n((?:[ \t]+.*\n?|\n)*)", re.MULTILINE)
"""What mkdocstrings replaces by docstrings, and its settings."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Remember the text of a page."""
    _pages[page.file.src_uri] = (page, markdown)


def on_env(env: object, config: MkDocsConfig, files: Files) -> None:
    """Write the text of every page, and the list."""
    site = Path(config.site_dir)
    sections: dict[str, list[str]] = {}
    for page, markdown in _pages.values():
        name = copy_of(page)
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(written_out(linked(markdown, page)), encoding="utf-8")
        title = page.ancestors[-1].title if page.ancestors else "Start"
        line = f"- [{page.title}]({name}): {page.meta.get('description', '')}"
        sections.setdefault(str(title), []).append(line)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}."]
    for title, entries in sections.items():
        lines += ["", f"## {title}", "", *entries]
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def copy_of(page: Page) -> str:
    """Where the copy of a page lies in the site."""
    made = page.file.dest_uri
    return posixpath.splitext(made)[0] + (".html.md" if posixpath.basename(made) == "index.html" else ".md")


def linked(markdown: str, page: Page) -> str:
    """A page's text with links to the copies of other pages."""
    here, own = posixpath.dirname(page.file.src_uri), posixpath.dirname(copy_of(page))

    def to_copy(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, found[1]))
        if target not in _pages:
            return found[0]
        return f"]({posixpath.relpath(copy_of(_pages[target][0]), own or '.')}{found[2] or ''})"

    return LINK.sub(to_copy, markdown)


def written_out(markdown: str) -> str:
    """A page's text with signatures and docstrings in the place of their stubs."""

    def documented(found: re.Match[str]) -> str:
        settings = yaml.safe_load(found[2]) or {}
        named = _object(found[1])
        members = settings.get("options", {}).get("members")
        if not inspect.ismodule(named):
            return _described(found[1].rpartition(".")[2], named)
        if not isinstance(members, list):
            members = [name for name, value in vars(named).items() if _own(name, value, named)]
        return "".join(_described(name, getattr(named, name)) for name in members)

    return STUB.sub(documented, markdown)


def _own(name: str, value: Any, module: Any) -> bool:
    made = inspect.isclass(value) or inspect.isroutine(value)
    return made and not name.startswith("_") and value.__module__ == module.__name__


def _object(path: str) -> Any:
    """What a dotted path names: a module, or something in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(_object(module), name)


def _described(name: str, documented: Any) -> str:
    """The signature and docstring of something and of its public methods and properties."""
    parts = [f"## {_signature(name, documented)}\n\n{inspect.getdoc(documented) or ''}\n\n"]
    if inspect.isclass(documented):
        for own, value in vars(documented).items():
            if own.startswith("_") or not (inspect.isroutine(value) or isinstance(value, (property, classmethod))):
                continue
            found = getattr(documented, own)
            parts.append(f"### {_signature(f'{name}.{own}', found)}\n\n{inspect.getdoc(found) or ''}\n\n")
    return "".join(parts)


def _signature(name: str, documented: Any) -> str:
    try:
        return f"{name}{inspect.signature(documented)}"
    except (TypeError, ValueError):  # properties and values have none
        return name
