"""A folder with a recipe and a module of networks, and one command line after the other in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qubo_compress.cli import main

HERE = Path(__file__).parent
RECIPE = """
model: networks:trained
data: networks:data
validation: networks:held_out
budget: {ratio: 3}
menu:
  bits: [2, 4, 8]
  sparsity: [0]
metric: gauss-newton
solver: {name: greedy, time_limit: 5}
outputs:
  table: out/table.npz
  plan: out/plan.json
  network: out/net.safetensors
  report: out/report.html
  audit: out/audit.html
  export: out/net.onnx
"""


@dataclass(frozen=True)
class Told:
    """What one command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line on standard error."""
        lines = [line for line in self.err.splitlines() if line != "loading the weights"]
        assert len(lines) == 1 and "Traceback" not in self.err, self.err
        return lines[0]


Tell = Callable[..., Told]


def make_folder(folder: Path) -> Path:
    """A folder as a user has it."""
    shutil.copy(HERE / "networks.py", folder / "networks.py")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder after measure, solve and apply."""
    folder = make_folder(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("measure", "solve", "apply"):
            assert main([command, "recipe.yaml", "--quiet"]) == 0
        yield folder


@pytest.fixture
def tell(capfd: pytest.CaptureFixture[str]) -> Tell:
    """Runs a command line in this process."""

    def run(*arguments: str) -> Told:
        capfd.readouterr()
        code = main(arguments)
        return Told(code, *capfd.readouterr())

    return run
