"""The demo counts what it says, chooses its ratio by its rule, and is never silent where no bars show."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

import qubo_compress as qc
from benchmarks.demo import Contender, ratio_where_choosing_matters
from benchmarks.demo.alive import Alive
from benchmarks.demo.comparison import answers_of, contender, divergence, labels_of
from benchmarks.demo.screen import draw, row_of


def test_answers_are_counted_against_the_original_and_the_labels() -> None:
    labels, original = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 1, 2, 0, 0])
    one = contender("ours", 10, torch.tensor([0, 1, 0, 3, 1]), original, labels)
    assert (one.right, one.lost, one.gained, one.flips, one.examples) == (3, 1, 1, 3, 5)
    assert one.accuracy == pytest.approx(60.0) and one.change[0] == 0 and one.flipped[0] == pytest.approx(60.0)
    assert one.change[1] < 0 < one.change[2] and one.flipped[1] < 60 < one.flipped[2]
    assert row_of(one)[:3] == ("ours", "10", "60.0 %")


def test_the_ratio_is_the_first_at_which_uniform_loses_enough() -> None:
    network = qc.example_network()
    few = qc.ExampleNetwork(network.model, network.calibration[:1], network.validation[:1], network.test[:1])
    table = qc.measure(few.model, few.calibration, metric="magnitude", progress=False)
    told: list[str] = []
    tried = ratio_where_choosing_matters(few, table, told.append, ratios=(4, 15, 16), lost=5.0)
    assert [one.ratio for one in tried] == [4, 15] and tried[0].lost < 5 <= tried[1].lost
    assert len(told) == 2 and "15x: uniform loses" in told[1]
    plan = table.plan(qc.solve(table.problem(qc.Budget(ratio=15)), "uniform"))
    small = qc.recover(plan.apply(few.model), few.calibration, few.model, progress=False)
    right = [(answers_of(net, few.calibration) == labels_of(few.calibration)).sum() for net in (few.model, small)]
    assert tried[1].lost == pytest.approx(100 * float(right[0] - right[1]) / 100)
    assert divergence(few.model, few.model, few.test) == pytest.approx(0, abs=1e-6)
    assert divergence(few.model, small, few.test) > 0.01


def test_piped_output_has_a_line_for_every_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 10.0, 17.0])
    written = io.StringIO()
    alive = Alive(Console(file=written), seconds=1e6, clock=lambda: next(times))
    with alive:
        alive.step("measuring")
        alive.tell()
    assert written.getvalue().splitlines() == ["measuring ...", "  7 s: measuring"]
    terminal = io.StringIO()
    Alive(Console(file=terminal, force_terminal=True), clock=lambda: 0.0).tell()
    assert terminal.getvalue() == ""


def test_the_picture_shows_one_network_or_several(tmp_path) -> None:
    contenders = [Contender(name, 10, 80, 5, 2, 8, 100) for name in ("original", "uniform", "additive", "ours")]
    for networks in ([contenders], [contenders] * 5):
        draw(networks, tmp_path / "demo.png")
        assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
