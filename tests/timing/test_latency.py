"""Latency tables: fitted to a clock that counts work, saved, refused when damaged, and kept as a budget."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import qubo_compress as qc
from qubo_compress._internal.checked_json import with_checksum
from qubo_compress.errors import CorruptArtifact, InvalidBudget, InvalidMenu, InvalidModel, InvalidOption, UnknownName
from qubo_compress.report.facts import budget_rows, budget_text
from qubo_compress.timing.runtimes import Stopwatch
from qubo_compress.timing.tables import fitted

MENU = qc.Menu(["quantize(bits=4)", "quantize(bits=8)", "quantize(bits=8,activations=8)"])


class Work(TorchDispatchMode):
    """A clock that stands still but for the values that operations make: a microsecond each."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **dict(kwargs or {}))
        self.seconds += 1e-6 * sum(t.numel() for t in (made if isinstance(made, tuple) else (made,)) if _real(t))
        return made

    def __call__(self) -> float:
        return self.seconds


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    ).eval()


INPUTS = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4) % 5


@pytest.fixture(scope="module")
def table() -> qc.LatencyTable:
    with Work() as clock:
        return qc.latency_table(_net(), INPUTS, MENU, "torch", runs=2, clock=clock)


@pytest.fixture(scope="module")
def measured() -> qc.SensitivityTable:
    return qc.measure(_net(), [(INPUTS, LABELS)], menu=MENU, progress=False, metric="gauss-newton")


def test_predictions_are_the_work_that_the_clock_counts(table: qc.LatencyTable) -> None:
    net, names = _net(), list(table.layers)
    assert names == ["0.weight", "2.weight", "5.weight"] and table.error < 0.02
    for group in names:
        offered = table.layers[group]
        assert offered["quantize(bits=8)"] == pytest.approx(offered["keep"], rel=0.05, abs=0.02)
        assert offered["quantize(bits=8,activations=8)"] > offered["keep"]
    with Work() as clock:
        plain = qc.measure(net, [(INPUTS, LABELS)], menu=MENU, progress=False).plan({}).apply(net)
        found = qc.measured_latency(plain, INPUTS, "torch", runs=2, clock=clock)
    assert table.predicted({}) == pytest.approx(found, rel=0.05)


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.floats(0, 5), st.integers(0, 1000))
def test_the_fit_finds_the_rest_and_a_factor_for_every_form(factors: list[float], rest: float, seed: int) -> None:
    drawn = np.random.default_rng(seed).uniform(0.5, 2.0, (8, 3))
    sums = [dict(zip("abc", row, strict=True)) for row in drawn.tolist()]
    found, by_form = fitted(sums, (rest + drawn @ np.array(factors)).tolist())
    assert found == pytest.approx(rest, abs=1e-6)
    assert [by_form[name] for name in "abc"] == pytest.approx(factors, rel=1e-6)


def test_a_table_that_misses_its_own_networks_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = iter([1.0, 3.0] * 50)
    monkeypatch.setattr(Stopwatch, "least_of_turns", lambda self, runs: [next(factors) for _ in runs])
    with pytest.warns(UserWarning, match="poor.*corrected"):
        found = qc.latency_table(_net(), INPUTS, MENU, "torch", runs=1, clock=Work())
    assert found.margin > 0.3


def test_a_corrected_table_predicts_the_measured_network_and_keeps_all_proportions(table: qc.LatencyTable) -> None:
    plan = {group: list(offered)[-1] for group, offered in table.layers.items()}
    corrected = table.corrected(plan, 1.5 * table.predicted(plan))
    assert corrected.margin == pytest.approx(0.0)
    for other in (plan, {}):
        assert corrected.predicted(other) == pytest.approx(1.5 * table.predicted(other))
    assert corrected.sizes == table.sizes


@pytest.mark.parametrize("measured", [0.0, -1.0, float("nan"), float("inf")])
def test_no_table_is_corrected_by_what_is_no_time(table: qc.LatencyTable, measured: float) -> None:
    with pytest.raises(InvalidBudget, match="measured"):
        table.corrected({}, measured)


def test_a_table_is_saved_and_read_back(table: qc.LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "times.json")
    assert qc.LatencyTable.load(tmp_path / "times.json") == table


def _damaged() -> Iterator[tuple[str, Any]]:
    yield "rest", float("nan")
    yield "rest", -1.0
    yield "rest", True
    yield "threads", 0
    yield "threads", "1"
    yield "layers", {"w": {"keep": "fast"}}
    yield "layers", {"w": 3}
    yield "layers", [1]
    yield "anchors", [[1.0]]
    yield "anchors", [[1.0, 0.0]]
    yield "anchors", [[1e-300, 1e7]]
    yield "sizes", {"w": -1}
    yield "sizes", [3]
    yield "untimed", [3]
    yield "runtime", None
    yield "format", "another"
    yield "more", 1


