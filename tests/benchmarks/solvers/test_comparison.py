"""The solvers' benchmark: its records, its figures, its tables and pictures, on problems made for the test."""

from __future__ import annotations

import math

import pytest

from benchmarks.solvers import comparison as solvers
from benchmarks.solvers import gaps, instances, plan_scores
from benchmarks.solvers import tables as solver_tables
from benchmarks.solvers.contestants import CONTESTANTS, available
from benchmarks.solvers.pictures import anytime_curves, performance_profile
from qubo_compress.problem.generators import random_problem

INSTANCE = "dense/20x16/100"


@pytest.fixture
def small_instances(monkeypatch, tmp_path):
    monkeypatch.setattr(solvers, "PATH", tmp_path / "solvers.jsonl")
    monkeypatch.setattr(gaps, "BEST", tmp_path / "best.json")
    monkeypatch.setattr(plan_scores, "PATH", tmp_path / "scores.jsonl")
    for module in (solvers, gaps):
        monkeypatch.setattr(module, "problem_of", lambda name: random_problem("low-rank", 5, 4, int(name[-1])))
    solvers._problem.cache_clear()
    gaps.random_energy.cache_clear()
    yield
    solvers._problem.cache_clear()
    gaps.random_energy.cache_clear()


def record(energy, trace, seconds=1.0, solver="greedy", bound=None):
    return {
        "instance": INSTANCE, "solver": solver, "seed": 0, "seconds": seconds, "energy": energy, "bound": bound,
        "taken": seconds, "trace": trace, "work": 3, "memory": 100.0, "details": {}, "assignment": [0],
        "timing": {"total": seconds},
    }  # fmt: skip


def test_every_contestant_of_an_installed_solver_can_be_made():
    made = {name: contestant.make() for name, contestant in available().items()}
    assert {"annealer", "auto", "exact", "greedy"} <= set(made)
    assert all(contestant.tuning for contestant in CONTESTANTS.values())


def test_tiers_have_the_promised_seeds_and_limits():
    quick = list(solvers.cells("quick"))
    assert {cell.seconds for cell in quick} == {1.0, 10.0}
    assert {cell.seed for cell in quick if cell.solver == "annealer"} == {0, 1, 2}
    assert len({cell.instance for cell in quick}) == 6
    dense = list(solvers.cells("dense20"))
    assert len({cell.instance for cell in dense}) == 20
    assert sum(cell.solver == "annealer" and cell.seconds == 1.0 for cell in dense) == 200
    assert sum(cell.seconds == 60.0 for cell in dense) == 10
    assert {cell.instance for cell in solvers.cells("large")} <= {
        instances.generated_name(kind, groups, 100) for kind in instances.GENERATED for groups in (100, 500)
    }


def test_a_solve_is_recorded_verified_and_within_its_time(small_instances):
    result = solvers.run_cell(solvers.Cell(INSTANCE, "annealer", 0, 0.3))
    problem = random_problem("low-rank", 5, 4, 0)
    assert problem.is_feasible(result["assignment"])
    assert result["energy"] == pytest.approx(problem.energy(result["assignment"]))
    assert result["trace"][-1][1] == pytest.approx(result["energy"])
    assert result["memory_added"] >= 0
    assert 0 < result["memory"] < 50_000


def test_gaps_are_measured_from_best_to_random(small_instances):
    best = {INSTANCE: {"energy": 0.0, "proven": True}}
    scale = gaps.random_energy(INSTANCE)
    assert scale > 0
    assert gaps.gap_of(record(0.5 * scale, []), best) == pytest.approx(50.0)
    assert gaps.gap_of({"instance": INSTANCE}, best) == 100.0


def test_time_to_target_counts_restarts(small_instances):
    best = {INSTANCE: {"energy": 0.0, "proven": True}}
    scale = gaps.random_energy(INSTANCE)
    hit = record(0.0, [[0.1, scale], [0.4, 0.005 * scale]])
    miss = record(scale, [[0.1, scale]])
    assert gaps.time_to_target([hit, hit], best) == pytest.approx(0.4)
    assert gaps.time_to_target([hit, miss], best) == pytest.approx(0.4 * math.log(0.01) / math.log(0.5))
    assert math.isinf(gaps.time_to_target([miss], best))


def test_best_is_proven_only_by_a_bound(small_instances):
    found = gaps.best_known([record(1.0, []), record(0.8, [], solver="annealer", bound=0.5)])
    assert found[INSTANCE]["energy"] == 0.8 and found[INSTANCE]["by"] == "annealer" and not found[INSTANCE]["proven"]
    assert gaps.best_known([record(0.8, [], solver="exact", bound=0.8)])[INSTANCE]["proven"]


def test_tables_and_pictures_are_made_from_records(small_instances, tmp_path):
    records = [
        solvers.run_cell(solvers.Cell(f"dense/20x16/10{i}", solver, 0, 0.3))
        for i in (0, 1)
        for solver in ("greedy", "exact", "simulated-annealing")
    ]
    best = gaps.best_known(records)
    table = solver_tables.gap_table(records, best)
    assert "`simulated-annealing`" in table and "100 %" in table and "0.00" in table
    assert all(entry["proven"] for entry in best.values())
    assert "`greedy`" in solver_tables.target_table(records, best, gaps.OPTIMUM)
    anytime_curves(records, best, tmp_path / "anytime.png")
    performance_profile(records, best, tmp_path / "profile.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("anytime.png", "profile.png"))
