"""The categorical annealer: right on small problems, repeatable, on time, and never over a budget."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import InfeasibleBudget, InvalidSolverOption
from qubo_compress.problem.generators import planted_problem, random_problem
from qubo_compress.solvers.annealer import annealer, kernels, kicks, moves
from qubo_compress.solvers.annealer import polish as polishing
from qubo_compress.solvers.annealer.annealer import Annealer, warm_up
from qubo_compress.solvers.annealer.jobs import draw_from, make_state, run_length
from qubo_compress.solvers.annealer.tables import DENSE, FACTOR, SPARSE, make_tables

KINDS = ("separable", "sparse", "dense", "low-rank", "planted")


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    warm_up()


def brute_force(problem):
    """Least feasible energy, or None."""
    energies = [
        problem.energy(np.array(x))
        for x in itertools.product(*(range(n) for n in problem.group_sizes))
        if problem.is_feasible(np.array(x))
    ]
    return min(energies, default=None)


@st.composite
def small_problems(draw):
    """Uneven groups, zero to three budgets of very different scale, all three forms, any energy scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total, budgets = int(offsets[-1]), draw(st.integers(0, 3))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e5]))
    group = np.repeat(np.arange(len(sizes)), sizes)
    form = draw(st.sampled_from(["none", "factor", "pairs"]))
    interactions = {}
    if form == "factor":
        interactions["factor"] = np.sqrt(scale) * rng.standard_normal((total, draw(st.integers(1, 4))))
    if form == "pairs":
        upper = np.triu(rng.standard_normal((total, total)) * (rng.random((total, total)) < 0.6))
        upper[group[:, None] == group[None, :]] = 0.0
        interactions["pairs"] = sparse.csr_array(scale * (upper + upper.T))
    magnitudes = 10 ** rng.integers(1, 6, size=(budgets, 1))
    costs = (rng.random((budgets, total)) * magnitudes).astype(np.int64)
    witness = offsets[:-1] + (rng.random(len(sizes)) * sizes).astype(int)  # something always fits
    return ChoiceProblem(
        linear=scale * rng.standard_normal(total),
        group_offsets=offsets,
        costs=costs,
        limits=costs[:, witness].sum(axis=1) + 7,
        fixed_costs=np.full(budgets, 7),
        constant=float(rng.standard_normal()),
        **interactions,
    )


@settings(max_examples=60, deadline=None)
@given(problem=small_problems(), seed=st.integers(0, 100))
def test_small_problems_are_solved_to_the_optimum(problem, seed):
    best = brute_force(problem)
    solution = solve(problem, "annealer", time_limit=20.0, work_limit=5000, seed=seed)
    spread = max(1e-12, float(np.ptp(problem.linear)))
    assert solution.energy == pytest.approx(best, abs=1e-5 * spread)
    assert all(problem.is_feasible(member.assignment) for member in solution.pool)
    assert solution.bound is None or solution.bound <= best + 1e-6 * max(1.0, abs(best))


def tables_in_every_form(problem):
    """The tables chosen for a problem, and the same problem in the other forms it can take."""
    tables = make_tables(problem)
    yield tables
    if problem.factor is not None:
        yield replace(tables, form=FACTOR, factor=problem.factor, dense=np.zeros((0, 0), dtype=np.float32))
        yield make_tables(as_pairs(problem))
    elif problem.pairs is not None and tables.form == DENSE:
        rows = problem.pairs
        yield replace(
            tables,
            form=SPARSE,
            indptr=rows.indptr.astype(np.int64),
            indices=rows.indices.astype(np.int32),
            data=rows.data,
        )


def as_pairs(problem):
    gram = problem.factor.astype(np.float64) @ problem.factor.T.astype(np.float64)
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    gram[group[:, None] == group[None, :]] = 0.0
    return problem._replace(factor=None, pairs=sparse.csr_array(gram))


