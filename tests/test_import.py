"""What importing the package costs: nothing that is not used."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import qubo_compress as qc
from qubo_compress._internal.moved import MOVED, MovedModules

ROOT = Path(__file__).parents[1]
SOLVING = """
import sys
import qubo_compress as qc
def loaded():
    return sorted({"torch", "matplotlib", "dwave", "numba", "scipy.stats"} & set(sys.modules))
print(loaded())
problem = qc.ChoiceProblem.random(kind="low-rank", groups=3, choices=2, seed=0)
qc.solvers.names()
print(loaded())
qc.solve(problem, "greedy")
print(loaded())
import qubo_compress.testing
print(loaded())
"""


def test_solving_needs_neither_torch_nor_matplotlib_nor_dwave() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", SOLVING], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    *solving, testing = told.stdout.splitlines()
    assert solving == ["[]", "['numba']", "['numba']"] and "dwave" not in testing and "matplotlib" not in testing


@pytest.mark.parametrize("name", qc.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    value = getattr(qc, name)
    assert value.__doc__ and name in dir(qc)
    assert not callable(value) or value.__name__ == name


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        qc.compres  # noqa: B018


@pytest.mark.parametrize("old", MOVED)
def test_modules_are_found_under_their_old_names(old: str) -> None:
    finder = MovedModules()
    spec = finder.find_spec(f"qubo_compress.{old}")
    assert spec is not None and spec.loader is not None
    with pytest.warns(DeprecationWarning, match=rf"qubo_compress\.{old} is now qubo_compress\.{MOVED[old]}"):
        module = spec.loader.create_module(spec)
    assert module is sys.modules[f"qubo_compress.{MOVED[old]}"]
    assert finder.find_spec(f"qubo_compress.{MOVED[old]}") is None and finder.find_spec("other." + old) is None


def test_an_old_path_hides_no_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [MovedModules(), *sys.meta_path])
    for name in ("compress", "audit"):
        sys.modules.pop(f"qubo_compress.{name}", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from qubo_compress.audit import churn
        from qubo_compress.compress import CompressionResult
    assert CompressionResult is qc.CompressionResult and churn.__module__ == "qubo_compress.audits.churn"
    assert callable(qc.compress) and callable(qc.audit)
    assert sys.modules["qubo_compress.pipeline.compress"].__spec__.name == "qubo_compress.pipeline.compress"


def test_solve_and_verify_are_found_where_they_were() -> None:
    with pytest.warns(DeprecationWarning, match=r"solver\.solve is now qubo_compress\.solvers\.verification\.solve"):
        from qubo_compress.solvers.solver import solve
    with pytest.warns(DeprecationWarning, match=r"verification\.verify"):
        from qubo_compress.solvers.solver import verify
    assert solve is qc.solve and callable(verify)
