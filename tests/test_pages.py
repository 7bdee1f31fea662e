"""The code of README and of the documentation runs, page by page, in the order of the page and in one namespace."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import qubo_compress as qc
from tests.wheel.first_steps import ten_lines

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^<!-- setup\n(.*?)^-->|(?<! -->\n\n)^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A block that readers see, or a comment before it: what the reader has already, such as a trained network."""

ELSEWHERE = re.compile(r"^<!-- run by (\S+) -->\n\n```python$", re.MULTILINE)
"""Before a block that takes too long for a test: the script that does the same."""

CHECKS = {
    "README.md": lambda found: (
        found["result"].plan.ratio >= 8
        and found["size"] == found["result"].plan.bytes == Path("small.safetensors").stat().st_size
        and Path("report.html").stat().st_size > 10_000
    ),
    "docs/dimod.md": lambda found: (
        (found["found"].first.energy, found["found"].first.is_feasible) == (2.0, True)
        and (found["found"].info["bound"], found["found"].info["status"]) == (2.0, "optimal")
        and found["again"].num_groups == found["problem"].num_groups == 30
    ),
    "docs/pair_costs.md": lambda found: found["stored"] <= 180 and "remove" in found["plan"],
    "docs/published.md": lambda found: isinstance(found["plan"], qc.Plan) and found["found"].plan.ratio >= 8,
}
"""What must hold after the code of some pages."""


def code_of(page: Path) -> list[str]:
    """The blocks of a page."""
    return [hidden or shown for hidden, shown in CODE.findall(page.read_text(encoding="utf-8"))]


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def reduced(network: Any) -> Any:
    """The example network with fewer examples: the same code, in less time."""
    first = {part: getattr(network, part)[0] for part in ("calibration", "validation", "test")}
    few = {part: [(inputs[:40], labels[:40])] for part, (inputs, labels) in first.items()}
    return dataclasses.replace(network, **few)


def in_torch(measured: Callable[..., Any], **fewer: int) -> Callable[..., Any]:
    """A measurement of times in PyTorch itself: nothing is exported, which takes a second for each file."""
    return lambda *given, **options: measured(*given, **{**options, **fewer, "runtime": "torch"})


def of_readme(page: Path) -> bool:
    """Whether a page has nothing but code of README."""
    return page != PAGES[0] and set(code_of(page)) <= set(code_of(PAGES[0]))


@pytest.mark.parametrize("page", [page for page in PAGES if not of_readme(page)], ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = qc.example_network()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(qc, "example_network", lambda: reduced(network))
    monkeypatch.setattr(qc, "latency_table", in_torch(qc.latency_table, runs=2, mixed=1))
    monkeypatch.setattr(qc, "measured_latency", in_torch(qc.measured_latency, runs=2))
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(code_of(page), 1):
        exec(compile(block, f"{name_of(page)}, block {number}", "exec"), namespace)
    assert CHECKS.get(name_of(page), lambda found: True)(namespace)


def test_every_block_of_python_is_one_that_runs() -> None:
    """No page hides code from this test behind another name of the language."""
    others = [
        f"{name_of(page)}: {line}"
        for page in PAGES
        for line in page.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*```\s*\{?\.?(py|python|pycon|python3)\b", line) and line != "```python"
    ]
    assert others == []
    assert sum(not of_readme(page) for page in PAGES) > 20


def test_blocks_that_take_too_long_are_few_and_run_by_a_benchmark() -> None:
    scripts = [script for page in PAGES for script in ELSEWHERE.findall(page.read_text(encoding="utf-8"))]
    assert len(scripts) <= 3 and all((ROOT / script).is_file() for script in scripts)


def test_the_wheel_is_tried_with_the_ten_lines_of_readme() -> None:
    assert ten_lines() == code_of(PAGES[0])[0]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_table_of_the_benchmarks_is_on_a_page() -> None:
    """Nothing measured disappears: a new table gets a link on a page of docs/results."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "results").glob("*.md"))
    results = ROOT / "benchmarks" / "results"
    missing = [path.name for path in results.glob("*.md") if f"benchmarks/results/{path.name})" not in text]
    missing += [path.name for path in results.glob("*.png") if f"benchmarks/results/{path.name})" not in text]
    assert missing == []


def test_every_page_says_in_one_sentence_what_it_answers() -> None:
    lacking = [
        name_of(page) for page in PAGES[1:] if not re.match(r"---\ndescription: .{20,}\.\n---\n", page.read_text())
    ]
    assert lacking == []


def test_headings_skip_no_level_and_pictures_are_described() -> None:
    wrong = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        levels = [len(found) for found in re.findall(r"^(#+) ", text, re.MULTILINE)]
        made = "\n::: " in text  # the site puts docstrings' headings between
        if levels[:1] != [1] or not made and any(below > above + 1 for above, below in itertools.pairwise(levels)):
            wrong.append(f"{name_of(page)}: headings {levels}")
        wrong += [f"{name_of(page)}: {path} is not described" for path in re.findall(r"!\[\s*\]\(([^)]+)\)", text)]
    assert wrong == []
