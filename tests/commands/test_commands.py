"""Every command in this process: what it writes, what it says, and what it refuses before work is spent."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import qubo_compress as qc
from qubo_compress.cli import COMMANDS
from qubo_compress.commands.figures import figures, shown_figures
from qubo_compress.commands.references import called
from qubo_compress.errors import OwnCodeFailed, WrongUsage
from tests.commands.conftest import Tell
from tests.commands.networks import data, trained
from tests.problem.test_file import WHOLE as PROBLEM


def test_what_one_command_writes_the_next_one_reads(made: Path, tell: Tell) -> None:
    table, plan = qc.SensitivityTable.load("out/table.npz"), qc.Plan.load("out/plan.json")
    small = qc.load("out/net.safetensors", trained())
    assert Path("out/net.safetensors").stat().st_size == plan.bytes <= table.layout.original_bytes / 3
    audit = tell("audit", "recipe.yaml", "--json")
    assert audit.code == 0 and audit.json["examples"] == 96 and Path("out/audit.html").exists()
    assert audit.json["accuracy_after"] == pytest.approx(qc.audit(trained(), small, data(1)).accuracy_after)
    exported = tell("export", "recipe.yaml", "--json").json
    assert Path("out/net.onnx").stat().st_size == exported["nbytes"] and exported["largest_difference"] < 1e-4
    report = tell("report", "recipe.yaml", "--json").json
    assert report["choices"] == dict(plan.choices) and "<html" in Path("out/report.html").read_text()
    assert report["before"]["examples"] == 96 and len(report["candidates"]) > 1


def test_a_report_says_what_the_solver_proved(made: Path, tell: Tell) -> None:
    solved = ("solve", "recipe.yaml", "--solver=exact", "--plan=best.json", "--json", "--force")
    report = ("report", "recipe.yaml", "--plan=best.json", "--report=best.html", "--json", "--force", "--network=best")
    assert tell(*solved).json["status"] == "optimal"
    assert tell("apply", "recipe.yaml", "--plan=best.json", "--network=best", "--force").code == 0
    proven = tell(*report).json
    assert (proven["solver"], proven["status"], proven["gap"]) == ("exact", "optimal", 0.0)
    assert "proven optimal" in Path("best.html").read_text()
    assert tell(*report, "--ratio=2").json["gap"] is None  # a larger budget may have a better plan
    assert "not recorded in the plan" in " ".join(Path("best.html").read_text().split())


def test_a_table_says_what_its_network_takes(made: Path, tell: Tell) -> None:
    table = qc.SensitivityTable.load("out/table.npz")
    told = tell("inspect", "out/table.npz", "--json").json
    assert told["multiplications"] == 9 * 9 * 8 + 72 * 4
    budgets = told["budgets"]
    assert budgets["bit_operations"]["keep"] == 32 * 32 * budgets["macs"]["keep"] == 32 * 32 * told["multiplications"]
    for name in budgets:
        limited = qc.Budget(ratio=1) if name == "bytes" else qc.Budget(ratio=1, **{name: 1})
        problem = table.problem(limited)
        least = dict(zip(problem.budget_names, problem.smallest_totals().tolist(), strict=True))[name]
        assert budgets[name]["smallest"] == least <= budgets[name]["keep"] <= budgets[name]["largest"]
    shown = tell("inspect", "out/table.npz").out
    assert "the network as it is" in shown and f"{budgets['macs']['keep']:,}" in shown


def test_figures_know_eight_bits_of_weights_and_inputs() -> None:
    table = qc.measure(trained(), data(), menu=qc.Menu(["quantize(bits=8)"]).with_activations(8), progress=False)
    found = figures(table)
    assert found["bit_operations"]["eight_bit"] <= found["bit_operations"]["keep"] / 16
    table.leave_alone("0.weight")
    assert figures(table)["bytes"]["smallest"] > found["bytes"]["smallest"]
    assert len(shown_figures(found)) == 1 and shown_figures({}) == []


def test_apply_without_examples_does_not_repair(made: Path, tell: Tell) -> None:
    arguments = ("--model", "networks:trained", "--plan", "out/plan.json", "--network", "out/plain.safetensors")
    assert tell("apply", *arguments, "--json").json["recovered"] is False
    plain, plan = qc.load("out/plain.safetensors", trained()), qc.Plan.load("out/plan.json")
    expected = plan.apply(trained()).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in plain.state_dict().items())


def test_compress_writes_what_is_asked_for(made: Path, tell: Tell) -> None:
    outputs = [f"--{name}=all/{name}" for name in ("network", "plan", "table", "export", "report", "audit")]
    options = ("--ratio=3.5", "--solver=greedy", "--bits=2,4", "--sparsity=0", "--metric=magnitude", "--format=torch")
    told = tell("compress", "recipe.yaml", *options, *outputs, "--quiet")
    assert told.code == 0 and "3.5 times smaller" in told.out and told.err == "loading the weights\n"
    assert {path.name for path in Path("all").iterdir()} == {"network", "plan", "table", "export", "report", "audit"}
    assert (
        qc.Plan.load("all/plan").choices
        == qc.SensitivityTable.load("all/table").plan(qc.Plan.load("all/plan").choices).choices
    )
    assert Path("all/network").stat().st_size == qc.Plan.load("all/plan").bytes
    again = tell("compress", "recipe.yaml", *options, *outputs, "--quiet", "--force", "--json").json
    assert again["bytes"] == qc.Plan.load("all/plan").bytes and again["after"]["examples"] == 96


def test_dry_runs_estimate_and_write_nothing(made: Path, tell: Tell) -> None:
    for command in ("measure", "compress"):
        told = tell(command, "recipe.yaml", "--dry-run", "--table=none/t", "--json", "--force")
        assert told.code == 0 and told.json["metric"] == "gauss-newton" and told.json["examples"] == 96
    assert not Path("none").exists()
    assert "about" in tell("measure", "recipe.yaml", "--dry-run", "--force").out


def test_a_problem_file_is_solved_and_inspected(made: Path, tell: Tell) -> None:
    PROBLEM.save("problem.npz")
    options = ("--problem", "problem.npz", "--solver", "exact", "--solution", "answer.json")
    answer = tell("solve", *options, "--json").json
    best = qc.solve(PROBLEM, "exact")
    assert answer["status"] == "optimal" and answer["energy"] == pytest.approx(best.energy)
    assert tell("inspect", "answer.json", "--json").json["status"] == "optimal"
    assert tell("inspect", "problem.npz", "--json").json["groups"] == PROBLEM.num_groups
    both = tell("solve", *options, "--table", "out/table.npz", "--force")
    assert both.code == 2 and "not both" in both.line


def test_files_are_described_without_the_network(made: Path, tell: Tell) -> None:
    small = qc.load("out/net.safetensors", trained())
    qc.export(small, "out/layers", data()[0][0], format="torch")
    qc.LatencyTable("torch", "2", "here", 1, 1, 0.5, {"w": {"keep": 2.0}}).save("out/latency.json")
    kinds = {
        "table.npz": "a sensitivity table", "plan.json": "a plan", "net.safetensors": "a compressed network",
        "layers": "packed layers, for qubo_compress.layers.load", "latency.json": "a latency table",
    }  # fmt: skip
    for name, kind in kinds.items():
        told = tell("inspect", f"out/{name}")
        assert told.code == 0 and kind in told.out.splitlines()[0] and told.err == ""
        assert tell("inspect", f"out/{name}", "--json").json["file_bytes"] == Path(f"out/{name}").stat().st_size
    assert tell("inspect", "out/latency.json", "--json").json["milliseconds_uncompressed"] == 2.5


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"{", b"PK\3\4", b"\x08\0\0\0\0\0\0\0{}      ", b"model: a:b\n" * 9, b"\0" * 99]
)
def test_other_files_are_no_files_of_ours(content: bytes, tmp_path: Path, tell: Tell) -> None:
    (tmp_path / "file").write_bytes(content)
    told = tell("inspect", str(tmp_path / "file"))
    assert told.code == 1 and str(tmp_path / "file") in told.line
    altered = tell("inspect", str(tmp_path))
    assert altered.code == 1 and "is a folder" in altered.line


def test_solvers_are_listed_with_what_they_need(tell: Tell) -> None:
    told = tell("solvers")
    found = {one["name"]: one for one in tell("solvers", "--json").json["solvers"]}
    assert set(found) == set(qc.solvers.names()) and all(name in told.out for name in found)
    assert (
        found["qpu"]["remote"]
        and found["genetic"]["requires"] == ["pymoo"]
        and "restarts" in found["annealer"]["options"]
    )
    assert all(one["summary"] for one in found.values())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("measure recipe.yaml --table t --model networks:traind", 2, "has no 'traind'; did you mean 'trained'"),
        ("measure recipe.yaml --table t --model network:trained", 2, "no module 'network' .* did you mean 'networks'"),
        ("measure recipe.yaml --table t --model trained", 2, "'trained' is not module:function"),
        ("measure recipe.yaml --table t --model networks:NUMBER", 2, "NUMBER of networks is no function; got int"),
        ("measure recipe.yaml --table t --model networks:no_network", 1, "must return a torch.nn.Module; got .* str"),
        ("measure recipe.yaml --table t --data networks:trained", 1, "batch 0: inputs must be a Tensor"),
        ("measure recipe.yaml --table t --model networks:broken", 1,
         r"networks:broken raised ValueError: the weights are elsewhere \(.*networks.py, line \d+\)"),
        ("measure recipe.yaml --table t --model networks:leaves", 1, "raised SystemExit: gone"),
        ("measure recipe.yaml --table t --metric jakobian", 2, r"metric \(--metric\): .* did you mean 'jacobian'"),
        ("measure recipe.yaml --table t --loss kll", 2, r"loss \(--loss\): unknown loss 'kll'; did you mean 'kl'"),
        ("measure recipe.yaml --table t --bits 99", 2, r"menu \(--bits, recipe.yaml, line \d+\): "),
        ("measure recipe.yaml --table t --choice keep", 2, "give either choices or bits, sparsity and vector_bits"),
        ("measure recipe.yaml --table t --family quantise", 2, "not both"),
        ("measure recipe.yaml --table t --preset smallest", 2, "give either preset or bits, sparsity and vector_bits"),
        ("measure --table t", 2, "model is missing: give it in a recipe, or as --model"),
        ("measure recipe.yaml", 1, r"out/table.npz exists \(recipe.yaml, line 12\); add --force"),
        ("measure recipe.yaml --table out", 1, "out is a folder; name a file"),
        ("measure recipe.yaml --table t --groups channel", 1, "cannot be saved"),
        ("measure none.yaml", 1, "there is no file none.yaml"),
        ("measure recipe.yaml --table t --network t", 2, "No such option"),
        ("solve recipe.yaml --plan p --ratio 1000", 1, "smallest reachable is"),
        ("solve recipe.yaml --plan p --ratio -1", 2, r"budget \(--ratio\): ratio must be a positive number"),
        ("solve recipe.yaml --plan p --ratio 2 --bytes 9", 2, "exactly one of ratio, bytes and bits_per_weight"),
        ("solve recipe.yaml --plan p --solver anealer", 2, "unknown solver 'anealer'; did you mean 'annealer'"),
        ("solve recipe.yaml --plan p --solver-option restrts=3", 2, "no option 'restrts'"),
        ("solve recipe.yaml --plan p --time-limit 0", 2, "time_limit must be a positive number"),
        ("solve recipe.yaml --plan p --table none.npz", 1, "there is no file none.npz"),
        ("solve recipe.yaml --plan p --table recipe.yaml", 1, "recipe.yaml is not a complete sensitivity table"),
        ("solve recipe.yaml --plan p --latency none.json --latency-ms 1", 1, "there is no file none.json"),
        ("compress recipe.yaml --network n --plan n --force", 2, "two outputs have one name"),
        ("compress --model networks:trained --data networks:data --ratio 3", 2, "nothing would be written"),
        ("apply recipe.yaml --network n --model networks:other", 1, "made for other weights"),
        ("apply recipe.yaml --network n --plan out/table.npz", 1, "out/table.npz is not a complete plan"),
        ("audit recipe.yaml --audit a --network out/plan.json", 1, "truncated or not a safetensors file"),
        ("export recipe.yaml --export e --format onyx", 1, "did you mean 'onnx'"),
        ("report recipe.yaml --report r --data networks:nothing --validation networks:nothing", 2, "no 'nothing'"),
        ("inspect", 2, "FILE is missing"),
        ("bogus", 2, "No such command 'bogus'"),
        ("solve --rato 3", 2, "No such option: --rato .*--ratio"),
        ("solve --bits 8", 2, "No such option: --bits; measure, compress have it$"),
        ("inspect --no-recover", 2, "No such option: --no-recover; compress, apply have it$"),
        ("solve --dry-run", 2, "No such option: --dry-run; measure, compress have it$"),
        ("solve --seed x", 2, "--seed"),
    ],
)  # fmt: skip
def test_what_is_refused_is_one_line(arguments: str, code: int, message: str, made: Path, tell: Tell) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if "__pycache__" not in str(path)}
    told = tell(*arguments.split())
    assert told.code == code
    assert re.search(message, told.line), told.line
    assert told.out == "" and told.line.startswith("qubo-compress")
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if "__pycache__" not in str(path)} == before


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        ("measure none.yaml", 1, "FileNotFoundError"),
        ("measure recipe.yaml --table t --model networks:broken", 1, "OwnCodeFailed"),
        ("solve recipe.yaml --plan p --ratio 1000", 1, "InfeasibleBudget"),
        ("solve --bits 8", 2, "WrongUsage"),
    ],
)
def test_a_failure_is_one_json_object_too(arguments: str, code: int, kind: str, made: Path, tell: Tell) -> None:
    told = tell(*arguments.split(), "--json")
    assert told.code == code and set(told.json) == {"error"}
    error = told.json["error"]
    assert error["type"] == kind and error["message"] and told.line.endswith(error["message"])


def test_the_traceback_is_shown_when_asked_for(made: Path, tell: Tell) -> None:
    told = tell("measure", "recipe.yaml", "--table", "t", "--model", "networks:broken", "--traceback")
    assert told.code == 1 and "Traceback" in told.err and 'raise ValueError("the weights' in told.err


def test_attributes_of_what_a_function_returns(made: Path) -> None:
    assert len(called("networks:parts.calibration", "--data")) == 2
    with pytest.raises(WrongUsage, match="what networks:parts returns has no 'calibraton'; did you mean 'calibration'"):
        called("networks:parts.calibraton", "--data")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("import nonexistent_thing\n", OwnCodeFailed, "importing own raised ModuleNotFoundError: .*nonexistent_thing"),
        ("def f(:\n", OwnCodeFailed, r"raised SyntaxError: .*own\.py, line 1"),
        ("raise RuntimeError('no GPU')\n", OwnCodeFailed, r"raised RuntimeError: no GPU \(.*own\.py, line 1\)"),
        ("import sys\nsys.exit(3)\n", OwnCodeFailed, "raised SystemExit: 3"),
        ("def f(needed): return needed\n", OwnCodeFailed, "raised TypeError: .* required positional argument"),
    ],
)
def test_errors_in_own_code_say_where(
    text: str, kind: type, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(kind, match=message):
        called("own:f", "--model")
    sys.modules.pop("own", None)


def test_every_command_is_a_module_with_help(tell: Tell) -> None:
    listed = tell("--help")
    assert listed.code == 0 and all(command.name in listed.out for command in COMMANDS)
    for command in COMMANDS:
        assert command.help[:12] in tell(command.name, "--help").out
