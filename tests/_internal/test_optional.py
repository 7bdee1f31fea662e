"""What works without D-Wave's client, minorminer and matplotlib, and what is said by what does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import dwave.graphs
import pytest

from qubo_compress._internal.optional import require
from qubo_compress.errors import MissingDependency
from qubo_compress.solvers.dwave.minor_embedding import find_minor
from qubo_compress.solvers.dwave.qpu_embedding import Cliques

ROOT = Path(__file__).parents[2]
WITHOUT = """
import json, sys, tempfile
for module in ("cloud", "embedding", "graphs", "optimization", "preprocessing", "system"):
    sys.modules[f"dwave.{module}"] = None
for module in ("homebase", "matplotlib", "minorminer", "neal"):
    sys.modules[module] = None

import qubo_compress as qc

problem = qc.ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=0)
for solver in ("auto", "greedy", "tabu"):
    assert problem.is_feasible(qc.solve(problem, solver, work_limit=20).assignment)

import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.ReLU(), torch.nn.Linear(60, 3))
batches = [(torch.randn(40, 40), torch.randint(3, (40,))) for _ in range(2)]
result = qc.compress(model, batches, qc.Budget(ratio=2), solver="greedy", progress=False)
folder = tempfile.mkdtemp()
assert result.save(f"{folder}/small.safetensors") == result.plan.bytes
qc.load(f"{folder}/small.safetensors", model)
result.show()

def refusal(action):
    try:
        action()
    except qc.errors.MissingDependency as missing:
        return str(missing)

said = {
    "report": refusal(lambda: result.report(f"{folder}/report.html")),
    "preview": refusal(lambda: qc.solvers.preview(problem)),
    "to_nonlinear": refusal(problem.to_nonlinear),
}
for solver in ("leap-cqm", "leap-bqm", "leap-dqm", "leap-nonlinear", "qpu", "qpu-decomposition"):
    said[solver] = refusal(lambda: qc.solve(problem, solver))
print(json.dumps(said), file=sys.stderr)
"""


def test_everything_local_works_without_the_packages_that_only_some_features_need() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    said = json.loads(told.stderr.splitlines()[-1])
    assert said.pop("report").endswith("run: pip install matplotlib")
    for user, message in said.items():
        assert message and message.endswith("run: pip install 'qubo_compress[dwave]'"), user


def test_embedding_names_minorminer(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("minorminer", "minorminer.busclique"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=r"run: pip install 'qubo_compress\[dwave\]'$"):
        find_minor([(0, 1)], 2, [(0, 1)], 0, 20.0, lambda: False)
    with pytest.raises(MissingDependency, match=r"run: pip install 'qubo_compress\[dwave\]'$"):
        Cliques(dwave.graphs.zephyr_graph(2, 4))


def test_an_extra_is_named_with_the_package() -> None:
    with pytest.raises(MissingDependency, match=r"^nowhere is needed .* run: pip install 'qubo_compress\[far\]'$"):
        require("nowhere.at_all", "far")


def test_packages_that_miss_widgets_are_imported_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "with_bars_ipq.py").write_text("import warnings\nwarnings.warn('IProgress not found. Please update')\n")
    (tmp_path / "with_news_ipq.py").write_text("import warnings\nwarnings.warn('something else')\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require("with_bars_ipq")
    with pytest.warns(UserWarning, match="something else"):
        require("with_news_ipq")
