"""What the report says, on the terminal and as HTML, compared with the result itself."""

from __future__ import annotations

import dataclasses
import html
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import qubo_compress as qc
from qubo_compress.comparison import Comparison, Estimate
from qubo_compress.compress import CompressionResult
from qubo_compress.report import facts, pictures, print_summary, verdict, write_report
from qubo_compress.report import front as front_of
from qubo_compress.report.html import page
from qubo_compress.report.page import table_html

MENU = qc.Menu(bits=(2, 4), sparsity=(0.0, 0.5), vector_bits=(16,))


class Odd(nn.Module):
    """Ordinary layers, a parameter of its own, an integer buffer, shared weights, and a name fit for HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("in<b>&$x$", nn.Linear(6, 16))
        self.norm = nn.BatchNorm1d(16)
        self.middle = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.middle.weight
        self.last = nn.Linear(16, 3)
        self.temperature = nn.Parameter(torch.ones(1))
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        first = self.get_submodule("in<b>&$x$")
        hidden = torch.relu(self.norm(first(x)))
        return self.last(self.again(torch.relu(self.middle(hidden)))) * self.temperature


def data(count: int = 40) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, 6, generator=generator), torch.arange(count) % 3)]


def compressed(**changes: Any) -> CompressionResult:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "budget": qc.Budget(ratio=2.0), "menu": MENU, "solver": "annealer", "time_limit": 0.3, "rounds": 1,
        "recover": True, "progress": False,
    }  # fmt: skip
    return qc.compress(Odd().eval(), data(), **{**settings, **changes})


@pytest.fixture(scope="module")
def result() -> CompressionResult:
    return compressed()


@pytest.fixture(scope="module")
def text(result: CompressionResult) -> str:
    return page(result, front_of.find_front(result, 0.05))


def plain(text: str) -> str:
    """The page's words without its tags."""
    return html.unescape(re.sub(r"<wbr>|<[^>]+>", "", text))


