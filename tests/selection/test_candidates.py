"""Which plan is taken: the best one measured, whatever the table says."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qubo_compress as qc
from qubo_compress.calibration.examples import read_examples, set_aside
from qubo_compress.errors import NoFeasibleFound
from qubo_compress.selection import candidates as selection
from qubo_compress.selection.candidates import Candidate, expectations, finalists, select
from qubo_compress.selection.comparison import Comparison, Estimate, HeldOut

MENU = qc.Menu(bits=(2, 4, 8), sparsity=(0.0, 0.5))
BUDGET = qc.Budget(ratio=12)


@pytest.fixture(scope="module")
def table(digits: Any) -> qc.SensitivityTable:
    return qc.measure(digits.model, digits.calibration, menu=MENU, progress=False)


@pytest.fixture(scope="module")
def held_out(digits: Any) -> HeldOut:
    return HeldOut.of(digits.model, read_examples(digits.validation, 64), "cross-entropy")


def running(digits: Any, table: qc.SensitivityTable, held_out: HeldOut, **options: Any) -> Any:
    problem = table.problem(BUDGET)
    solution = qc.solve(problem, "annealer", work_limit=20, time_limit=60.0)
    return select(table, problem, solution, held_out, **options)


def test_every_opponent_is_in_the_running_and_the_best_measured_wins(
    digits: Any, table: qc.SensitivityTable, held_out: HeldOut
) -> None:
    candidates, winner = running(digits, table, held_out)
    names = [name for candidate in candidates for name in candidate.names]
    assert names[0] == "solver" and {"additive", "uniform", "greedy"} <= set(names)
    assert len(names) == len(set(names)) and len({str(c.plan.choices) for c in candidates}) == len(candidates)
    assert sum(name.startswith("solver") for name in names) <= selection.VERIFIED_PLANS
    assert winner.divergence == min(candidate.divergence for candidate in candidates)
    for candidate in candidates:
        assert candidate.plan.ratio >= 12 and candidate.predicted == candidate.plan.predicted_loss
        again = held_out.compare(candidate.plan.apply(digits.model))
        assert (again.loss, again.divergence.mean) == (candidate.measured_loss, candidate.divergence)
    assert running(digits, table, held_out, verify=1)[0][0] == candidates[0]


def test_a_table_that_lies_loses_to_the_plans_that_need_less_of_it(
    digits: Any, table: qc.SensitivityTable, held_out: HeldOut
) -> None:
    """A factor that rewards bad choices of unlike layers with each other: what few examples do by chance."""
    assert table.factor is not None
    lie = table.factor.copy()
    half = table.offsets[len(table.choices) // 2]
    lie[:half, 0] += 30.0 * (table.linear[:half] > 0)
    lie[half:, 0] -= 30.0 * (table.linear[half:] > 0)
    candidates, winner = running(digits, dataclasses.replace(table, factor=lie), held_out)
    assert candidates[0].predicted < -100
    assert not winner.name.startswith("solver")
    assert winner.divergence < 0.5 * candidates[0].divergence


def test_ties_go_to_the_solvers_order(
    digits: Any, table: qc.SensitivityTable, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = held_out.compare(digits.model)
    monkeypatch.setattr(HeldOut, "compare", lambda self, network: fixed)
    candidates, winner = running(digits, table, held_out)
    assert len(candidates) > 2 and winner is candidates[0]
    better = dataclasses.replace(fixed, divergence=dataclasses.replace(fixed.divergence, mean=-2e-9))
    answers = iter([fixed, better, *[fixed] * 20])
    monkeypatch.setattr(HeldOut, "compare", lambda self, network: next(answers))
    candidates, winner = running(digits, table, held_out)
    assert winner is candidates[1]


def test_one_network_at_a_time(digits: Any, table: qc.SensitivityTable, held_out: HeldOut, monkeypatch: Any) -> None:
    alive: list[Any] = []
    real = HeldOut.compare

    def counting(self: HeldOut, network: Any) -> Any:
        import weakref

        alive.append(weakref.ref(network))
        assert sum(other() is not None for other in alive) <= 2, "networks pile up"
        return real(self, network)

    monkeypatch.setattr(HeldOut, "compare", counting)
    assert len(running(digits, table, held_out)[0]) == len(alive) > 3


def test_an_opponent_without_an_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = selection.solve

    def failing(problem: Any, solver: str, **options: Any) -> Any:
        if solver == "uniform":
            raise NoFeasibleFound("nothing fits")
        return real(problem, solver, **options)

    monkeypatch.setattr(selection, "solve", failing)
    problem = qc.ChoiceProblem.random(kind="low-rank", groups=5, choices=3, seed=0)
    found = dict(selection.opponents(problem))
    assert set(found) == {"additive", "greedy"}
    assert found["additive"].status == "optimal"


def test_magnitude_that_is_not_found_in_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real, errors = selection.solve, np.ones(15)

    def failing(problem: Any, solver: str, **options: Any) -> Any:
        if solver == "exact" and np.ptp(problem.linear) == 0:
            raise NoFeasibleFound("out of time")
        return real(problem, solver, **options)

    problem = qc.ChoiceProblem.random(kind="low-rank", groups=5, choices=3, seed=0)
    assert "magnitude" in dict(selection.opponents(problem, 0, errors))
    monkeypatch.setattr(selection, "solve", failing)
    assert set(dict(selection.opponents(problem, 0, errors))) == {"additive", "uniform", "greedy"}


def test_parts_of_layers_have_a_layerwise_opponent() -> None:
    names = tuple(f"{layer}.weight[{part}]" for layer in "abc" for part in range(4))
    plain = qc.ChoiceProblem.random(kind="low-rank", groups=12, choices=3, seed=4)
    problem = dataclasses.replace(plain, group_names=names)
    found = dict(selection.opponents(problem))["layerwise"]
    assert problem.is_feasible(found.assignment)
    assert all(len(set(layer)) == 1 for layer in found.assignment.reshape(3, 4).tolist())
    assert found.energy == problem.energy(found.assignment)
    alike = [np.repeat(few, 4) for few in itertools.product(range(3), repeat=3)]
    assert found.energy == pytest.approx(min(problem.energy(a) for a in alike if problem.is_feasible(a)), rel=1e-6)
    assert "layerwise" not in dict(selection.opponents(plain))


# ------------------------------------------------------------------------------------------- in compress

OPTIONS: dict[str, Any] = {"menu": MENU, "solver": "greedy", "time_limit": 1.0, "progress": False}


def test_compress_takes_the_winner(digits: Any) -> None:
    result = qc.compress(digits.model, digits.calibration, BUDGET, recover=False, **OPTIONS)
    first = result.rounds[0]
    assert first.chosen.plan == result.plan and first.winner == first.chosen.name
    assert first.measure == min(candidate.comparison.measure for candidate in first.candidates)
    assert result.applied_comparison == first.chosen.comparison
    assert first.checked == tuple((c.predicted, c.measured_loss) for c in first.candidates)
    assert (result.recovered, result.recovered_comparison, result.recovery_kept) == (None, None, False)
    assert result.final is result.compressed and result.model is result.compressed_model


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("harm", [False, True])
def test_recovery_is_kept_only_where_held_out_examples_agree(
    digits: Any, epochs: int, harm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["qubo_compress.pipeline.compress"]

    def recovered(small: Any, batches: Any, teacher: Any, **options: Any) -> Any:
        asked.append(options.get("epochs", 0))
        if not harm:
            return real(small, batches, teacher, **options)
        return worst.apply(teacher)

    asked: list[int] = []
    real = module.recover_model
    monkeypatch.setattr(module, "recover_model", recovered)
    table = qc.measure(digits.model, digits.calibration[:1], menu=MENU, metric="magnitude", progress=False)
    worst = table.plan(qc.solve(table.problem(qc.Budget(ratio=18)), "greedy"))
    result = qc.compress(
        digits.model, digits.calibration, qc.Budget(ratio=12), epochs=epochs, **{**OPTIONS, "metric": "magnitude"}
    )
    assert result.recovery_kept is not harm
    # Without fine-tuning, a repair that is kept is made again with the held-out examples too.
    judged = [candidate for candidate in result.taken.candidates if candidate.repaired is not None]
    assert asked == [epochs] * (len(judged) + (not epochs and not harm))
    assert min(judged, key=lambda candidate: candidate.final_measure).plan == result.plan
    assert result.recovered is not None and result.recovered_comparison is not None
    assert (result.recovered_comparison.measure > result.applied_comparison.measure) is harm
    assert result.final is (result.compressed if harm else result.recovered)
    assert result.comparison is (result.applied_comparison if harm else result.recovered_comparison)
    assert (result.model is result.compressed_model) is harm


@pytest.mark.parametrize(
    ("given", "held"), [(1, 1), (2, 1), (3, 1), (10, 5), (40, 20), (100, 50), (128, 64), (200, 64), (400, 80)]
)
def test_at_least_64_examples_are_held_out_or_half(given: int, held: int) -> None:
    examples = read_examples([(torch.randn(given, 2), torch.zeros(given).long())])
    calibration, held_out = set_aside(examples)
    assert held_out.count == held
    assert calibration.count == (given if given == 1 else given - held)
    assert math.isclose(sum(float(part.weights.sum()) for part in held_out.slices), 1.0)


def test_finalists_are_the_best_of_every_kind_and_the_solvers_own_answer() -> None:
    def candidate(name: str, measure: float, *also: str) -> Candidate:
        found = Estimate(measure, 0.1)
        comparison = Comparison(measure, found, found, True, 0, 0, Estimate(0.0, 0.1), 8, 8)
        return Candidate(name, None, 0.0, comparison, also)  # type: ignore[arg-type]

    running = tuple(
        candidate(*of)
        for of in (("solver", 0.3), ("solver 2", 0.2), ("additive", 0.25), ("uniform", 0.9), ("greedy", 0.1))
    )
    found = finalists(running, running[4])
    assert [one.name for one in found] == ["greedy", "solver 2", "additive", "solver", "uniform"]
    assert [one.name for one in finalists(running, running[1])] == [
        "solver 2",
        "greedy",
        "additive",
        "solver",
        "uniform",
    ]
    shared = (candidate("solver", 0.3, "uniform"), candidate("solver 2", 0.2), candidate("solver 3", 0.25, "greedy"))
    assert [one.name for one in finalists(shared, shared[1])] == ["solver 2", "solver 3", "solver"]
    broken = (candidate("solver", math.inf), candidate("additive", 0.1), candidate("uniform", math.inf))
    assert [one.name for one in finalists(broken, broken[1])] == ["additive"]


@settings(max_examples=50, deadline=None)
@given(
    plans=st.lists(st.tuples(st.floats(1e-4, 10), st.floats(1e-4, 10), st.booleans()), min_size=2, max_size=9),
    scale=st.floats(1e-3, 1e3),
    own=st.floats(1e-4, 10),
)
def test_an_expectation_depends_on_other_plans_only_and_on_no_common_factor(
    plans: list[tuple[float, float, bool]], scale: float, own: float
) -> None:
    predicted, measured, sought = map(list, zip(*plans, strict=True))
    found = expectations(predicted, measured, sought)
    assert expectations(predicted, [own, *measured[1:]], sought)[0] == found[0]
    scaled = expectations([scale * value for value in predicted], measured, sought)
    corrected = sum(sought) > 1
    for before, after, chosen in zip(found, scaled, sought, strict=True):
        assert after == pytest.approx(before if chosen and corrected else scale * before)


def test_without_another_plan_the_prediction_stays() -> None:
    assert expectations([0.3], [5.0], [True]) == [0.3]
    assert expectations([0.3, 0.2], [5.0, 0.1], [True, False]) == [0.3, 0.2]
    found = expectations([0.3, 0.0, 0.2], [5.0, 1.0, math.inf], [True] * 3)
    assert found == [0.3, 0.0, pytest.approx(0.2 * 5.0 / 0.3)]


def test_the_plan_predicted_most_alike_corrects() -> None:
    found = expectations([0.1, 0.11, 1.0], [0.2, 0.11, 9.0], [True] * 3)
    assert found == pytest.approx([0.1, 0.22, 1.0])
