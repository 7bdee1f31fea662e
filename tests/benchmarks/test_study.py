"""A study makes each record once, says so on the command line, and its tables are of its records."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.records import RESULTS, means, newest, read, table
from benchmarks.study import Option, Options, Study, command_line, grid

STUDIES = ("accelerator", "entropy_coding", "long_tail", "low_rank", "rounding", "shrinkage", "unreliable_storage",
           "whole", "woodfisher", "choices", "frequency", "ratios")  # fmt: skip


class Colours:
    """A study of two steps that counts what it measures."""

    def __init__(self, path: Path) -> None:
        self.study = Study(
            "Which colour?", "colours", report="colours_{network}", field="step", network="net", ratios=[2.0]
        )
        self.study.path, self.measured = path, []

        @self.study.step(lambda o: grid(network=[o.network], ratio=o.ratios))
        def losses(options: Options, network: str, ratio: float) -> dict[str, Any]:
            self.measured.append(ratio)
            return {"loss": 1 / ratio}

        @self.study.step(lambda o: grid(ratio=o.ratios), again=True, name="sizes")
        def sizes_of_all(options: Options, ratio: float) -> Any:
            return None if ratio > 5 else iter([{"size": 1}, {"size": 2}])

        @self.study.table
        def tables(options: Options) -> str:
            return table(self.study.records("losses"), {"ratio": "{ratio:g}x", "loss": "{loss:.2f}"})


@pytest.fixture
def colours(tmp_path: Path) -> Colours:
    return Colours(tmp_path / "colours.jsonl")


def test_what_is_on_record_is_not_measured_again_unless_asked_for(colours: Colours) -> None:
    colours.study.main(["losses", "--ratios", "2", "4"])
    colours.study.main(["losses", "--ratios", "4", "8"])
    assert colours.measured == [2.0, 4.0, 8.0]
    colours.study.main(["losses", "--ratios", "8", "--again"])
    assert colours.measured == [2.0, 4.0, 8.0, 8.0]
    assert len(newest(colours.study.records("losses"), "ratio")) == 3


def test_a_step_may_give_several_records_or_none(colours: Colours) -> None:
    colours.study.main(["sizes", "--ratios", "3", "6"])
    assert [(r["ratio"], r["size"]) for r in colours.study.records("sizes")] == [(3.0, 1), (3.0, 2)]
    assert {"commit", "torch", "cpu"} <= set(next(iter(read(colours.study.path))))


def test_all_steps_run_where_none_is_named_and_none_for_the_table(colours: Colours, tmp_path: Path) -> None:
    colours.study.main([])
    assert len(colours.study.records("losses")) == 1 and len(colours.study.records("sizes")) == 2
    colours.study.main(["table", "--network", "other"])
    assert colours.measured == [2.0]
    assert (tmp_path / "colours_net.md").read_text() == (tmp_path / "colours_other.md").read_text()
    assert (tmp_path / "colours_net.md").read_text().splitlines()[-1] == "| 2x | 0.50 |"


def test_an_unknown_step_is_refused_with_the_known_ones(colours: Colours, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        colours.study.main(["shapes"])
    assert "there is no step shapes; allowed: losses, sizes, table" in capsys.readouterr().err


def test_options_have_the_type_of_their_default() -> None:
    found = command_line("", ["--many", "3", "--quick", "--folder", "a"], many=[1], quick=False, folder=Path("b"),
                         rate=Option(None, type=float), kind=Option("x", choices=("x", "y")))  # fmt: skip
    assert vars(found) == {"many": [3], "quick": True, "folder": Path("a"), "rate": None, "kind": "x"}
    assert {found: 1}[found] == 1


def test_means_are_over_the_records_that_have_the_figure() -> None:
    found = means([{"a": 1, "loss": 1.0}, {"a": 1, "loss": 3.0, "size": 5}, {"a": 0, "loss": 7}], "a")
    assert found == [{"a": 0, "loss": 7.0, "count": 1}, {"a": 1, "loss": 2.0, "size": 5.0, "count": 2}]
    assert table(found, {"size": "{size:g}"}).splitlines()[2:] == ["|  |", "| 5 |"]


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_of_the_results_are_of_their_records(name: str) -> None:
    study = importlib.import_module(f"benchmarks.studies.{name}")
    (path,) = {RESULTS / f"{name}.md", RESULTS / f"{name}_cifar10-resnet20.md"} & set(RESULTS.iterdir())
    assert study.tables(Options(network="cifar10-resnet20")) == path.read_text()