@pytest.mark.parametrize(("name", "value"), list(_damaged()))
def test_files_that_are_no_tables_are_refused(table: qc.LatencyTable, tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "times.json"
    table.save(path)
    values = json.loads(path.read_bytes())
    del values["checksum"]
    path.write_bytes(with_checksum({**values, name: value}))
    with pytest.raises(CorruptArtifact):
        qc.LatencyTable.load(path)


def test_an_altered_file_is_refused(table: qc.LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    table.save(path)
    path.write_bytes(path.read_bytes().replace(b'"threads": 1', b'"threads": 2'))
    with pytest.raises(CorruptArtifact, match="checksum"):
        qc.LatencyTable.load(path)


def test_plans_keep_within_the_milliseconds(table: qc.LatencyTable, measured: qc.SensitivityTable) -> None:
    fastest = table.predicted(
        {group: min(times, key=lambda name: times[name]) for group, times in table.layers.items()}
    )
    slowest = table.predicted(dict.fromkeys(table.layers, "quantize(bits=8,activations=8)"))
    limit = (1 + table.margin) * (0.5 * fastest + 0.5 * slowest)
    budget = qc.Budget(ratio=1.0, latency_ms=limit, latency=table)
    problem = measured.problem(budget)
    assert problem.budget_names == ("bytes", "latency_ns")
    solution = qc.solve(problem, time_limit=1)
    assert table.predicted(solution.choices) * (1 + table.margin) <= limit + 1e-6
    assert budget_text(budget) == f"ratio 1, {limit:g} ms"


def test_a_limit_out_of_reach_is_refused_before_any_choice_is_encoded(
    table: qc.LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring = importlib.import_module("qubo_compress.sensitivity.measure")  # the package names a function so
    monkeypatch.setattr(measuring, "price_choices", lambda *_: pytest.fail("it was encoded"))
    budget = qc.Budget(ratio=1.0, latency_ms=1e-6, latency=table)
    with pytest.raises(qc.QuboCompressError, match=r"allows 1e-06 ms of latency, .* raise the budget to at least \d"):
        qc.compress(_net(), [(INPUTS, LABELS)], budget, menu=MENU, progress=False)


def test_compress_says_what_it_predicts(table: qc.LatencyTable) -> None:
    budget = qc.Budget(ratio=2.0, latency_ms=1.2 * table.predicted({}), latency=table)
    data = [(INPUTS.repeat(8, 1, 1, 1), LABELS.repeat(8))]
    found = qc.compress(_net(), data, budget, menu=MENU, progress=False, time_limit=1)
    rows = {name: (limit, used) for name, limit, used in budget_rows(found)}
    assert rows["latency_ns"][1] <= rows["latency_ns"][0]
    assert found.predicted_latency == pytest.approx(table.predicted(found.plan.choices))


@pytest.mark.parametrize(
    "given",
    [
        {"latency_ms": 3.0},
        {"latency_ms": -1.0},
        {"latency_ms": 2.0**53},
        {"latency_ms": "3"},
        {"latency": {"rest": 1.0}},
    ],
)
def test_half_a_limit_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidBudget):
        qc.Budget(ratio=2.0, **given)


def test_tables_of_other_networks_and_menus_are_refused(table: qc.LatencyTable, measured: qc.SensitivityTable) -> None:
    budget = qc.Budget(ratio=1.0, latency_ms=1e3, latency=table)
    other = nn.Sequential(nn.Linear(4, 5))
    data = [(torch.randn(8, 4), torch.arange(8) % 5)]
    with pytest.raises(InvalidBudget, match="this network"):
        qc.measure(other, data, menu=MENU, progress=False).problem(budget)
    wide = qc.measure(_net(), [(INPUTS, LABELS)], menu=qc.Menu(["quantize(bits=5)"]), progress=False)
    with pytest.raises(InvalidBudget, match="quantize\\(bits=5\\)"):
        wide.problem(budget)
    assert measured.problem(qc.Budget(ratio=1.0)).budget_names == ("bytes",)


def test_a_table_of_a_network_with_the_same_names_is_refused(table: qc.LatencyTable) -> None:
    wider = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    budget = qc.Budget(ratio=1.0, latency_ms=1e3, latency=table)
    found = qc.measure(wider, [(INPUTS, LABELS)], menu=MENU, progress=False, metric="gauss-newton")
    with pytest.raises(InvalidBudget, match=r"0\.weight has 216 weights; this one's has 432"):
        found.problem(budget)


def test_limits_of_milliseconds_are_finite_and_can_be_keys(table: qc.LatencyTable) -> None:
    budget = qc.Budget(ratio=1.0, latency_ms=1e3, latency=table)
    assert len({budget, qc.Budget(ratio=1.0, latency_ms=1e3, latency=table)}) == 1
    with pytest.raises(InvalidBudget, match="at most 1e"):
        qc.Budget(ratio=1.0, latency_ms=2.0**53, latency=table)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_both_runtimes_are_timed(runtime: str) -> None:
    ticks = iter(range(1_000_000))
    net = nn.Sequential(nn.Linear(8, 4)).eval()
    menu = qc.Menu(["quantize(bits=8,activations=8)"])
    found = qc.latency_table(net, torch.randn(2, 8), menu, runtime, runs=1, mixed=0, clock=lambda: float(next(ticks)))
    assert found.runtime == runtime and found.version and found.processor and found.batch == 2
    # Every run takes one tick, a second.
    assert found.predicted({}) == pytest.approx(1e3, rel=1e-3) and found.error < 1e-3


@pytest.mark.parametrize(
    ("error", "options", "make"),
    [
        (UnknownName, {"runtime": "tensorrt"}, _net),
        (InvalidOption, {"threads": 0}, _net),
        (InvalidMenu, {"groups": "filter"}, _net),
        (InvalidModel, {}, lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))),
    ],
)
def test_what_cannot_be_timed_is_refused(
    error: type[Exception], options: dict[str, Any], make: Callable[[], nn.Module]
) -> None:
    with pytest.raises(error):
        qc.latency_table(make(), INPUTS, MENU, **{"runtime": "torch", **options})