def printed(result: CompressionResult, width: int = 200) -> str:
    stream = io.StringIO()
    print_summary(result, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without pictures, which take most of the time."""
    for name in ("layers", "prediction", "trace", "interactions", "all_choices"):
        monkeypatch.setattr(pictures, name, lambda *_: b"")


# ------------------------------------------------------------------------------------------------ facts


def test_rows_are_the_plan(result: CompressionResult) -> None:
    rows = facts.group_rows(result)
    assert {row.name: row.choice for row in rows} == dict(result.plan.choices)
    assert sum(row.bytes for row in rows) + result.table.fixed_costs["bytes"] == result.plan.bytes
    kept = sum(item.nbytes for item in result.table.layout.kept)
    assert sum(row.original_bytes for row in rows) + kept == result.plan.original_bytes
    state = result.model.state_dict()
    for row in rows:
        if row.kind == "weight":
            assert row.zeros == pytest.approx(float((state[row.name] == 0).double().mean())), row.name
        expected = re.search(r"bits=(\d+)", row.choice)
        assert row.bits == (float(expected.group(1)) if expected else 32.0)


def test_the_round_taken_is_the_last_accepted_one(result: CompressionResult) -> None:
    assert facts.chosen_round(result).plan.choices == result.plan.choices


def test_bundles_keep_every_group_once(result: CompressionResult) -> None:
    rows = [
        facts.GroupRow(f"layer{n // 9}.weight[{n % 9}]", "weight", "keep", 32.0, 0.0, 4, 16 + n, 16, 0.5)
        for n in range(700)
    ]
    rows += [facts.GroupRow(f"layer{n}.bias", "bias", "keep", 32.0, None, 4, 16, 8, 0.25) for n in range(78)]
    for most, vectors_from in ((1000, 2000), (200, 2000), (48, 26), (5, 2)):
        bundles = facts.bundle(rows, most=most, vectors_from=vectors_from)
        assert len(bundles.labels) == len(bundles.members) <= most
        assert sorted(i for members in bundles.members for i in members) == list(range(len(rows)))
        assert bool(bundles.sentence) == (len(bundles.labels) < len(rows))
        joined = facts.bundled_rows(rows, bundles)
        assert sum(row.original_bytes for row in joined) == sum(row.original_bytes for row in rows)
        assert sum(row.groups for row in joined) == len(rows)
    assert "778 groups" in bundles.sentence


def test_joined_rows_average_by_value() -> None:
    rows = [
        facts.GroupRow("a[0]", "weight", "quantize(bits=2)", 2.0, 0.5, 30, 120, 8, 0.1),
        facts.GroupRow("a[1]", "weight", "quantize(bits=6)", 6.0, 0.1, 10, 40, 8, 0.2),
    ]
    row = facts.bundled_rows(rows, facts.bundle(rows, most=1, vectors_from=9))[0]
    assert (row.name, row.bits, row.zeros, row.bytes) == ("a", 3.0, pytest.approx(0.4), 16)
    assert row.choice == "1 × quantize(bits=2); 1 × quantize(bits=6)"
    assert row.alone == pytest.approx(0.3)


def test_interactions_add_up_to_the_prediction(result: CompressionResult) -> None:
    rows = facts.group_rows(result)
    bundles = facts.bundle(rows, most=4, vectors_from=2)
    between, is_gram = facts.bundled_factor(result, bundles) or (None, False)
    assert is_gram
    assert between is not None
    every, _ = facts.bundled_factor(result, facts.bundle(rows, most=99, vectors_from=99)) or (None, False)
    assert every is not None
    assert between.sum() == pytest.approx(every.sum(), rel=1e-9)
    pairs = 0.5 * (every.sum() - np.trace(every))
    predicted = result.table.predict(result.plan.choices)
    assert sum(row.alone for row in rows) + pairs == pytest.approx(predicted, rel=1e-6, abs=1e-9)


def test_kept_tensors_have_reasons(result: CompressionResult) -> None:
    found = {row.name: row.reason for row in facts.kept_rows(result)}
    assert "no operator" in found["temperature"]
    assert "int64" in found["steps"]
    kept = {name for name, choice in result.plan.choices.items() if choice == "keep"}
    assert set(found) == kept | {"temperature", "steps"}
    assert facts.shared_tensors(result) == (("again.weight", "middle.weight"),)


def test_group_without_any_choice_says_why(result: CompressionResult) -> None:
    only = compressed(menu=qc.Menu(bits=(2,), sparsity=(0.0,), vector_bits=()), budget=qc.Budget(ratio=1.5), rounds=0)
    reasons = {row.name: row.reason for row in facts.kept_rows(only)}
    assert "no choice of the menu suits it" in reasons["last.bias"]
    assert "bias" in reasons["last.bias"].split(":", 1)[1]


def test_solver_sentences(result: CompressionResult) -> None:
    said = " ".join(verdict.about_solver(result))
    assert verdict.SIMULATED in said
    assert "annealer" in said
    unbounded = dataclasses.replace(result, solution=dataclasses.replace(result.solution, bound=None))
    assert "no lower bound" in " ".join(verdict.about_solver(unbounded))
    energy = result.solution.energy
    loose = dataclasses.replace(result, solution=dataclasses.replace(result.solution, bound=energy - 0.25))
    assert "at most 0.25 from" in " ".join(verdict.about_solver(loose))
    proven = dataclasses.replace(result, solution=dataclasses.replace(result.solution, bound=energy))
    assert "proven optimal for the loss model" in " ".join(verdict.about_solver(proven))
    exact = dataclasses.replace(result, solution=dataclasses.replace(result.solution, solver="exact"))
    assert verdict.SIMULATED not in verdict.about_solver(exact)


# ---------------------------------------------------------------------------------------------- verdict


def told(
    result: CompressionResult, predicted: float, measured: Estimate, proven: bool = True, **changes: Any
) -> CompressionResult:
    """The result with one candidate only, whose prediction and measured divergence are given."""
    enough = {"rows": 200, "examples": 200, "lost": 2, "gained": 1}
    comparison = dataclasses.replace(result.applied_comparison, divergence=measured, **{**enough, **changes})
    candidate = dataclasses.replace(
        facts.chosen_round(result).candidates[0], predicted=predicted, comparison=comparison
    )
    turn = dataclasses.replace(result.rounds[0], candidates=(candidate,), winner=candidate.name, predicted=predicted)
    bound = predicted if proven else None
    return dataclasses.replace(
        result, rounds=(turn,), applied_comparison=comparison, recovery_kept=False,
        solution=dataclasses.replace(result.solution, energy=predicted, bound=bound),
    )  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_a_wrong_prediction_is_said_and_takes_the_proof_with_it(result: CompressionResult) -> None:
    wrong = told(result, 0.0027, Estimate(0.025, 0.004))
    said = " ".join(verdict.warnings(wrong))
    assert "the model predicted +0.0027, and held-out examples say +0.025 ± 0.0080: 9.26 times more" in said
    assert f"{result.table.provenance.examples} calibration examples; give more" in said
    proof = " ".join(verdict.about_solver(wrong))
    assert "is proven optimal for the loss model, which was off by a factor of 9.26 on held-out examples." in proof
    assert verdict.proof_text(wrong) == ("Proven best", "for a loss model off by a factor of 9.26")
    assert "9.26 times more" in printed(wrong, 1000)
    assert "9.26 times more" in plain(page(wrong, None))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("predicted", "mean", "error", "says"),
    [
        (-4.12, 1.2, 0.1, ""),  # no factor leads from a gain to a loss
        (0.5, 0.05, 0.02, "10 times less"),
        (0.01, 0.025, 0.004, None),  # 2.5 times, but not beyond the error
        (0.01, 0.1, 0.05, None),
        (0.02, 0.03, 0.0001, None),
        (1e-6, 9e-4, 1e-6, None),  # nobody would see such a divergence
        (0.01, 3.0, math.inf, None),  # one example
    ],
)
def test_only_what_the_error_does_not_explain_is_called_wrong(
    result: CompressionResult, predicted: float, mean: float, error: float, says: str | None
) -> None:
    made = told(result, predicted, Estimate(mean, error))
    said = verdict.warnings(made)
    assert bool(said) == (says is not None)
    assert ("Warning" in printed(made)) == bool(said)
    assert ("The predictions were wrong" in plain(page(made, None))) == bool(said)
    if says is not None:
        assert says in said[0]
        assert "was" in verdict.about_solver(made)[1] or "contradict" in " ".join(verdict.about_solver(made))


def test_the_solvers_plan_is_held_against_its_prediction_when_another_one_won(result: CompressionResult) -> None:
    made = told(result, 0.1, Estimate(0.1, 0.01))
    turn = made.rounds[0]
    solvers = dataclasses.replace(
        turn.candidates[0], also=(), predicted=-2.0,
        comparison=dataclasses.replace(turn.candidates[0].comparison, divergence=Estimate(3.0, 0.1)),
    )  # fmt: skip
    uniform = dataclasses.replace(turn.candidates[0], name="uniform", also=("additive",))
    both = dataclasses.replace(turn, candidates=(solvers, uniform), winner="uniform")
    said = " ".join(verdict.warnings(dataclasses.replace(made, rounds=(both,))))
    assert "For the solver's best plan the model predicted −2, and held-out examples say +3 ± 0.20." in said
    assert "For the plan taken" not in said
    rows = verdict.candidate_rows(dataclasses.replace(made, rounds=(both,)))
    assert [row[0] for row in rows] == ["solver", "taken: uniform = additive"]


@pytest.mark.usefixtures("undrawn")
def test_the_headline_is_measured_and_has_an_interval(result: CompressionResult) -> None:
    made = dataclasses.replace(
        told(result, 0.1, Estimate(0.1, 0.01)),
        before=dataclasses.replace(result.before, accuracy=0.93),
        compressed=dataclasses.replace(result.compressed, accuracy=0.925),
    )  # fmt: skip
    assert (
        "accuracy 93.0 % to 92.5 % on 200 held-out examples (−0.5 points, 95 % interval −2.7 to +1.7; "
        "2 right answers lost, 1 gained)" in verdict.headline(made)
    )
    assert "One example is 0.5 points of accuracy." in verdict.measured_sentences(made)
    words = plain(page(made, None))
    assert words.index("95 % interval") < words.index("Size of the file") < words.index("loss model")
    shown = printed(made, 1000)
    assert shown.index("95 % interval") < shown.index("predicted")


def test_many_rows_an_example_are_not_many_examples() -> None:
    even = Comparison(1.0, Estimate(0.0, 0.1), Estimate(0.0, 0.1), True, 30, 10, Estimate(-0.1, 0.05), 200, 10)
    low, high = verdict.accuracy_interval(even)
    assert (low, high) == (pytest.approx(-0.198, abs=1e-3), pytest.approx(-0.002, abs=1e-3))


def test_every_candidate_and_the_winner_are_named(result: CompressionResult, text: str) -> None:
    turn = facts.chosen_round(result)
    names = {name for candidate in turn.candidates for name in candidate.names}
    assert {"solver", "additive", "uniform", "greedy"} <= names
    for words in (plain(text), printed(result)):
        for candidate in turn.candidates:
            assert verdict.quoted(candidate) in words
        assert f"taken: {turn.winner}" in words
        assert "additive (the optimum without interactions), uniform (one choice for all groups), greedy" in " ".join(
            words.split()
        )


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kept", [True, False])
def test_the_report_says_whether_recovery_was_kept(result: CompressionResult, kept: bool) -> None:
    harmed = dataclasses.replace(result.applied_comparison, divergence=Estimate(9.0, 0.1))
    recovered = result.recovered_comparison if kept else harmed
    made = dataclasses.replace(result, recovery_kept=kept, recovered_comparison=recovered)
    said = verdict.recovery_sentence(made)
    assert said is not None
    assert ("was kept" in said, "did harm" in said) == (kept, not kept)
    assert said in plain(page(made, None)) and said[:40] in printed(made)
    assert ("recovered, not kept" in plain(page(made, None))) is not kept
    final = made.recovered if kept else made.compressed
    assert final is made.final
    assert f"to {facts.percent(final.accuracy)}" in verdict.headline(made)


@pytest.mark.parametrize(
    ("before", "after", "error", "harm"),
    [
        (0.5, 0.50001, 0.0, False),  # rounding
        (0.5, 0.51, 0.0, True),
        (0.5, 0.51, 0.01, False),  # two standard errors of both: 0.028
        (0.5, 0.54, 0.01, True),
        (0.5, math.inf, 0.01, True),
        (0.5, 0.9, math.inf, False),  # one example
    ],
)
def test_a_repair_that_changed_nothing_is_not_called_harmful(
    result: CompressionResult, before: float, after: float, error: float, harm: bool
) -> None:
    applied, recovered = (
        dataclasses.replace(result.applied_comparison, divergence=Estimate(mean, error)) for mean in (before, after)
    )
    made = dataclasses.replace(result, recovery_kept=False, applied_comparison=applied, recovered_comparison=recovered)
    said = verdict.recovery_sentence(made) or ""
    assert ("did harm" in said, "changed nothing worth keeping" in said) == (harm, not harm)
    assert said.endswith("The network returned is the plan as applied.")


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
    result: CompressionResult, changes: Mapping[str, Any], says: str | None
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
    result: CompressionResult, before: float, change: Estimate, says: str | None
) -> None:
    made = dataclasses.replace(
        told(result, 0.1, Estimate(0.1, 0.01), rows=0, examples=9, change=change),
        before=dataclasses.replace(result.before, loss=before, accuracy=math.nan),
    )
    said = " ".join(verdict.few_examples(made))
    assert (says or "") in said and bool(said) == (says is not None)


def test_the_report_says_how_far_pair_energies_were_believed(result: CompressionResult) -> None:
    provenance = dataclasses.replace(result.table.provenance, trust=0.25)
    made = dataclasses.replace(result, table=dataclasses.replace(result.table, provenance=provenance))
    said = " ".join(facts.about_calibration(made))
    assert "Pair energies were believed to 25 %, by how well one half of the examples predicts" in said
    alone = dataclasses.replace(made, table=dataclasses.replace(made.table, factor=None))
    assert "believed" not in " ".join(facts.about_calibration(alone))


@pytest.mark.usefixtures("undrawn")
def test_auto_says_why() -> None:
    found = compressed(solver="auto", rounds=0)
    assert found.solution.notes
    words = plain(page(found, None))
    for note in found.solution.notes:
        assert note[1:] in words


def test_front_skips_what_is_out_of_reach(result: CompressionResult) -> None:
    front = front_of.find_front(dataclasses.replace(result, budget=qc.Budget(ratio=60.0)), 0.05)
    assert not front.points
    assert [ratio for ratio, _ in front.missing] == pytest.approx([60.0 * factor for factor in front_of.FRONT_FACTORS])
    assert all("out of reach" in reason for _, reason in front.missing)
    assert "30 times smaller: out of reach" in plain(page(result, front))


@pytest.mark.usefixtures("undrawn")
def test_front_keeps_the_budgets_other_limits() -> None:
    free = compressed(rounds=0, recover=False)
    used = front_of.find_front(free, 0.3).points[0]
    costs = free.table.costs["macs"]
    fixed = free.table.fixed_costs.get("macs", 0)

    def macs(choices: Mapping[str, str]) -> int:
        return fixed + int(costs[facts.chosen_indices(free.table, choices)].sum())

    limit = macs(used.plan.choices) - 1
    tight = dataclasses.replace(free, budget=qc.Budget(ratio=2.0, macs=limit))
    front = front_of.find_front(tight, 0.3)
    assert front.points
    assert all(macs(point.plan.choices) <= limit for point in front.points)
    assert "The budget's limits on macs hold for them too." in plain(page(tight, front))
    assert "hold for them too" not in plain(page(free, front))


def test_front_names_the_limits_that_put_a_ratio_out_of_reach() -> None:
    problem = qc.ChoiceProblem(
        linear=np.zeros(2), group_offsets=np.array([0, 2]), costs=np.array([[10, 2], [3, 9]]), limits=np.array([5, 5]),
        budget_names=("bytes", "harmful_flips"),
    )  # fmt: skip
    assert front_of._out_of_reach(problem) == "out of reach together with the limits on harmful flips"
    assert front_of._out_of_reach(problem.with_limits([1, 5])) == "out of reach; the smallest reachable file is 2 B"


# ------------------------------------------------------------------------------------------------- HTML


def test_html_has_every_group_and_number(result: CompressionResult, text: str) -> None:
    words = plain(text)
    for row in facts.group_rows(result):
        assert row.name in words
        assert row.choice in words
        assert f"{row.bytes:,}" in words
    assert f"{result.plan.bytes:,}" in words
    assert f"{result.plan.original_bytes:,}" in words
    assert facts.number(result.before.loss) in words
    assert result.recovered is not None
    assert facts.number(result.recovered.loss) in words
    assert facts.signed(result.plan.predicted_loss) in words
    said = (facts.SPEED, *verdict.about_solver(result), *facts.about_calibration(result))
    for sentence in (*said, *verdict.measured_sentences(result), *verdict.warnings(result)):
        assert sentence in words
    for row in facts.kept_rows(result):
        assert row.reason in words
    assert "again.weight is middle.weight" in words


def test_html_needs_nothing_else(text: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|url\(", text, re.IGNORECASE)
    sources = re.findall(r'src="([^"]{0,40})', text)
    assert len(sources) >= 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)


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


def test_results_without_labels_recovery_or_factor(tmp_path: Path) -> None:
    unlabelled = [data()[0][0]]
    found = qc.compress(
        Odd().eval(),
        unlabelled,
        qc.Budget(ratio=2),
        menu=MENU,
        loss="kl",
        solver="greedy",
        recover=False,
        progress=False,
    )
    assert math.isnan(found.before.accuracy)
    assert "nan" not in plain(page(found, None))
    separable = compressed(metric="magnitude", rounds=0, recover=False)
    assert pictures.interactions(separable) is None
    assert "no cross terms" in plain(page(separable, None))
    assert "No recovery was asked for" in plain(page(separable, None))
    pairs = compressed(metric="pairwise", rounds=0, recover=False, menu=qc.Menu(bits=(2,), sparsity=(0.0,)))
    assert pictures.interactions(pairs) is not None
    assert "pair by pair" in plain(page(pairs, None))


@pytest.mark.usefixtures("undrawn")
def test_filters_are_joined() -> None:
    found = compressed(groups="filter", rounds=0, recover=False)
    words = plain(page(found, None))
    assert "joined to one row" in words, "pictures show layers"
    for row in facts.group_rows(found):
        assert row.name in words, "so few groups fit the table"


# ----------------------------------------------------------------------------------------- other media


def test_pictures_are_images_and_leave_matplotlib_alone(result: CompressionResult) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    front = front_of.find_front(result, 0.05)
    for draw in (pictures.layers, pictures.prediction, pictures.interactions, pictures.all_choices, pictures.trace):
        assert (draw(result) or b"").lstrip().startswith(b"<?xml"), draw.__name__
    assert (pictures.layers(result, "png") or b"").startswith(b"\x89PNG")
    assert pictures.pareto_front(result, front) is not None
    assert pictures.pareto_front(result, front.points, "png") is not None
    assert pictures.pareto_front(result, ()) is None
    assert dict(mpl.rcParams) == before


def test_terminal(result: CompressionResult) -> None:
    words = printed(result)
    for row in facts.group_rows(result):
        assert row.name in words
    for part in (f"{result.plan.bytes:,}", "recovered", "temperature", verdict.SIMULATED, facts.SPEED[:60]):
        assert part in words
    assert verdict.headline(result) in words


def test_terminal_is_no_wider_than_it_may(result: CompressionResult) -> None:
    assert max(len(line) for line in printed(result, width=80).splitlines()) <= 80


def test_long_names_are_shortened_in_the_middle() -> None:
    assert pictures.short("a" * 50, 11) == "aaaaa…aaaaa"
    assert pictures.short("x$y$") == r"x\$y\$"