@settings(max_examples=25, deadline=None)
@given(problem=small_problems(), seed=st.integers(0, 100))
def test_kernels_keep_energy_totals_and_fields_true(problem, seed):
    """After many moves of every kind the incremental figures equal those computed afresh."""
    for tables in tables_in_every_form(problem):
        rng = np.random.default_rng(seed)
        state = make_state(tables, rng, np.full(problem.num_budgets, 1e-3))
        scale = max(1e-12, float(np.ptp(problem.linear)))
        trades = 5 if problem.num_groups > 1 else 0
        moves.anneal(tables, state, moves.Cooling(20, scale, 0.01 * scale, 0.5, 1.5, 0.1, trades), 0, 20)
        polishing.repair(tables, state, 50)
        polishing.descend(tables, state, 0.0)
        if problem.num_groups > 1:
            for first in range(problem.num_groups):
                polishing.improve_pairs(tables, state, first, first + 1, problem.num_groups, 1e-9 * scale)
            polishing.improve_random_pairs(tables, state, 1e-9 * scale, 10)
        local = state.chosen - problem.group_offsets[:-1]
        expected = problem.energy(local) - problem.constant
        size = float(np.abs(problem.linear).sum()) + abs(expected)
        assert state.energies[0] == pytest.approx(expected, abs=1e-4 * size)
        assert np.array_equal(state.totals + problem.fixed_costs, problem.totals(local))
        for group in range(problem.num_groups):
            values = kernels.energies_of(tables, state, group)[: problem.group_sizes[group]]
            assert np.allclose(values - values[local[group]], problem.deltas(local, group), atol=1e-4 * size)


def test_a_visit_draws_from_the_boltzmann_distribution():
    problem = random_problem("dense", 2, 4, 5, budgets=0)
    tables = make_tables(problem)
    state = make_state(tables, np.random.default_rng(0), np.zeros(0))
    temperature = 0.3 * float(np.ptp(problem.linear))
    counts = np.zeros((4, 4))
    cooling = moves.Cooling(1, temperature, temperature, 0.0, 1.0, 0.1, trades=1)
    for _ in range(40_000):
        moves.anneal(tables, state, cooling, 0, 1)
        counts[state.chosen[0], state.chosen[1] - 4] += 1
    energies = np.array([[problem.energy([i, j]) for j in range(4)] for i in range(4)])
    expected = np.exp(-energies / temperature)
    expected /= expected.sum()
    assert np.abs(counts / counts.sum() - expected).max() < 0.015


@settings(max_examples=25, deadline=None)
@given(problem=small_problems(), seed=st.integers(0, 100))
def test_a_settled_state_is_beaten_by_no_single_or_double_change(problem, seed):
    """The pair search passes most combinations over unseen; none of those may have been an improvement."""
    for tables in tables_in_every_form(problem):
        if tables.form == FACTOR:
            continue
        state = make_state(tables, np.random.default_rng(seed), np.full(problem.num_budgets, 1e-3))
        if not polishing.repair(tables, state, 100):
            continue
        scale = max(1e-12, float(np.ptp(problem.linear)))
        state.dirty[:] = 1
        kicks.settle(tables, state, 1e-9 * scale)
        here = state.chosen - problem.group_offsets[:-1]
        assert problem.is_feasible(here)
        energy, size = problem.energy(here), float(np.abs(problem.linear).sum()) + abs(problem.energy(here))
        for first, second in itertools.product(range(problem.num_groups), repeat=2):
            for v, w in itertools.product(range(problem.group_sizes[first]), range(problem.group_sizes[second])):
                other = here.copy()
                other[first], other[second] = v, w
                if problem.is_feasible(other):
                    assert problem.energy(other) >= energy - 1e-5 * size


@settings(max_examples=25, deadline=None)
@given(problem=small_problems(), seed=st.integers(0, 100))
def test_kicks_never_lose_the_best_and_never_exceed_a_budget(problem, seed):
    tables = make_tables(problem)
    state = make_state(tables, np.random.default_rng(seed), np.full(problem.num_budgets, 1e-3))
    if tables.form == FACTOR or problem.num_groups < 2 or not polishing.repair(tables, state, 100):
        return
    state.best[:] = state.chosen
    state.energies[1] = begun = state.energies[0]
    scale = max(1e-12, float(np.ptp(problem.linear)))
    tried = kicks.kick(tables, state, np.full(problem.num_budgets, 1e-4 * scale), 0, 300, 0.3, 1e-9 * scale)
    best = state.best - problem.group_offsets[:-1]
    assert tried >= 300
    assert state.free.all()
    assert state.energies[1] <= begun
    assert problem.is_feasible(best)
    size = float(np.abs(problem.linear).sum()) + abs(problem.energy(best))
    assert state.energies[1] + problem.constant == pytest.approx(problem.energy(best), abs=1e-4 * size)


