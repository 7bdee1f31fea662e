"""Fronts solved elsewhere: the same answers, and nothing travels but problems."""

from __future__ import annotations

import pickle
from typing import Any

import joblib
import pytest

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress.selection.front import FrontPoint, SolveSettings, solve_all, try_ratios
from qubo_compress.solvers.annealer.annealer import Annealer
from qubo_compress.solvers.random import RandomSearch

MENU = qc.Menu(bits=(2, 4, 8), sparsity=(0.0, 0.5))
RATIOS = (4, 8)
# Seed and work limit decide what it finds, and a new process has little to compile or load for it.
LIMITS: dict[str, Any] = {"solver": "random", "time_limit": 250.0, "work_limit": 20, "seed": 3}


@pytest.fixture(scope="module")
def table(digits: Any) -> qc.SensitivityTable:
    return qc.measure(digits.model, digits.calibration, menu=MENU, metric="jacobian", max_examples=24, progress=False)


@pytest.fixture(scope="module")
def here(table: qc.SensitivityTable) -> tuple[FrontPoint, ...]:
    return qc.pareto(table, RATIOS, **LIMITS)


def same(first: tuple[FrontPoint, ...], second: tuple[FrontPoint, ...]) -> bool:
    keys = [[(p.ratio, p.plan, p.energy, p.solution.work) for p in front] for front in (first, second)]
    return keys[0] == keys[1]


def test_other_processes_give_the_same_front(table: qc.SensitivityTable, here: tuple[FrontPoint, ...]) -> None:
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert same(qc.pareto(table, RATIOS, **LIMITS), here)


def test_a_dask_cluster_gives_the_same_front(table: qc.SensitivityTable, here: tuple[FrontPoint, ...]) -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        assert same(qc.pareto(table, RATIOS, **LIMITS), here)


def test_nothing_is_sent_anywhere_unless_asked(table: qc.SensitivityTable, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was pickled")

    monkeypatch.setattr(joblib.externals.loky, "get_reusable_executor", refuse)
    assert len(qc.pareto(table, (4, 8), solver="greedy")) == 2


def test_what_travels_is_the_problem_alone(table: qc.SensitivityTable, digits: Any) -> None:
    problem = table.problem(qc.Budget(ratio=8))
    weights = sum(p.numel() * p.element_size() for p in digits.model.parameters())
    sent = len(pickle.dumps((problem, SolveSettings(Annealer(), 1.0))))
    arrays = problem.linear.nbytes + problem.costs.nbytes + problem.factor.nbytes
    assert sent < 1.2 * arrays + 20_000
    again = pickle.loads(pickle.dumps(problem))
    assert again.energy([0] * again.num_groups) == problem.energy([0] * problem.num_groups)
    assert weights > 0 and not any("torch" in str(type(value)) for value in vars(problem).values())


def test_a_solver_of_ones_own_travels_as_an_object() -> None:
    problems = [qc.ChoiceProblem.random(kind="low-rank", groups=6, choices=4, seed=seed) for seed in range(3)]
    settings = SolveSettings(RandomSearch(pool_size=3), 250.0, 10, 0)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        elsewhere = solve_all(problems, settings)
    assert [a.energy for a in elsewhere] == [b.energy for b in solve_all(problems, settings)]
    assert [len(a.pool) for a in elsewhere] == [3, 3, 3], "its options travel too"


def test_a_ratio_out_of_reach_does_not_end_the_others(table: qc.SensitivityTable) -> None:
    with joblib.parallel_config(backend="threading", n_jobs=2):
        found = try_ratios(table, (4, 900, 8), SolveSettings("greedy"))
    assert isinstance(found[1], errors.InfeasibleBudget) and found[1].smallest
    assert isinstance(found[0], FrontPoint) and isinstance(found[2], FrontPoint)
    again = pickle.loads(pickle.dumps(found[1]))
    assert (str(again), again.smallest) == (str(found[1]), found[1].smallest)
    with pytest.raises(errors.InfeasibleBudget):
        qc.pareto(table, (4, 900), solver="greedy")
