"""Every command as a process: exit codes, one line for each error, Ctrl-C, and a reader who goes away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qubo_compress import cli
from tests.commands.conftest import Told, make_folder

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
COMMAND = [sys.executable, "-m", "qubo_compress.cli"]

COMPRESS = "compress --model networks:trained --data networks:data --ratio 3 --solver greedy --network small"

Start = Callable[..., Told]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def start(folder: Path) -> Iterator[Start]:
    """Runs a command line as a process, forked from one that has imported torch."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.commands.forked"], cwd=folder, env=ENVIRONMENT, text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as server:  # fmt: skip
        assert server.stdin is not None and server.stdout is not None

        def run(*arguments: str) -> Told:
            server.stdin.write(json.dumps(arguments) + "\n")
            return Told(**json.loads(server.stdout.readline()))

        yield run
        server.stdin.close()


def test_every_command_runs_as_a_process(folder: Path, start: Start) -> None:
    steps = [
        ("measure", "recipe.yaml"), ("solve", "recipe.yaml"), ("apply", "recipe.yaml"), ("audit", "recipe.yaml"),
        ("export", "recipe.yaml"), ("report", "recipe.yaml"), tuple(COMPRESS.split()),
        ("inspect", "out/net.safetensors"), ("solvers", "--json"), ("--version",),
    ]  # fmt: skip
    assert {step[0] for step in steps} >= {command.name for command in cli.COMMANDS}
    for step in steps:
        told = start(*step)
        assert told.code == 0 and told.out and "Traceback" not in told.err, (step, told)
        assert "\x1b" not in told.out + told.err and "\n\n\n\n" not in told.out + told.err  # plain text when piped
    outputs = {path.name for path in (folder / "out").iterdir()}
    assert outputs == {"table.npz", "plan.json", "net.safetensors", "report.html", "audit.html", "net.onnx"}
    for arguments, code, message in (
        (["solve", "wrong.yaml"], 2, "wrong.yaml, line 2: unknown key 'modle'; did you mean 'model'?"),
        (["solve", "missing.yaml"], 1, "there is no file missing.yaml"),
        (["solve", "recipe.yaml", "--ratio", "999", "--force"], 1, "but the smallest reachable is"),
    ):
        (folder / "wrong.yaml").write_text("\nmodle: a:b\n")
        told = start(*arguments)
        assert told.code == code and message in told.line and told.out == ""


def test_ctrl_c_ends_with_one_line_and_130(folder: Path) -> None:
    arguments = ["measure", "recipe.yaml", "--model", "networks:slow", "--table", "never.npz"]
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        assert process.stderr.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        *_, last = process.stderr.read().splitlines()
        assert process.stdout.read() == ""
    assert process.returncode == cli.INTERRUPTED == 130
    assert last == "qubo-compress measure: interrupted; every file is whole, old or new"
    assert not (folder / "never.npz").exists()


def test_a_closed_pipe_ends_without_a_traceback() -> None:
    for arguments in (["solvers"], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)  # before anything is written
        process = subprocess.run(
            [*COMMAND, *arguments], env=ENVIRONMENT, text=True, stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert (process.returncode, process.stderr) == (cli.NOBODY_READS, "")


def test_help_does_not_wait_for_torch() -> None:
    asked = "import sys; from qubo_compress.cli import main; main(['solve', '--help'])\n"
    asked += "print(sorted({'torch', 'numba', 'scipy', 'matplotlib'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", asked], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_the_installed_command_is_this_one() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"qubo-compress": f"{cli.__name__}:{cli.main.__name__}"}
