"""LP files keep the problem, other solvers find its optimum in them, and hostile files are refused."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem
from qubo_compress.encodings import lp_file
from qubo_compress.errors import CorruptArtifact, InvalidProblem, ProblemTooLarge, StorageError
from qubo_compress.testing.solvers import brute_force


def problem_of(seed, kind="sparse", budgets=2):
    problem = ChoiceProblem.random(kind=kind, groups=4, choices=3, seed=seed, budgets=budgets)
    return problem._replace(constant=-2.25, group_names=["ä\n\x1b End", "b", "c", "\\ d"])


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["dense", "sparse", "separable", "low-rank", "channels"]),
    budgets=st.integers(1, 2),
)
def test_a_file_keeps_energies_and_budgets(tmp_path_factory, seed, kind, budgets):
    path = tmp_path_factory.mktemp("lp") / "problem.lp"
    problem = problem_of(seed, kind, budgets)
    samples = problem.to_lp(path)
    again, others = ChoiceProblem.from_lp(path)
    for picks in itertools.product(range(3), repeat=4):
        sample = samples(list(picks))
        assignment = others.assignment(sample)
        assert again.energy(assignment) == pytest.approx(problem.energy(list(picks)), abs=1e-6)
        assert again.is_feasible(assignment) == problem.is_feasible(list(picks))
        assert samples.assignment(others(assignment)).tolist() == list(picks)


SOLVE = {
    "pyscipopt": """
import pyscipopt, sys, json
model = pyscipopt.Model(); model.hideOutput(); model.readProblem(sys.argv[1]); model.optimize()
print(json.dumps([model.getObjVal(), {v.name: model.getVal(v) for v in model.getVars()}]))
""",
    "gurobipy": """
import gurobipy, sys, json
with gurobipy.Env(params={"OutputFlag": 0}) as env, gurobipy.read(sys.argv[1], env) as model:
    model.optimize()
    print(json.dumps([model.ObjVal, {v.VarName: v.X for v in model.getVars()}]))
""",
    "highspy": """
import highspy, sys, json
model = highspy.Highs(); model.silent(); model.readModel(sys.argv[1]); model.run()
names = [model.getColName(i)[1] for i in range(model.getNumCol())]
print(json.dumps([model.getInfo().objective_function_value, dict(zip(names, model.getSolution().col_value))]))
""",
}


@pytest.mark.parametrize(
    ("package", "kind"),
    [("highspy", "separable"), *itertools.product(("pyscipopt", "gurobipy"), ("sparse", "channels"))],
)
def test_other_solvers_find_the_same_optimum(package, kind, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    # HiGHS takes no products of integers. Each solver in its own process: their libraries do not get along.
    problem = problem_of(7, kind)
    samples = problem.to_lp(tmp_path / "problem.lp")
    done = subprocess.run(
        [sys.executable, "-c", SOLVE[package], str(tmp_path / "problem.lp")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    energy, values = json.loads(done.stdout.splitlines()[-1])
    best, _ = brute_force(problem)
    assert energy == pytest.approx(best, abs=1e-6)
    assert problem.energy(samples.assignment(values)) == pytest.approx(best, abs=1e-6)


GOOD = """Minimize
 obj: x - 2 y + [ 2 x * z ] / 2
Subject To
 one: x + y = 1
 weight: 3 x + 2 z + i <= 4
Bounds
 0 <= i <= 5
Binary
 x y z
General
 i
End
"""


def read(tmp_path, text):
    path = tmp_path / "given.lp"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ChoiceProblem.from_lp(path)


def test_a_file_of_others_is_read(tmp_path):
    problem, samples = read(tmp_path, "\\ a comment\n" + GOOD)
    assert problem.group_names == ("one", "z", "i") and problem.budget_names == ("weight",)
    assert problem.energy(samples.assignment({"x": 1, "y": 0, "z": 1, "i": 3})) == 2.0
    turned, _ = read(tmp_path, GOOD.replace("Minimize", "MAXIMIZE"))
    assert turned.energy([0, 1, 0]) == -problem.energy([0, 1, 0])


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("", CorruptArtifact, "does not begin with Minimize"),
        ("hello world", CorruptArtifact, "does not begin with Minimize"),
        (GOOD.replace("y", "\0"), CorruptArtifact, "control character"),
        (GOOD[:80], CorruptArtifact, "it may be cut short"),
        (GOOD.replace("]", ""), CorruptArtifact, "is not an LP file"),
        (GOOD.replace("weight", "one"), CorruptArtifact, "is not an LP file"),
        (GOOD.replace("End", "SOS\n s1: S1:: x:1 y:2\nEnd"), CorruptArtifact, "'SOS', which is not read"),
        (GOOD.replace("weight: 3 x", "weight: y = 1 -> 3 x"), CorruptArtifact, "'->', which is not read"),
        (GOOD.replace("General", "Semi-continuous"), CorruptArtifact, "is not an LP file"),
        (GOOD.replace("General\n i", ""), InvalidProblem, "given.lp: the variable 'i' is real"),
        (GOOD.replace("<= i <= 5", "<= i"), InvalidProblem, "the integer 'i' goes from 0"),
        (GOOD.replace("2 y", "1e999 y"), InvalidProblem, "not finite"),
        (GOOD.replace("2 y", "nan y"), InvalidProblem, "not finite"),
        (GOOD.replace("3 x", "nan x"), InvalidProblem, "not finite"),
        (b"Minimize\n obj: \xff\xfe\nEnd", CorruptArtifact, "can't decode"),
    ],
)
def test_hostile_files_are_refused(tmp_path, text, error, reason):
    with pytest.raises(error, match=reason):
        read(tmp_path, text)


def test_sizes_and_places_are_checked_first(tmp_path, monkeypatch):
    problem = problem_of(1)
    with pytest.raises(StorageError, match="is a folder"):
        problem.to_lp(tmp_path)
    with pytest.raises(CorruptArtifact, match="is a folder, not an LP file"):
        ChoiceProblem.from_lp(tmp_path)
    with pytest.raises(FileNotFoundError):
        ChoiceProblem.from_lp(tmp_path / "missing.lp")
    monkeypatch.setattr(lp_file, "LARGEST_FILE", 500)
    with pytest.raises(ProblemTooLarge, match="about .* bytes; at most 500 are written"):
        problem.to_lp(tmp_path / "problem.lp")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ProblemTooLarge, match="more than 500 bytes"):
        read(tmp_path, GOOD + " " * 500)


def test_lines_are_short_enough_for_every_reader(tmp_path):
    ChoiceProblem.random(kind="dense", groups=8, choices=16, seed=0, budgets=2).to_lp(tmp_path / "problem.lp")
    assert max(map(len, (tmp_path / "problem.lp").read_text().splitlines())) < 560
    assert np.all([ord(letter) < 128 for letter in (tmp_path / "problem.lp").read_text()])
