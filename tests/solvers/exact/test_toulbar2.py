"""toulbar2's process: what is exchanged is checked, and it ends in time and on Ctrl-C."""

from __future__ import annotations

import time

import numpy as np
import pytest

from qubo_compress import ChoiceProblem
from qubo_compress.problem.energy_scale import standardise
from qubo_compress.solvers.exact import toulbar2, toulbar2_process
from qubo_compress.solvers.exact.cost_network import cost_network
from qubo_compress.solvers.exact.toulbar2 import NetworkProof, prove_by_network, solve_network
from qubo_compress.testing.solvers import brute_force

pytest.importorskip("pytoulbar2")


def soon(seconds: float = 600.0) -> float:
    return time.perf_counter() + seconds


def dense(groups: int = 5, choices: int = 4, seed: int = 0, budgets: int = 1) -> ChoiceProblem:
    drawn = ChoiceProblem.random(kind="dense", groups=groups, choices=choices, seed=seed, budgets=budgets)
    return standardise(drawn).problem


@pytest.mark.parametrize("budgets", [0, 1, 2])
def test_the_least_cost_is_found_and_proven(budgets):
    problem = dense(budgets=budgets)
    least, picks = brute_force(problem)
    proof = prove_by_network(problem, None, soon())
    assert (proof.assignment == picks).all() and least - 1e-7 < proof.bound <= least
    again = prove_by_network(problem, picks, soon())
    assert again.assignment is None and again.answer.complete
    assert least - 1e-7 < again.bound <= least


def test_weights_near_the_largest_are_exact():
    problem = dense()
    large = 2**32 + 3
    heavy = ChoiceProblem(
        problem.linear, problem.group_offsets, problem.costs * large + 1, problem.limits * large + problem.num_groups,
        pairs=problem.pairs,
    )  # fmt: skip
    assert prove_by_network(heavy, None, soon()).assignment.tolist() == brute_force(problem)[1].tolist()
    one_less = heavy.with_limits(heavy.totals(brute_force(problem)[1]) - 1)
    found = prove_by_network(one_less, None, soon()).assignment
    assert found.tolist() == brute_force(one_less)[1].tolist()


def test_budgets_that_exclude_each_other_are_proven_to():
    problem = ChoiceProblem([0.0] * 4, [0, 2, 4], [[4, 1, 4, 1], [1, 4, 1, 4]], [4, 4])
    assert prove_by_network(problem, None, soon()).bound == np.inf


def test_work_is_kept_and_repeats():
    problem = dense(14, 10)
    whole = prove_by_network(problem, None, soon())
    assert whole.answer.complete and whole.answer.work > 20
    for work in (1, 10, whole.answer.work):
        first, second = (prove_by_network(problem, None, soon(), work) for _ in range(2))
        assert first.answer.work <= work and first.bound == second.bound <= whole.bound
        assert (first.assignment == second.assignment).all()
    assert second.answer.complete and second.bound == whole.bound


def is_honest(problem: ChoiceProblem, proof: NetworkProof) -> bool:
    """Whether what was stopped at any moment makes sense; a loaded machine may not even have started the search."""
    if proof.answer.ended:
        return proof.assignment is None and proof.bound == -np.inf
    found = proof.assignment
    return found is None or problem.is_feasible(found) and proof.bound <= problem.energy(found)


def test_the_clock_leaves_what_was_found():
    problem = dense(40, 12, budgets=2)
    proof = prove_by_network(problem, None, soon(3.0))
    assert proof.answer.late and not proof.answer.complete and is_honest(problem, proof)
    assert prove_by_network(problem, None, soon(0.01)).answer.late


def test_a_process_that_hangs_is_ended(monkeypatch, tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text(
        "import signal, time\nsignal.signal(signal.SIGVTALRM, signal.SIG_IGN)\nprint('half an', flush=True)\n"
        "time.sleep(3600)\n"
    )
    monkeypatch.setattr(toulbar2_process, "__file__", str(script))
    proof = prove_by_network(dense(), None, soon(1.0))
    assert proof.answer.ended and proof.assignment is None and proof.bound == -np.inf


def test_ctrl_c_stops_the_process_and_keeps_its_answer(ctrl_c):
    problem = dense(40, 12)
    ctrl_c(2.0)
    proof = prove_by_network(problem, None, soon(3600.0))
    assert proof.answer.interrupted and is_honest(problem, proof)


@pytest.mark.parametrize(
    "changes",
    [
        {"assignment": [0, 0, 0, 0]},
        {"assignment": [0, 0, 0, 0, 9]},
        {"assignment": ["0"] * 5},
        {"assignment": [0, 0, 0, 0, -1]},
        {"bound": "none"},
        {"complete": 1},
        {"backtracks": None},
        {"assignment": [3, 3, 3, 3, 3]},  # over budget
    ],
)
def test_an_answer_that_contradicts_the_network_claims_nothing(monkeypatch, changes):
    problem = dense()
    tight = problem.with_limits(problem.totals([0, 1, 2, 3, 0]))
    costs = tight.costs.reshape(5, 4)
    assert costs.max(axis=1).sum() > tight.limits[0]
    if changes.get("assignment") == [3, 3, 3, 3, 3]:
        changes = {"assignment": costs.argmax(axis=1).tolist()}
    honest = {"assignment": None, "bound": 0.0, "complete": False, "nodes": 1, "backtracks": 1}
    monkeypatch.setattr(
        toulbar2, "_exchange", lambda *_: (toulbar2_process.write_answer(honest | changes), False, False)
    )
    answer = solve_network(cost_network(tight, None, np.inf), None, soon())
    assert answer.ended and answer.assignment is None and answer.bound is None


def test_a_damaged_answer_is_not_parsed():
    line = toulbar2_process.write_answer({"bound": 1.0})
    assert toulbar2_process.read_answer(line) == {"bound": 1.0}
    for damaged in (line[:-3], line.replace("1.0", "2.0"), "", "[]"):
        with pytest.raises(ValueError, match="damaged"):
            toulbar2_process.read_answer(damaged)
    header, numbers = toulbar2_process.read_task(toulbar2_process.write_task({"a": [1]}, np.arange(3).tobytes()))
    assert header == {"a": [1]} and list(numbers) == [0, 1, 2]