def test_draws_from_a_mixture_stay_in_their_groups_and_follow_the_shares():
    offsets, shares = np.array([0, 2, 5]), np.array([0.25, 0.75, 0.0, 1.0, 0.0])
    rng = np.random.default_rng(0)
    draws = np.array([draw_from(shares, offsets, rng) for _ in range(2000)])
    assert set(draws[:, 1]) == {3}
    assert abs((draws[:, 0] == 1).mean() - 0.75) < 0.04


@pytest.mark.parametrize("seed", range(2))
def test_dear_choices_give_way_to_many_cheap_ones(seed):
    """Few groups hold most of the bytes in coarse steps, as in networks: soft prices settle in the wrong basin."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat([150_000, 36_000, 9_000, 250], [4, 6, 6, 8])
    fractions = np.array([1.0, 0.5, 0.25, 0.19, 0.125, 0.09, 0.06, 0.04])
    growth = (1.0 - fractions) ** 3 * rng.lognormal(0.0, 0.7, size=(sizes.size, 1)) * (sizes[:, None] / 9_000) ** 0.5
    factor = rng.standard_normal((sizes.size, 1, 12)) + 0.8 * rng.standard_normal((sizes.size, 8, 12))
    factor *= np.sqrt(0.1 * growth)[:, :, None] / np.linalg.norm(factor, axis=2, keepdims=True)
    costs = np.rint(sizes[:, None] * fractions).astype(np.int64)
    problem = ChoiceProblem(
        linear=(0.1 * growth).ravel(),
        group_offsets=np.arange(sizes.size + 1) * 8,
        costs=costs.reshape(1, -1),
        limits=[int(costs[:, 0].sum() / 12)],
        factor=factor.reshape(-1, 12),
    )
    proof = solve(problem, "exact", time_limit=20.0)
    assert proof.status == "optimal"
    for start in range(3):
        solution = solve(problem, "annealer", time_limit=20.0, work_limit=1200, seed=start)
        assert solution.energy == pytest.approx(proof.energy, rel=1e-6)


def test_a_tight_relaxation_is_rounded_to_the_planted_optimum():
    problem, optimum = planted_problem(40, 8, 0, rank=24)
    solution = solve(problem, "annealer", time_limit=20.0, work_limit=4000)
    assert solution.energy == pytest.approx(problem.energy(optimum), abs=1e-5)


def test_separable_problems_are_solved_by_table():
    problem = random_problem("separable", 60, 12, 0)
    solution = solve(problem, "annealer", time_limit=20.0, work_limit=500)
    assert solution.energy == pytest.approx(solve(problem, "exact").energy, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budgets", [1, 3])
def test_a_timed_run_is_repeated_exactly_by_its_work(kind, budgets):
    problem = random_problem(kind, 30, 8, 1, budgets=budgets)
    timed = solve(problem, "annealer", time_limit=0.4, seed=5)
    again = solve(problem, Annealer(threads=1), time_limit=60.0, work_limit=max(1, timed.work), seed=5)
    assert np.array_equal(timed.assignment, again.assignment)
    if "optimal" not in (timed.status, again.status):  # a bound that is met ends the search whenever it arrives
        assert timed.work == again.work
        assert len(timed.pool) == len(again.pool)


def test_the_answer_does_not_depend_on_the_number_of_threads():
    problem = random_problem("dense", 20, 8, 2)
    answers = [solve(problem, Annealer(threads=n), time_limit=60.0, work_limit=3000, seed=1) for n in (1, 2, 5)]
    assert len({answer.assignment.tobytes() for answer in answers}) == 1
    assert len({tuple(member.energy for member in answer.pool) for answer in answers}) == 1


def test_the_time_limit_is_kept(clock):
    problem = random_problem("dense", 60, 16, 0)

    def work_and_reads(step):
        with clock(step) as wound:
            return solve(problem, Annealer(threads=1), time_limit=1.0).work, wound.reads

    hurried, few = work_and_reads(0.1)  # the time is over at the tenth reading
    patient, many = work_and_reads(0.002)
    assert few <= 40 and 3 * few <= many and hurried < patient


def test_compiling_is_apart(clock, monkeypatch):
    problem = random_problem("dense", 20, 6, 0)
    with clock(0.002) as wound:

        def compile_for_a_minute(_structure):
            wound.ahead += 60.0
            return 60.0

        monkeypatch.setattr(annealer, "warm_up", compile_for_a_minute)
        solution = solve(problem, Annealer(threads=1), time_limit=1.0)
    assert solution.work > 0 and solution.timing["compile"] == pytest.approx(60.0, abs=0.01)
    assert solution.timing["build"] + solution.timing["solve"] < 2.0
    assert solution.timing["total"] > 60.0


def test_the_trace_falls_to_the_energy():
    solution = solve(random_problem("dense", 60, 16, 0), "annealer", time_limit=60.0, work_limit=2000)
    assert solution.trace[-1][1] == pytest.approx(solution.energy, abs=1e-5)
    energies = [energy for _, energy, _ in solution.trace]
    assert energies == sorted(energies, reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_keep_everywhere_where_nothing_binds(seed):
    """The published solver of a quadratic-sensitivity method fails this on its own tables."""
    problem = random_problem("low-rank", 25, 8, seed, rank=40)
    # No test may take so long: a met bound ends the search.
    solution = solve(problem.with_limits(problem.limits * 10), "annealer", time_limit=3600.0)
    assert not solution.assignment.any()
    assert solution.energy == 0.0
    assert solution.status == "optimal"


def test_the_planted_optimum_is_nearly_reached():
    problem, optimum = planted_problem(60, 8, 0, rank=32)
    rng = np.random.default_rng(0)
    typical = np.mean([problem.energy(rng.integers(0, 8, 60)) for _ in range(50)])
    solution = solve(problem, "annealer", time_limit=20.0, work_limit=4000)
    assert solution.energy - problem.energy(optimum) <= 0.05 * (typical - problem.energy(optimum))


def test_the_pool_is_distinct_feasible_and_sorted():
    problem = random_problem("dense", 40, 8, 0)
    solution = solve(problem, Annealer(pool_size=20), time_limit=20.0, work_limit=6000)
    assert 5 < len(solution.pool) <= 20
    assert len({member.assignment.tobytes() for member in solution.pool}) == len(solution.pool)
    energies = [member.energy for member in solution.pool]
    assert energies == sorted(energies)
    assert energies[0] == solution.energy


def test_one_group_ends_at_once():
    problem = random_problem("low-rank", 1, 16, 0)
    solution = solve(problem, "annealer", time_limit=3600.0)  # no test may take so long
    assert solution.energy == pytest.approx(brute_force(problem))
    assert solution.status == "optimal" and solution.work == 0


def test_restarts_limit_the_runs():
    problem = random_problem("dense", 20, 6, 0)
    solution = solve(problem, Annealer(restarts=3), time_limit=30.0)
    assert solution.work == sum(run_length(number) for number in range(3))


def test_contradicting_budgets_are_recognised():
    problem = ChoiceProblem(
        linear=[0.0, 0.0], group_offsets=[0, 2], costs=[[1, 5], [5, 1]], limits=[2, 2], choice_names=["a", "b"]
    )
    with pytest.raises(InfeasibleBudget):
        solve(problem, "annealer", time_limit=2.0)


@pytest.mark.parametrize("options", [{"restarts": 0}, {"threads": -1}, {"pool_size": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InvalidSolverOption, match="must be at least 1"):
        Annealer(**options)


def test_an_interrupt_returns_the_best_so_far(ctrl_c):
    problem = random_problem("dense", 60, 16, 0)
    ctrl_c(0.7)
    solution = solve(problem, "annealer", time_limit=3600.0)
    assert solution.interrupted
    assert problem.is_feasible(solution.assignment)
