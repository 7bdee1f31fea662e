"""Pages made of files elsewhere in the repository: notebooks, CONTRIBUTING, the changelog, the findings."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "contributing.md": (
        "CONTRIBUTING.md",
        "How to change this library, where things are, what a plug-in needs, the rules.",
    ),
    "changelog.md": ("CHANGELOG.md", "What changed from release to release."),
    "results/findings.md": ("benchmarks/README.md", "Every finding of the benchmarks in full, and what was not run."),
}
"""Page -> the file that it is made of, and what it says in one sentence."""


def unlinked(text: str) -> str:
    """The text without its links to files of the repository, which the site does not have; what they say stays."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)[^)]+\)", r"\1", text)


def unreleased() -> str:
    """What is not released yet, by kind, from the fragments in changelog.d."""
    kinds = {"changed": "Defaults that changed", "removed": "What no longer works", "added": "New",
             "services": "Services", "fixed": "Fixed"}  # fmt: skip
    parts = ["## Not released yet\n"]
    for kind, title in kinds.items():
        found = sorted((ROOT / "changelog.d").glob(f"*.{kind}.md"))
        if found:
            parts.append(f"### {title}\n\n" + "\n".join(path.read_text().strip() for path in found) + "\n")
    return "\n".join(parts)


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for page, (source, description) in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if page == "changelog.md":
            text = re.sub(r"<!-- towncrier.*?-->\n", lambda found: unreleased(), text)
        text = unlinked(text)
        files.append(File.generated(config, page, content=f"---\ndescription: {description}\n---\n\n{text}"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files
