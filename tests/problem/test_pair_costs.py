"""Pair costs of budgets: totals, bounds on them, refusals, files and smaller problems."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import qubo_compress as qc
from qubo_compress import ChoiceProblem
from qubo_compress.errors import CorruptArtifact, InfeasibleBudget, InvalidProblem, UnsupportedProblem
from qubo_compress.problem.energy_scale import standardise
from qubo_compress.problem.generators import random_problem
from qubo_compress.problem.pair_costs import costs_beside
from qubo_compress.problem.subproblems import condition, reduce_dominated
from qubo_compress.solvers.verification import refuse_unreachable
from qubo_compress.testing import brute_force

KINDS = ("separable", "sparse", "low-rank", "channels")


def problem_of(kind: str, seed: int, budgets: int = 2, groups: int = 5, choices: int = 3) -> ChoiceProblem:
    share = 0.0 if kind == "channels" else 0.8
    return random_problem(kind, groups, choices, seed, budgets=budgets, pair_costs=share, rank=None)


def crowded(seed: int, budgets: int = 1) -> ChoiceProblem:
    """Small numbers, groups of different sizes, and a budget without pair costs among others."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, size=int(rng.integers(2, 5)))
    group = np.repeat(np.arange(sizes.size), sizes)
    matrices: list[Any] = []
    for budget in range(budgets):
        upper = np.triu(rng.integers(-3, 4, size=(group.size, group.size)) * (rng.random((group.size,) * 2) < 0.5), 1)
        upper[group[:, None] == group[None, :]] = 0
        matrices.append(None if budget == 1 else sparse.csr_array(upper + upper.T))
    return ChoiceProblem(
        linear=np.round(rng.random(group.size), 1), group_offsets=np.concatenate([[0], np.cumsum(sizes)]),
        costs=rng.integers(0, 5, size=(budgets, group.size)), limits=rng.integers(0, 10, size=budgets),
        pair_costs=matrices, constant=1.0,
    )  # fmt: skip


def true_totals(problem: ChoiceProblem, assignment: np.ndarray) -> list[int]:
    """The definition, term by term."""
    chosen = problem.selected(assignment).tolist()
    totals = []
    for b in range(problem.num_budgets):
        matrix = None if problem.pair_costs is None else problem.pair_costs[b]
        dense = np.zeros((problem.num_choices,) * 2, dtype=np.int64) if matrix is None else matrix.toarray()
        total = int(problem.fixed_costs[b]) + sum(int(problem.costs[b, v]) for v in chosen)
        totals.append(total + sum(int(dense[v, w]) for v, w in itertools.combinations(chosen, 2)))
    return totals


def assignments_of(problem: ChoiceProblem) -> list[np.ndarray]:
    return [np.array(picks) for picks in itertools.product(*(range(size) for size in problem.group_sizes))]


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), budgets=st.integers(1, 2))
def test_totals_feasibility_and_their_bounds(kind: str, seed: int, budgets: int) -> None:
    for problem in (problem_of(kind, seed, budgets, groups=4), crowded(seed, budgets)):
        lower, upper = problem.without_pair_costs(), problem.without_pair_costs("most")
        smallest = problem.smallest_totals()
        assert lower.pair_costs is None and (lower.costs >= 0).all()
        for assignment in assignments_of(problem):
            totals = true_totals(problem, assignment)
            assert problem.totals(assignment).tolist() == totals
            assert problem.is_feasible(assignment) == all(t <= u for t, u in zip(totals, problem.limits, strict=True))
            assert (lower.totals(assignment) <= totals).all() and (upper.totals(assignment) >= totals).all()
            assert (smallest <= totals).all()
            assert lower.energy(assignment) == problem.energy(assignment)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS))
def test_a_change_of_one_group_costs_the_difference_beside_the_others(seed: int, kind: str) -> None:
    problem = problem_of(kind, seed)
    rng = np.random.default_rng(seed)
    here = rng.integers(problem.group_sizes)
    costs = costs_beside(problem, problem.selected(here))
    for group in range(problem.num_groups):
        there = here.copy()
        there[group] = rng.integers(problem.group_sizes[group])
        old, new = problem.group_offsets[group] + here[group], problem.group_offsets[group] + there[group]
        assert (problem.totals(there) - problem.totals(here) == costs[:, new] - costs[:, old]).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS), draw=st.integers(0, 10**6))
