"""Every extra that is not installed is asked for by one line that names it and the command that brings it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import nn

import qubo_compress as qc
from qubo_compress.errors import MissingDependency

PROBLEM = qc.ChoiceProblem.random(groups=3, choices=2, seed=0)


def solved_by(name: str) -> Callable[[], object]:
    """Solve a tiny problem by that solver."""
    return lambda: qc.solve(PROBLEM, name, time_limit=5.0)


def measured(menu: qc.Menu) -> qc.SensitivityTable:
    """Measure a tiny network, one of whose layers has a kernel that can be factored."""
    network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 3))
    batch = torch.rand(8, 8, 3, 3), torch.zeros(8, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was not trained
        return qc.measure(network.eval(), [batch], menu=menu, progress=False)


def exported() -> object:
    """Export the shipped network, uncompressed."""
    network = qc.example_network()
    table = qc.measure(network.model, network.calibration[:1], metric="magnitude", progress=False)
    return qc.export(table.plan({}).apply(network.model), "network.onnx", [network.test[0][0]])


USES: dict[str, tuple[str, Callable[[], object]]] = {
    "genetic": ("pymoo", solved_by("genetic")),
    "reinforcement": ("stable_baselines3", solved_by("reinforcement")),
    "openjij": ("openjij", solved_by("openjij")),
    "simulated-bifurcation": ("simulated_bifurcation", solved_by("simulated-bifurcation")),
    "scip": ("pyscipopt", solved_by("scip")),
    "amplify": ("amplify", solved_by("amplify")),
    "cfn": ("pytoulbar2", solved_by("cfn")),
    "low-rank": ("tensorly", lambda: measured(qc.Menu.of("low-rank"))),
    "dwave": ("minorminer", solved_by("qpu")),
    "onnx": ("onnxruntime", exported),
}
"""Extra -> a module that it brings, and something that needs it."""


def main() -> None:
    """Ask for all."""
    for extra, (module, use) in USES.items():
        assert importlib.util.find_spec(module) is None, f"{module} is installed, so nothing can be said about {extra}"
        try:
            use()
        except MissingDependency as error:
            assert f"pip install 'qubo_compress[{extra}]'" in str(error), error
            print(f"{extra}: {error}")
        else:
            raise AssertionError(f"{extra} is not installed, and nothing was said")


if __name__ == "__main__":
    main()
