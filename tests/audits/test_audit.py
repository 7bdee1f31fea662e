"""What the audit counts."""

from __future__ import annotations

import json
import math

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from qubo_compress.audits import audit
from qubo_compress.calibration.intervals import paired_change, wilson
from qubo_compress.errors import InvalidBatches


class Fixed(nn.Module):
    """Answers with the columns of its own scores that the input names."""

    def __init__(self, answers: list[int], classes: int = 3) -> None:
        super().__init__()
        self.scores = nn.Parameter(4.0 * nn.functional.one_hot(torch.tensor(answers), classes).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.scores[x[:, 0].long()]


LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
INPUTS = torch.arange(6.0).reshape(6, 1)
MODEL = Fixed([0, 0, 1, 1, 2, 0])  # the last one wrong
SMALL = Fixed([0, 1, 1, 1, 1, 2])  # two harmful flips, one repaired


def test_counts() -> None:
    report = audit(MODEL, SMALL, [(INPUTS[:4], LABELS[:4]), (INPUTS[4:], LABELS[4:])])
    assert (report.examples, report.rows, report.mismatches) == (6, 6, 3)
    assert (report.harmful, report.repaired) == (2, 1)
    assert report.agreement == pytest.approx(0.5)
    assert report.accuracy_before == pytest.approx(5 / 6)
    assert report.accuracy_after == pytest.approx(4 / 6)
    assert report.accuracy_interval == wilson(4, 6)
    assert report.accuracy_change_interval == paired_change(2, 1, 6)
    assert [(c.label, c.before, c.after) for c in report.classes] == [(0, 1.0, 0.5), (1, 1.0, 1.0), (2, 0.5, 0.5)]
    assert report.classes[0].change == pytest.approx(-0.5)
    assert report.loss_before is not None
    assert report.loss_after is not None
    assert report.loss_after > report.loss_before


def test_same_network_differs_nowhere() -> None:
    report = audit(MODEL, MODEL, [(INPUTS, LABELS)])
    assert report.mismatches == report.harmful == report.repaired == 0
    assert report.agreement == 1.0
    assert report.divergence == pytest.approx(0.0, abs=1e-7)


def test_divergence_is_the_mean_over_examples() -> None:
    report = audit(MODEL, SMALL, [INPUTS])
    before, after = MODEL(INPUTS).log_softmax(-1), SMALL(INPUTS).log_softmax(-1)
    expected = (before.exp() * (before - after)).sum(-1).mean()
    assert report.divergence == pytest.approx(float(expected.detach()), rel=1e-6)


def test_without_labels_only_agreement_and_divergence() -> None:
    report = audit(MODEL, SMALL, [INPUTS])
    assert report.mismatches == 3
    assert report.accuracy_before is report.accuracy_after is report.loss_before is report.harmful is None
    assert report.classes == ()
    _printed(report.table())


def test_ignored_labels_do_not_count() -> None:
    labels = torch.where(torch.arange(6) < 2, -100, LABELS)
    report = audit(MODEL, SMALL, [(INPUTS, labels)])
    assert report.accuracy_before == pytest.approx(3 / 4)
    assert (report.mismatches, report.harmful, report.repaired) == (3, 1, 1)
    assert [c.label for c in report.classes] == [1, 2]
    with pytest.raises(InvalidBatches, match="ignored"):
        audit(MODEL, SMALL, [(INPUTS, torch.full((6,), -100))])


def test_outputs_with_positions() -> None:
    model = nn.Conv1d(2, 3, 1)
    report = audit(model, model, [(torch.randn(4, 2, 5), torch.randint(3, (4, 5)))])
    assert (report.examples, report.rows, report.mismatches) == (4, 20, 0)


def test_answers_of_one_example_are_not_many_examples() -> None:
    """Every example's answers are lost together, or gained together: two of four kept, one lost, one gained."""
    before, after = torch.zeros(4, 5), torch.zeros(4, 5)
    before[2], after[3] = 1, 1
    labels = torch.where(torch.arange(4)[:, None] < 2, 0, 1).repeat(1, 5)

    class Rows(nn.Module):
        def __init__(self, answers: Tensor) -> None:
            super().__init__()
            self.scores = nn.Parameter(4.0 * nn.functional.one_hot(answers.long(), 2).float())

        def forward(self, x: Tensor) -> Tensor:
            return self.scores[x[:, 0].long()].movedim(-1, 1)

    numbers = torch.arange(4.0).reshape(4, 1)
    report = audit(Rows(before), Rows(after), [(numbers[:3], labels[:3]), (numbers[3:], labels[3:])])
    assert (report.rows, report.harmful, report.repaired) == (20, 5, 5) and report.accuracy_change_interval is not None
    low, high = report.accuracy_change_interval
    assert high == -low == pytest.approx(1.96 * math.sqrt(50 * 4 / 3) / 20, rel=1e-3)


def test_models_are_left_in_their_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).train()
    audit(model, model, [torch.randn(4, 2)])
    assert model.training
    assert model[1].training


def test_dictionary_is_plain_and_table_prints() -> None:
    report = audit(MODEL, SMALL, [(INPUTS, LABELS)])
    found = json.loads(json.dumps(report.to_dict()))
    assert found["harmful"] == 2
    assert found["classes"][0]["change"] == pytest.approx(-0.5)
    text = _printed(report.table())
    low, high = (100 * end for end in paired_change(2, 1, 6))
    assert f"{low:+.1f} to {high:+.1f}" in next(line for line in text.splitlines() if "accuracy" in line)
    for part in ("83.33 %", "66.67 %", "  harmful ", "  gained ", "class 0 (2 examples)", "50.00 %"):
        assert part in text
    assert text.index("class 0") < text.index("class 1"), "the class that lost most comes first"


@pytest.mark.parametrize(("right", "total"), [(0, 5), (5, 5), (3, 7), (500, 1000)])
def test_wilson_holds_the_share(right: int, total: int) -> None:
    low, high = wilson(right, total)
    assert 0.0 <= low <= right / total <= high <= 1.0
    assert wilson(right * 10, total * 10)[1] - wilson(right * 10, total * 10)[0] < high - low


def test_wilson_known_value() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998
    assert wilson(0, 0) == (0.0, 1.0)


def _printed(table: object) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    return console.export_text()


def test_a_report_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    report = audit(MODEL, SMALL, [(INPUTS, LABELS)])
    text = str(report)
    assert "mismatches" in text and "harmful: right before, wrong after" in " ".join(text.split())
    assert "class 0 (2 examples)" in text and "\x1b" not in text
    report.show()
    assert "class 0 (2 examples)" in capsys.readouterr().out
    assert repr(report) == f"AuditReport(examples=6, mismatches=3, harmful=2, divergence={report.divergence:.4g})"
    assert "harmful:" not in str(audit(MODEL, SMALL, [INPUTS]))  # nobody knows without labels
