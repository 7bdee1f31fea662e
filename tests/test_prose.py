"""The English of the field: words that no native engineer would write stay out of code, messages and pages."""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
from pathlib import Path

import qubo_compress

ROOT = Path(__file__).parents[1]
REPLACEMENTS = {
    r"\bdear(er|est)?\b": "expensive",
    r"\bshall\b": "must, or nothing",
    r"\bof equals\b": "in a tie",
    r"\bhad without\b": "computed without",
    r"\b(is|are) had\b": "is found",
    r"\bempty but for\b": "empty except for",
    r"\bup to so many\b": "up to this many",
    r"\bat (most|least) so (many|much)\b": "at most this many",
    r'^\s*(#|"""|-)?\s*(Kept|Compressed|Given|Wanted|Drawn|Stored|Measured|Counted) (is|are)\b': "the subject first",
    r"\bfor want of\b": "for lack of",
    r"\b(was|is|are|were) had\b|\bhad for free\b": "came at no cost",
    r"\bof (its|their) own accord\b": "by itself",
    r"\bin the place of\b": "instead of",
    r"\bnumbers of (numpy|torch)\b": "numpy numbers",
    r"\bfor ever\b": "forever",
    r"\bas (it|they) stands?\b": "unchanged, or nothing",
    r"\bthe very (group|bytes|network|file|table|plan)\b": "exactly the",
    r"\btaken up again\b": "resumed",
    r"\b(begins?|starts?|made|set|packed|built) anew\b": "again, or a verb with re-",
    r"\bfetch(ed)? (it )?anew\b": "fetch again",
    r"\bin words\b(?!])": "as text",
    r"\bin the running\b": "compared",
    r"\bpredicted most alike\b": "with the closest prediction",
    r"\bone of a kind\b": "unique",
    r"\bone's own\b": "private",
    r"\bprocess of its own\b": "separate process",
    r"\bthread of its own\b": "separate thread",
    r"\bother people's\b": "of other packages",
    r"\bmay well\b": "may",
    r"\bupon\b": "on",
    r"\bso as to\b": "to",
    r"\b(owing|thanks) to\b": "because of",
    r"\b(there|here|where)(of|by|in|upon)\b(?<!\bthereby)(?<!\bwhereby)": "a pronoun",
    r"\bbut for\b|\bsave for\b": "except",
    r"\bought to\b": "must",
    r"\bwere it not\b|\bbe it\b": "if",
    r"\bhere and there\b": "in some places",
    r"\bbesides\b": "also, or except",
    r"\ball the same\b": "still, or in any case",
    r"\btold apart\b": "distinguished",
    r"\bof which (no|all|a part|the (first|largest|last))\b": "whose",
    r"\bfor the figures alone\b": "only for the figures",
    r"\bwhat was had\b|\bwhat is had\b": "the result",
}


def test_words_that_are_not_the_fields_stay_out() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for folder in ("qubo_compress", "benchmarks", "notebooks", "changelog.d"):
        texts += [path for ending in ("py", "md", "ipynb") for path in (ROOT / folder).rglob(f"*.{ending}")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}, write {better!r}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word, better in REPLACEMENTS.items()
        if (match := re.search(word, line, re.IGNORECASE))
    ]
    assert len(texts) > 300
    assert not found, "\n".join(found)


def test_rows_of_tables_are_whole() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
    broken = []
    for path in pages:
        lines = [*path.read_text(encoding="utf-8").splitlines(), ""]
        for number, (line, following) in enumerate(itertools.pairwise(lines), 1):
            whole = line.rstrip().endswith("|") and (not following.strip() or following.startswith("|"))
            if line.startswith("|") and not whole:
                broken.append(f"{path.relative_to(ROOT)}:{number}")
    assert len(pages) > 10 and not broken, broken


def test_public_methods_say_what_they_do_or_fulfil_one_that_does() -> None:
    found = []
    for module in pkgutil.walk_packages(qubo_compress.__path__, "qubo_compress."):
        if module.name.endswith(("__main__", "_process")):  # scripts
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(kind) or kind.__module__ != module.name or kind.__name__.startswith("_"):
                continue
            found += [
                f"{kind.__module__}.{kind.__qualname__}.{name}"
                for name, value in vars(kind).items()
                if not name.startswith("_")
                and (inspect.isroutine(value) or isinstance(value, property))
                and not inspect.getdoc(getattr(kind, name))
            ]
    assert not found, "\n".join(found)
