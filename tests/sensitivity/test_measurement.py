"""The settings of a measurement, and the keyword arguments that are these settings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qubo_compress as qc
from qubo_compress.errors import InvalidMenu
from qubo_compress.sensitivity.measurement import Measurement

OWN = {
    "budget", "validation", "solver", "time_limit", "rounds", "recover", "epochs", "objective", "evaluations",
    "reconstruct",
}  # fmt: skip
"""What ``compress`` asks beyond the settings of its measurement."""

NOT_ASKED = {"max_rank", "interactions", "process_group"}
"""Settings that ``compress`` leaves as they are."""

ROOMS = ("sensitivity", "pipeline", "selection", "report", "audits")
MOST = 8


def keywords(function: Callable[..., Any]) -> dict[str, tuple[Any, str]]:
    """Name -> (default, annotation), without the network and its batches."""
    found = inspect.signature(function).parameters
    return {name: (p.default, p.annotation) for name, p in found.items() if name not in ("model", "batches")}


def settings() -> dict[str, tuple[Any, str]]:
    return {field.name: (field.default, str(field.type)) for field in dataclasses.fields(Measurement)}


def test_the_arguments_of_measure_are_the_settings_in_their_order() -> None:
    assert list(keywords(qc.measure).items()) == list(settings().items())


def test_the_arguments_of_compress_are_settings_and_its_own() -> None:
    given = keywords(qc.compress)
    assert set(given) == set(settings()) - NOT_ASKED | OWN and not OWN & set(settings())
    assert all(given[name] == setting for name, setting in settings().items() if name in given)


def test_what_compress_and_measure_are_given_arrives(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting under its own name: two of them might be exchanged on the way."""
    seen: list[Measurement] = []
    monkeypatch.setattr(Measurement, "checked", lambda self: seen.append(self) or pytest.skip.Exception("seen"))
    markers = {name: f"the {name}" for name in settings() if name not in ("metric", "process_group")}
    for function, own, silent in ((qc.measure, (), ()), (qc.compress, (qc.Budget(ratio=4),), NOT_ASKED)):
        given = {name: marker for name, marker in markers.items() if name not in silent}
        seen.clear()
        with pytest.raises(AttributeError):
            function(sample("perceptron").model, [], *own, metric="magnitude", **given)
        assert {name: getattr(seen[-1], name) for name in given} == given and seen[-1].metric == "magnitude"


def test_estimate_takes_the_settings(sample: Any) -> None:
    found = sample("perceptron")
    few = qc.estimate(found.model, found.batches, held_out=False, max_examples=10, seconds=100.0)
    assert few.examples == 10
    with pytest.raises(TypeError, match="most_examples"):
        qc.estimate(found.model, found.batches, most_examples=10)
    with pytest.raises(InvalidMenu, match="seconds must be"):
        qc.estimate(found.model, found.batches, seconds=-1.0)


def signatures() -> Iterator[tuple[str, int]]:
    """Every function of the rooms around a measurement, and how many parameters it has."""
    root = Path(qc.__file__).parent
    for path in (path for room in ROOMS for path in sorted((root / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                names += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
                yield f"{path.relative_to(root)}:{node.name}", len([n for n in names if n not in ("self", "cls")])


def test_only_measure_and_compress_have_many_parameters() -> None:
    assert {name for name, count in signatures() if count > MOST} == {
        "pipeline/compress.py:compress", "sensitivity/measure.py:measure",
    }  # fmt: skip
