"""Every public name of the rooms is listed and documented, and so are the attributes of their classes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qubo_compress as qc

PACKAGE = Path(qc.__file__).parent
ROOMS = (
    "artifact", "audits", "budget", "channels", "encodings", "errors", "example", "exports", "latency", "layers",
    "menu", "pipeline", "plan", "problem", "pruning", "published", "recovery", "report", "selection", "sensitivity",
    "solvers", "testing", "timing",
)  # fmt: skip


def public(room: str) -> list[str]:
    """The names that a room offers: those it lists or, of a single file, those of its own."""
    module = importlib.import_module(f"qubo_compress.{room}")
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = {name: value for name, value in vars(module).items() if inspect.isclass(value) or inspect.isfunction(value)}
    return [name for name, value in own.items() if value.__module__ == module.__name__ and not name.startswith("_")]


def undocumented(kind: type) -> Iterator[str]:
    """Attributes of a class of ours that neither it nor what it inherits from explains."""
    ours = [parent for parent in kind.__mro__ if parent.__module__.startswith("qubo_compress")]
    said = " ".join(f"{parent.__doc__} {inspect.getdoc(parent.__init__)}" for parent in ours)
    for name, value in {name: value for parent in reversed(ours) for name, value in vars(parent).items()}.items():
        if name.startswith("_"):
            continue
        documented = inspect.isclass(value) or any(getattr(vars(p).get(name), "__doc__", None) for p in ours)
        if (callable(value) or isinstance(value, (property, classmethod, staticmethod))) and not documented:
            yield name
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if not field.name.startswith("_") and not re.search(rf"\b{field.name}\b", said):
                yield field.name


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_of_rooms_are_there_and_documented(room: str) -> None:
    module = importlib.import_module(f"qubo_compress.{room}")
    names = public(room)
    assert names and module.__doc__
    missing: list[str] = [name for name in names if not getattr(getattr(module, name), "__doc__", None)]
    for name in names:
        value: Any = getattr(module, name)
        if inspect.isclass(value):
            missing += [f"{name}.{attribute}" for attribute in undocumented(value)]
    assert missing == []


def test_attributes_of_the_public_classes_are_documented() -> None:
    classes = {name: getattr(qc, name) for name in qc.__all__ if inspect.isclass(getattr(qc, name))}
    assert len(classes) > 10
    assert [f"{name}.{attribute}" for name, kind in classes.items() for attribute in undocumented(kind)] == []


def test_every_name_that_is_reexported_is_listed() -> None:
    """What ``qubo_compress`` offers is what some room lists."""
    listed = {name for room in ROOMS for name in public(room)}
    own = {"StitchedLoss", "TailWeights", "read_unreliably", "tail_weights"}  # of files below their rooms
    assert set(qc.__all__) - set(ROOMS) - own <= listed


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert len(places) > 400
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
