"""The report as one HTML file."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.page import numbers
from qubo_compress.page.html import table_html
from qubo_compress.page.script import POLICY, SCRIPT
from qubo_compress.page.style import COLOURS
from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import facts, pictures, verdict, write_report
from qubo_compress.report.html import page
from qubo_compress.report.pictures import interactions


def test_html_has_every_group_and_number(result: CompressionResult, text: str, plain: Callable[[str], str]) -> None:
    words = plain(text)
    for row in facts.group_rows(result):
        assert row.name in words
        assert row.choice in words
        assert f"{row.bytes:,}" in words
    assert f"{result.plan.bytes:,}" in words
    assert f"{result.plan.original_bytes:,}" in words
    assert numbers.number(result.before.loss) in words
    assert result.recovered is not None
    assert numbers.number(result.recovered.loss) in words
    assert numbers.signed(result.plan.predicted_loss) in words
    said = (facts.SPEED, *verdict.about_solver(result), *facts.about_calibration(result))
    for sentence in (*said, *verdict.measured_sentences(result), *verdict.warnings(result)):
        assert sentence in words
    for row in facts.kept_rows(result):
        assert row.reason in words
    assert "again.weight is middle.weight" in words


def test_html_needs_nothing_else(text: str) -> None:
    assert text.count("<script>") == 1 and f"<script>{SCRIPT}</script>" in text
    assert POLICY in text and "default-src 'none'" in POLICY
    without = text.replace(SCRIPT, "")
    assert not re.search(r"https?:|//[a-z]|@import|<script |<link|<img|url\((?!#)", without, re.IGNORECASE)
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in re.findall(r'href="([^"]{0,40})', text))


def test_pictures_take_the_colours_of_the_page_and_have_alternative_text(text: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    drawn = [picture for picture in pictures if 'aria-hidden="true"' not in picture]
    assert len(drawn) == 5
    for picture in pictures:
        assert not re.search("|".join(COLOURS), picture), "a colour that dark pages cannot change"
    for picture in drawn:
        assert re.match(r'<svg [^>]*role="img" aria-label="[a-z]', picture)
        identifiers = set(re.findall(r'id="([^"]+)', picture))
        assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", picture)) <= identifiers


def test_points_tell_what_they_are(result: CompressionResult, text: str) -> None:
    told = pictures.told_by_plans(result)
    assert told and all(f"<title>{html.escape(line, quote=False)}</title>" in text for line in told)


def test_html_escapes_names(text: str) -> None:
    assert "in<b>" not in text
    assert "in&lt;b&gt;&amp;$x$.weight" in text


def test_lines_break_between_choices_and_never_inside_an_entity() -> None:
    shown = table_html(["choice"], [["1 × a<b (bits=2,sparsity=0); 2 × it's & more"]])
    assert "1&nbsp;×&nbsp;a&lt;b (bits=2,<wbr>sparsity=0)<br>2&nbsp;×&nbsp;it&#x27;s &amp; more</td>" in shown
    assert "a&lt; bits=2 &amp; more</td>" in table_html(["choice"], [["a< bits=2 & more"]])


def test_html_tags_are_balanced(text: str) -> None:
    for tag in ("table", "section", "div", "figure", "ul", "tr", "td", "tbody"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag


def test_report_is_written_through_the_result(result: CompressionResult, tmp_path: Path) -> None:
    path = write_report(result, tmp_path / "deep" / "report.html", seconds_per_point=0)
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert "Smaller or larger" not in path.read_text()
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


@pytest.mark.usefixtures("undrawn")
def test_results_without_labels_recovery_or_factor(
    odd: tuple[nn.Module, list[tuple[Tensor, Tensor]]],
    compressed: Callable[..., CompressionResult],
    plain: Callable[[str], str],
) -> None:
    model, batches = odd
    found = qc.compress(
        model, [batches[0][0]], qc.Budget(ratio=2), menu=qc.Menu(bits=(2, 4)), loss="kl", solver="greedy",
        recover=False, progress=False,
    )  # fmt: skip
    assert math.isnan(found.before.accuracy)
    assert "nan" not in plain(page(found, None))
    separable = compressed(metric="magnitude", rounds=0, recover=False)
    assert interactions(separable) is None
    assert "no cross terms" in plain(page(separable, None))
    assert "No repair was asked for" in plain(page(separable, None))
    pairs = compressed(metric="pairwise", rounds=0, recover=False, menu=qc.Menu(bits=(2,), sparsity=(0.0,)))
    assert interactions(pairs) is not None
    assert "pair by pair" in plain(page(pairs, None))


@pytest.mark.usefixtures("undrawn")
def test_filters_are_joined(compressed: Callable[..., CompressionResult], plain: Callable[[str], str]) -> None:
    found = compressed(groups="filter", rounds=0, recover=False)
    words = plain(page(found, None))
    assert "joined into one row" in words, "pictures show layers"
    for row in facts.group_rows(found):
        assert row.name in words, "so few groups fit the table"
