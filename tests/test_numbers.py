"""Numbers of numpy and torch are numbers wherever one is meant; arrays in their place are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import qubo_compress as qc
from qubo_compress._internal.checks import whole
from qubo_compress.errors import InvalidMenu, InvalidOption, InvalidSolverOption, QuboCompressError
from qubo_compress.menu.operator import choice_name, operators
from qubo_compress.menu.quantize import Quantize
from qubo_compress.sensitivity.metric import metrics
from qubo_compress.solvers.solver import solvers

qc.menu.names(), qc.solvers.names(), qc.sensitivity.names()  # every plug-in is imported and registered


def of_numpy(value: Any) -> Any:
    """The same value in numpy's types."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float64(value)
    return tuple(map(of_numpy, value)) if isinstance(value, tuple) else value


def of_torch(value: Any) -> Any:
    """The same number as a tensor without axes."""
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else value


def given(settings: Any) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings) if field.init}


@pytest.mark.parametrize("name", operators.names())
@pytest.mark.parametrize("change", [of_numpy, lambda v: np.array(v) if isinstance(v, (int, float)) else v, of_torch])
def test_every_operator_takes_numbers_of_numpy(name: str, change: Callable[[Any], Any]) -> None:
    for sample in operators.get(name).samples():
        again = type(sample)(**{key: change(value) for key, value in given(sample).items()})
        assert again == sample and choice_name(again) == choice_name(sample)


@pytest.mark.parametrize("name", [*operators.names(), *solvers.names(), *metrics.names()])
def test_an_array_in_the_place_of_one_number_is_refused(name: str) -> None:
    for registry in (operators, solvers, metrics):
        if name not in registry.names():
            continue
        kind: Any = registry.get(name)
        fields = [field for field in dataclasses.fields(kind) if str(field.type).split(" |")[0] in ("int", "float")]
        for field in fields:
            with pytest.raises(InvalidOption, match=rf"{field.name} of .* must be one number; got an array of shape"):
                kind(**{field.name: np.array([2])})


@pytest.mark.parametrize("name", sorted(set(solvers.names()) - {"qpu"}))
def test_every_solver_takes_numbers_of_numpy(name: str) -> None:
    kind: Any = solvers.get(name)
    defaults = kind()
    changed = {key: of_numpy(value) for key, value in given(defaults).items() if isinstance(value, (int, float, tuple))}
    made = kind(**changed)
    assert given(made) == given(defaults)
    assert all(type(value) is type(getattr(defaults, key)) for key, value in given(made).items())


def test_limits_of_solvers() -> None:
    problem = qc.ChoiceProblem.random(kind="separable", groups=5, choices=4, seed=1)
    found = qc.solve(
        problem, "greedy", time_limit=np.float32(2.0), work_limit=np.array(50), seed=np.int32(1),  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.energy == qc.solve(problem, "greedy", work_limit=50, seed=1).energy
    options = {"restarts": np.int64(2), "threads": np.int64(1), "pool_size": np.int16(3)}
    assert solvers.get("annealer")(**options) == solvers.get("annealer")(restarts=2, threads=1, pool_size=3)
    for wrong in (0, 1.5, np.array([3]), True):
        with pytest.raises(InvalidSolverOption, match="work_limit must be a whole number of at least 1"):
            qc.solve(problem, "greedy", work_limit=wrong)  # type: ignore[arg-type]
    for wrong in (np.array([2.0]), True, "2"):
        with pytest.raises(InvalidSolverOption, match="time_limit must be a positive number of seconds"):
            qc.solve(problem, "greedy", time_limit=wrong)  # type: ignore[arg-type]


def test_menus_and_budgets() -> None:
    assert qc.Menu([Quantize(np.int64(4))]).names == ("keep", "quantize(bits=4)")  # type: ignore[arg-type]
    assert qc.Menu(bits=torch.tensor([2, 4]), vector_bits=()).names == qc.Menu(bits=(2, 4), vector_bits=()).names  # type: ignore[arg-type]
    assert qc.Budget(ratio=np.array(4.0)) == qc.Budget(ratio=4.0)  # type: ignore[arg-type]
    assert type(qc.Budget(bytes=np.int64(900)).bytes) is int
    for wrong in (4, np.array(4), [np.array([4])], "4"):
        with pytest.raises(InvalidMenu, match="bits must be a list of numbers"):
            qc.Menu(bits=wrong)  # type: ignore[arg-type]
    with pytest.raises(QuboCompressError, match="ratio must be a number"):
        qc.Budget(ratio=np.array([4.0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [1.5, "2", True, np.bool_(True), np.array([2, 3]), None, -1])
def test_what_is_no_whole_number(wrong: Any) -> None:
    with pytest.raises(InvalidOption, match="seed must be a whole number of at least 0; got"):
        whole("seed", wrong)