def test_a_block_has_the_totals_of_the_whole(seed: int, kind: str, draw: int) -> None:
    problem, rng = problem_of(kind, seed), np.random.default_rng(draw)
    here = rng.integers(problem.group_sizes)
    groups = rng.permutation(problem.num_groups)[: int(rng.integers(1, 4))]
    block = condition(problem, here, groups)
    for small in assignments_of(block.problem):
        whole = block.lift(small)
        assert block.problem.totals(small).tolist() == true_totals(problem, whole)
        assert block.problem.energy(small) == pytest.approx(problem.energy(whole), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), budgets=st.integers(1, 3))
def test_removing_dominated_choices_keeps_the_optimum(seed: int, budgets: int) -> None:
    problem = crowded(seed, budgets)
    reduction = reduce_dominated(problem)
    before, after = brute_force(problem), brute_force(reduction.problem)
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        assert after[0] == pytest.approx(before[0], abs=1e-9)
        assert problem.totals(reduction.lift(after[1])).tolist() == reduction.problem.totals(after[1]).tolist()


def test_a_pair_cost_saves_a_choice_that_would_be_dominated() -> None:
    # Alone the second choice of the first group costs more energy and as many bytes, but it saves bytes elsewhere.
    saving = np.zeros((4, 4), dtype=np.int64)
    saving[1, 2] = saving[2, 1] = -3
    options = {"linear": [0.0, 1.0, 0.0, 9.0], "group_offsets": [0, 2, 4], "costs": [[4, 4, 4, 1]], "limits": [5]}
    assert reduce_dominated(ChoiceProblem(**options)).kept.tolist() == [0, 2, 3]
    assert reduce_dominated(ChoiceProblem(**options, pair_costs=[sparse.csr_array(saving)])).removed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_files_keep_pair_costs(kind: str, tmp_path: Path) -> None:
    problem = problem_of(kind, 1)
    problem.save(tmp_path / "p.npz")
    again = ChoiceProblem.load(tmp_path / "p.npz")
    assert again.pair_costs is not None and problem.pair_costs is not None
    for one, other in zip(again.pair_costs, problem.pair_costs, strict=True):
        assert one is not None and other is not None and (one != other).nnz == 0 and one.dtype == np.int64
    mixed = crowded(2, 3)
    mixed.save(tmp_path / "p.npz")
    again = ChoiceProblem.load(tmp_path / "p.npz")
    assert again.pair_costs is not None and again.pair_costs[1] is None
    assert all(again.totals(a).tolist() == true_totals(mixed, a) for a in assignments_of(mixed))


def test_a_file_without_pair_costs_is_as_before(tmp_path: Path) -> None:
    plain = random_problem("sparse", 4, 3, 0)
    plain.save(tmp_path / "plain.npz")
    data = (tmp_path / "plain.npz").read_bytes()
    assert b"qubo_compress problem 2" in data and b"pair_costs" not in data
    problem_of("sparse", 0).save(tmp_path / "pairs.npz")
    assert b"qubo_compress problem 3" in (tmp_path / "pairs.npz").read_bytes()


@pytest.mark.parametrize("change", ["lacks", "places", "rows", "fractions"])
def test_files_with_wrong_pair_costs_are_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    problem_of("separable", 1).save(path)
    with np.load(path) as stored:
        found = dict(stored)
    if change == "lacks":
        del found["pair_costs_indptr"]
    elif change == "places":
        found["pair_costs_indices"][0] = 10**6
    elif change == "rows":
        found["pair_costs_indptr"][1] = 10**6
    else:
        found["pair_costs_data"] = found["pair_costs_data"] * 0.5
    np.savez_compressed(path, **found)  # without a checksum, as version 0.4 wrote them
    with pytest.raises(CorruptArtifact, match=r"pair.costs"):
        ChoiceProblem.load(path)


GOOD = {"linear": [0.0, 1.0, 0.0, 2.0], "group_offsets": [0, 2, 4], "costs": [[8, 2, 8, 2]], "limits": [10]}


def matrix(*entries: tuple[int, int, Any], dtype: Any = np.int64) -> sparse.csr_array:
    dense = np.zeros((4, 4), dtype=dtype)
    for v, w, value in entries:
        dense[v, w] = value
    return sparse.csr_array(dense)


