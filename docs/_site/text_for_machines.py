"""``llms.txt``, a list of all pages with a sentence each, and every page as plain Markdown beside its HTML."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_pages: dict[str, tuple[Page, str]] = {}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Remember the text of a page."""
    _pages[page.file.src_uri] = (page, markdown)


def on_env(env: object, config: MkDocsConfig, files: Files) -> None:
    """Write the text of every page, and the list."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}."]
    section = ""
    for page, markdown in _pages.values():
        path = site / page.file.dest_uri
        path = path.with_name("index.html.md") if path.name == "index.html" else path.with_suffix(".md")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(markdown, encoding="utf-8")
        title = page.ancestors[-1].title if page.ancestors else "Start"
        if title != section:
            lines += ["", f"## {title}", ""]
            section = title
        lines.append(f"- [{page.title}]({path.relative_to(site).as_posix()}): {page.meta.get('description', '')}")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
