"""Reports in a real browser: nothing overflows, nothing fails, tables sort, pictures tell."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import write_report

LAYERS = 200


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: reports were not opened in a browser")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: no report was opened in a browser")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a network of 200 layers with long names."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for number in range(LAYERS):
        model.add_module(f"encoder_block_{number:03}_projection_of_attention", nn.Linear(4, 4, bias=False))
    data = [(torch.randn(24, 4), torch.arange(24) % 4)]
    result = qc.compress(
        model.eval(), data, qc.Budget(ratio=1.2), menu=qc.Menu(bits=(2, 4), sparsity=(0.0,)), solver="greedy",
        metric="products", recover=False, progress=False, time_limit=1.0,
    )  # fmt: skip
    return write_report(result, tmp_path_factory.mktemp("deep") / "report.html", seconds_per_point=0.02)


@pytest.fixture(scope="module")
def odd(result: CompressionResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(result, tmp_path_factory.mktemp("odd") / "report.html", seconds_per_point=0.05)


def opened(browser: Any, path: Path, width: int, **options: Any) -> tuple[Any, list[str]]:
    """The page, and everything that its console, its errors and its requests said."""
    page, said = browser.new_page(viewport={"width": width, "height": 900}, **options), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
    page.goto(path.as_uri())
    return page, said


def test_a_page_of_200_layers_is_below_a_megabyte(deep: Path) -> None:
    text = deep.read_text()
    assert len(text.encode()) < 1_000_000
    assert text.count("_projection_<wbr>of") == 0 and text.count("encoder_block_199_projection_of_attention.") >= 3


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_overflows_and_nothing_fails(browser: Any, odd: Path, deep: Path, width: int) -> None:
    for path in (odd, deep):
        page, said = opened(browser, path, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
        assert not said


def test_tables_sort_both_ways(browser: Any, deep: Path) -> None:
    page, said = opened(browser, deep, 1400)
    head = page.locator("th", has_text="loss change alone")
    column = """head => [...head.closest("table").tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent)"""

    def values() -> list[float]:
        return [float(text.replace("−", "-").replace(",", "")) for text in head.evaluate(column)]

    before = values()
    assert len(before) == LAYERS
    for order in (True, False):
        head.locator("button").click()
        assert values() == sorted(before, reverse=order)
    assert head.get_attribute("aria-sort") == "ascending" and not said


def test_pointer_and_arrow_keys_tell_a_layers_name_bytes_and_choice(browser: Any, odd: Path) -> None:
    page, said = opened(browser, odd, 400)
    strip, told = page.locator(".strip").first, page.locator("p.told").first
    strip.focus()
    page.keyboard.press("ArrowRight")
    first = told.text_content()
    assert "in<b>&$x$.weight: " in first and " B to " in first and "bits per value" in first
    page.keyboard.press("ArrowRight")
    assert told.text_content() != first
    page.locator("figure[data-pairs] svg image").first.hover(position={"x": 60, "y": 3})
    assert " and " in page.locator("figure output").text_content() and not said


def test_dark_pages_are_dark_and_paper_is_white(browser: Any, odd: Path) -> None:
    page, _ = opened(browser, odd, 400, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(media="print")
    assert page.evaluate(ground) == "rgb(255, 255, 255)" and sum(map(int, dark[4:-1].split(","))) < 100


def test_without_the_script_everything_is_there(browser: Any, deep: Path) -> None:
    page, _ = opened(browser, deep, 400, java_script_enabled=False)
    assert page.locator("tbody tr", has_text="encoder_block_").count() >= LAYERS
    assert page.locator(".strip i[title]").count() >= LAYERS


CONTRAST = """() => {
    const light = text => {
        const parts = text.match(/[\\d.]+/g).map(Number).slice(0, 3).map(value => value / 255)
            .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const ground = element => {
        for (let found = element; found; found = found.parentElement) {
            const color = getComputedStyle(found).backgroundColor;
            if (!/rgba\\(.*, 0(\\.\\d+)?\\)/.test(color) && color.startsWith('rgb')) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    return [...document.querySelectorAll('h1, h2, h3, p, td, th, li, .value')].filter(e => e.innerText).map(e => {
        const [one, other] = [light(getComputedStyle(e).color), light(ground(e))];
        return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), e.innerText.slice(0, 40)];
    }).filter(pair => pair[0] < 4.5);
}"""
"""Texts whose contrast is below 4.5, as WCAG 2 counts it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_readable(browser: Any, odd: Path, scheme: str) -> None:
    page, said = opened(browser, odd, 400, color_scheme=scheme)
    assert page.evaluate(CONTRAST) == [] and not said
    assert page.title() and page.evaluate("document.documentElement.lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(e => Number(e.tagName[1]))")
    assert levels[0] == 1 and all(below <= above + 1 for above, below in itertools.pairwise(levels))
    untold = "[...document.querySelectorAll('img')].filter(e => !e.alt).length"
    assert page.evaluate(untold) == 0