@pytest.mark.parametrize(
    ("pair_costs", "said"),
    [
        (matrix((0, 2, 1), (2, 0, 1)), "put the matrix into a list"),
        ([], "each of 1 budgets; got 0"),
        ([np.zeros((4, 4), dtype=int)], "scipy sparse array; got ndarray"),
        ([sparse.csr_array((3, 3), dtype=int)], r"pair_costs\[0\] must have shape \(4, 4\)"),
        ([matrix((0, 2, 1), (2, 0, 2))], r"not symmetric.*pair_costs\[0\]\[v, w\]"),
        ([matrix((0, 1, 1), (1, 0, 1))], "couples two choices of group 0"),
        ([matrix((0, 2, 0.5), (2, 0, 0.5), dtype=float)], "must hold integers; got float64"),
        ([matrix((0, 2, 1), (2, 0, 1), dtype=bool)], "must hold integers; got bool"),
        ([matrix((0, 2, 2**54), (2, 0, 2**54))], "2\\*\\*53"),
        ([matrix((0, 2, 2**63), (2, 0, 2**63), dtype=np.uint64)], "2\\*\\*62"),
        ([matrix((0, 2, -(2**63)), (2, 0, -(2**63)))], "2\\*\\*62"),
    ],
)
def test_what_is_no_pair_cost_is_refused(pair_costs: Any, said: str) -> None:
    with pytest.raises(InvalidProblem, match=said):
        ChoiceProblem(**GOOD, pair_costs=pair_costs)


def test_places_beyond_the_choices_are_refused() -> None:
    wrong = matrix((0, 2, 1), (2, 0, 1))
    wrong.indices[0] = 10**6
    with pytest.raises(InvalidProblem, match="names choice 1000000"):
        ChoiceProblem(**GOOD, pair_costs=[wrong])


def test_duplicates_are_summed_and_zeros_are_none() -> None:
    twice = sparse.coo_array(
        (np.array([100, 100, 100, 100], dtype=np.int8), ([0, 0, 2, 2], [2, 2, 0, 0])), shape=(4, 4)
    )
    assert ChoiceProblem(**GOOD, pair_costs=[twice]).totals([0, 0]).tolist() == [216]
    assert ChoiceProblem(**GOOD, pair_costs=[sparse.csr_array((4, 4), dtype=int)]).pair_costs is None
    assert ChoiceProblem(**GOOD, pair_costs=[None]).pair_costs is None


def test_pair_costs_stay_with_the_problem() -> None:
    problem = problem_of("low-rank", 3)
    for other in (
        problem.with_limits(problem.limits + 1), problem.without_interactions(), problem.without_constant(),
        standardise(problem).problem,
    ):  # fmt: skip
        assert other.pair_costs is not None
        assert other.totals([1] * 5).tolist() == problem.totals([1] * 5).tolist()
    assert problem.without_pair_costs().without_pair_costs().pair_costs is None


def test_channels_cost_what_their_weights_take() -> None:
    """Bytes counted weight by weight: one is stored unless the channel that it reads or that reads it is removed."""
    problem = random_problem("channels", groups=6, choices=3, seed=4, neighbours=2)
    weight = problem.costs[0] // 2
    assert problem.choice_names[2::3] == ("remove",) * 6
    for assignment in assignments_of(problem)[::7]:
        total = int(problem.fixed_costs[0])
        for reader in range(6):
            layer = reader // 2
            inputs = 2 if layer == 0 else sum(assignment[2 * layer - 2 : 2 * layer] != 2)
            total += int(inputs) * int(weight[3 * reader + assignment[reader]])
        assert problem.totals(assignment).tolist() == [total]


def test_an_unreachable_budget_is_refused_without_a_false_claim() -> None:
    problem = problem_of("channels", 0, budgets=1)
    with pytest.raises(InfeasibleBudget, match="it is proven that no assignment has less than") as caught:
        refuse_unreachable(problem.with_limits(problem.smallest_totals() - 1))
    assert caught.value.smallest is None


def test_options_of_random_problems() -> None:
    for share in (-1.0, np.inf, np.nan):
        with pytest.raises(InvalidProblem, match="pair_costs must be 0 or"):
            random_problem("dense", 3, 3, 0, pair_costs=share)
    with pytest.raises(InvalidProblem, match="other kinds than 'channels'"):
        random_problem("channels", 3, 3, 0, pair_costs=1.0)
    for groups, choices in ((1, 3), (4, 1), (1, 1)):
        for kind in KINDS:
            assert problem_of(kind, 0, groups=groups, choices=choices).num_groups == groups


def test_a_solver_that_cannot_take_pair_costs_says_which_can() -> None:
    with pytest.raises(UnsupportedProblem, match="solver 'clado' cannot take pair costs.*bytes, budget1.*one of: "):
        qc.solve(problem_of("sparse", 0), "clado")
