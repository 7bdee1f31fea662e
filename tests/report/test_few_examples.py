"""What the report says of the examples: too few to tell plans apart, or too few to believe pair energies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from qubo_compress.pipeline.compress import CompressionResult
from qubo_compress.report import facts, verdict
from qubo_compress.report.html import page
from qubo_compress.selection.comparison import Estimate


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"rows": 8, "examples": 8, "lost": 1, "gained": 0},
            "8 held-out examples cannot tell a good plan from a poor one: the 95 % interval of the accuracy's change "
            "is 67 points wide. Give more calibration examples, or validation=.",
        ),
        ({"rows": 29, "examples": 29, "lost": 0, "gained": 0}, "29 held-out examples cannot tell"),
        ({"rows": 40, "examples": 40, "lost": 12, "gained": 10}, "40 held-out examples cannot tell"),
        ({"rows": 40, "examples": 40, "lost": 1, "gained": 1}, None),
        ({"rows": 1, "examples": 1, "lost": 0, "gained": 0}, "1 held-out example alone cannot tell"),
        # Many rows an example: the examples are what differs.
        ({"rows": 9000, "examples": 9, "accuracy": Estimate(-0.1, 0.2)}, "9 held-out examples cannot tell"),
        ({"rows": 9000, "examples": 9, "accuracy": Estimate(-0.1, 0.01)}, None),
    ],
)
def test_too_few_held_out_examples_are_said(
    result: CompressionResult,
    changes: Mapping[str, Any],
    says: str | None,
    printed: Callable[..., str],
    plain: Callable[[str], str],
    told: Callable[..., CompressionResult],
) -> None:
    made = told(result, 0.1, Estimate(0.1, 0.01), **changes)
    said = " ".join(verdict.few_examples(made))
    assert (says or "") in said and bool(said) == (says is not None)
    assert ("Warning" in printed(made)) == bool(said)
    words = plain(page(made, None))
    assert ("Too few held-out examples" in words) == bool(said) and said in words
    own = verdict.few_examples(dataclasses.replace(made, held_out_is_validation=True))
    assert not own or own[0].endswith("Give more validation examples.")


@pytest.mark.parametrize(
    ("before", "change", "says"),
    [
        (2.0, Estimate(0.1, 0.01), None),
        (2.0, Estimate(0.1, 0.15), "the loss changed by +0.1 ± 0.30, from 2"),
        (0.0, Estimate(0.5, 0.1), None),  # "kl" has nothing to compare with but the change itself
        (0.0, Estimate(0.5, 0.2), "the loss changed by +0.5 ± 0.40, from 0"),
        (0.0, Estimate(1e-4, 1e-4), None),  # nobody would see it
        (2.0, Estimate(0.1, math.inf), "the change of its loss says nothing about others"),
        (2.0, Estimate(math.inf, math.inf), None),
    ],
)
def test_an_unclear_change_of_the_loss_is_said(
    result: CompressionResult, before: float, change: Estimate, says: str | None, told: Callable[..., CompressionResult]
) -> None:
    made = dataclasses.replace(
        told(result, 0.1, Estimate(0.1, 0.01), rows=0, examples=9, change=change),
        before=dataclasses.replace(result.before, loss=before, accuracy=math.nan),
    )
    said = " ".join(verdict.few_examples(made))
    assert (says or "") in said and bool(said) == (says is not None)


def test_the_report_says_how_far_pair_energies_were_trusted(result: CompressionResult) -> None:
    provenance = dataclasses.replace(result.table.provenance, trust=0.25)
    made = dataclasses.replace(result, table=dataclasses.replace(result.table, provenance=provenance))
    said = " ".join(facts.about_calibration(made))
    assert "What two choices cost together counts 25 % of the measured value" in said
    alone = dataclasses.replace(made, table=dataclasses.replace(made.table, factor=None))
    assert "cost together counts" not in " ".join(facts.about_calibration(alone))
