"""On the site, a line with nothing but a link to a table of the benchmarks becomes that table."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ALONE = re.compile(r"^\[[^\]]*\]\((?:\.\./)+benchmarks/results/([\w.-]+)\.md\)$", re.MULTILINE)
"""A table's link on a line of its own."""


def table(name: str) -> str:
    """The tables of one file: its own title is left out, and its headings go one level below the page's."""
    text = (RESULTS / f"{name}.md").read_text().strip()
    text = re.sub(r"\A# .*\n+", "", text)
    return re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE)


@event_priority(50)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the benchmarks' pictures."""
    for path in sorted(RESULTS.glob("*.png")):
        files.append(File(f"results/{path.name}", str(RESULTS.parent), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the tables in, and let pictures be found where the site has them."""
    markdown = ALONE.sub(lambda found: table(found.group(1)), markdown)
    return markdown.replace("../../benchmarks/results/", "")
