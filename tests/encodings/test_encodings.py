"""Encodings say the same as the problem, on every assignment, and decode what they encode."""

from __future__ import annotations

import itertools

import dimod
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from qubo_compress import ChoiceProblem
from qubo_compress.encodings import DomainWall, OneHot, names, to_bqm, to_cqm, worst_case_penalties
from qubo_compress.encodings.domain_wall import by_cost
from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import InvalidAssignment, InvalidBudget, InvalidProblem, ProblemTooLarge, UnknownName
from qubo_compress.problem.generators import random_problem

ENCODINGS = ("domain-wall", "one-hot")


@st.composite
def small_problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    total, budgets = int(offsets[-1]), draw(st.integers(0, 2))
    group = np.repeat(np.arange(len(sizes)), sizes)
    form = draw(st.sampled_from(["none", "factor", "pairs"]))
    interactions = {}
    if form == "factor":
        interactions["factor"] = rng.standard_normal((total, 2))
    if form == "pairs":
        upper = np.triu(rng.standard_normal((total, total)))
        upper[group[:, None] == group[None, :]] = 0.0
        interactions["pairs"] = sparse.csr_array(upper + upper.T)
    return ChoiceProblem(
        linear=rng.standard_normal(total),
        group_offsets=offsets,
        costs=rng.integers(0, 50, size=(budgets, total)),
        limits=rng.integers(20, 200, size=budgets),
        fixed_costs=rng.integers(0, 9, size=budgets),
        constant=float(rng.standard_normal()),
        **interactions,
    )


def assignments(problem):
    return np.array(list(itertools.product(*(range(n) for n in problem.group_sizes))))


def bits_of(problem, encoding, assignment):
    """The valid pattern of an assignment, written independently of the encodings."""
    order, bits = by_cost(problem), []
    for g, choice in enumerate(assignment):
        start, stop = problem.group_offsets[g], problem.group_offsets[g + 1]
        if encoding == "one-hot":
            bits += [int(k == choice) for k in range(stop - start)]
        else:
            position = list(order[start:stop]).index(start + choice)
            bits += [int(i < position) for i in range(stop - start - 1)]
    return bits


@settings(max_examples=60, deadline=None)
@given(problem=small_problems(), encoding=st.sampled_from(ENCODINGS), price=st.floats(0, 3))
def test_valid_patterns_have_the_energy_of_the_problem(problem, encoding, price):
    prices = np.full(problem.num_budgets, price)
    bqm, decode = to_bqm(problem, encoding, multipliers=prices)
    everything = assignments(problem)
    rows = np.array([bits_of(problem, encoding, x) for x in everything]).reshape(len(everything), -1)
    expected = [problem.energy(x) + prices @ (problem.totals(x) - problem.limits) for x in everything]
    assert np.allclose(bqm.energies((rows, range(bqm.num_variables))), expected, atol=1e-4)
    decoded = decode(rows)
    assert np.array_equal(decoded.assignments, everything)
    assert not decoded.invalid.any()


@settings(max_examples=40, deadline=None)
@given(problem=small_problems(), encoding=st.sampled_from(ENCODINGS))
def test_ground_states_decode_to_the_optimum(problem, encoding):
    kind = OneHot() if encoding == "one-hot" else DomainWall()
    penalty = 1.001 * worst_case_penalties(problem, kind) + 1e-6
    bqm, decode = to_bqm(problem, encoding, budget="none", penalty=penalty)
    assume(0 < bqm.num_variables <= 12)
    ground = dimod.ExactSolver().sample(bqm)
    decoded = decode(ground)
    lowest = int(np.argmin(ground.record.energy))
    least = min(problem.energy(x) for x in assignments(problem))
    assert decoded.invalid[lowest] == 0
    assert problem.energy(decoded.assignments[lowest]) == pytest.approx(least, abs=1e-5)
    invalid = decoded.invalid > 0
    assert np.all(ground.record.energy[invalid] > least - 1e-5)


@settings(max_examples=40, deadline=None)
@given(problem=small_problems(), encoding=st.sampled_from(ENCODINGS), seed=st.integers(0, 99))
def test_any_bits_decode_to_an_assignment_and_invalid_groups_are_counted(problem, encoding, seed):
    bqm, decode = to_bqm(problem, encoding)
    rows = np.random.default_rng(seed).integers(0, 2, size=(20, bqm.num_variables)).astype(np.int8)
    decoded = decode(rows)
    assert decoded.assignments.shape == (20, problem.num_groups)
    valid = {tuple(bits_of(problem, encoding, x)): x for x in assignments(problem)}
    for row, assignment, invalid in zip(rows, decoded.assignments, decoded.invalid, strict=True):
        problem.selected(assignment)  # in range
        known = valid.get(tuple(row.tolist()))
        assert (invalid == 0) == (known is not None)
        if known is not None:
            assert np.array_equal(known, assignment)


def test_a_sample_set_a_mapping_and_a_row_decode_alike():
    problem = random_problem("dense", 3, 4, 0)
    bqm, decode = to_bqm(problem, "one-hot")
    samples = dimod.RandomSampler().sample(bqm, num_reads=6, seed=1)
    rows = samples.record.sample[:, np.argsort(samples.variables)]
    expected = decode(rows)
    shuffled = dimod.SampleSet.from_samples(
        (rows[:, ::-1], list(range(12))[::-1]), vartype="BINARY", energy=samples.record.energy
    )
    for given_samples in (samples, shuffled, samples.change_vartype("SPIN", inplace=False)):
        assert np.array_equal(decode(given_samples).assignments, expected.assignments)
    one = decode(dict(enumerate(rows[0])))
    assert np.array_equal(one.assignments, expected.assignments[0])
    assert int(one.invalid) == expected.invalid[0]
    assert np.array_equal(decode(rows[0]).assignments, one.assignments)
    with pytest.raises(InvalidAssignment, match="have 12 bits; got 5"):
        decode(rows[:, :5])


def test_domain_wall_neighbours_are_neighbours_in_cost():
    problem = random_problem("dense", 4, 8, 3)
    order = by_cost(problem).reshape(4, 8)
    assert np.all(np.diff(problem.costs[0][order], axis=1) > 0)


def test_penalties_per_group_and_their_rule():
    problem = random_problem("dense", 5, 4, 0)
    worst = worst_case_penalties(problem, OneHot())
    default, _ = to_bqm(problem, "one-hot")
    stated, _ = to_bqm(problem, "one-hot", penalty=0.1 * worst)
    assert default.linear == pytest.approx(stated.linear)
    nothing, _ = to_bqm(problem, "one-hot", penalty=0.0)
    assert nothing.linear == pytest.approx(dict(enumerate(problem.linear)))
    for penalty in (-1.0, np.ones(4), np.nan):
        with pytest.raises(InvalidProblem, match="penalty must be"):
            to_bqm(problem, penalty=penalty)


def test_names_that_do_not_exist_and_multipliers_that_do_not_fit():
    problem = random_problem("dense", 3, 3, 0)
    assert names() == ENCODINGS
    with pytest.raises(UnknownName, match="did you mean 'one-hot'"):
        to_bqm(problem, "onehot")
    with pytest.raises(UnknownName, match="budget treatment 'slak'"):
        to_bqm(problem, budget="slak")
    for multipliers in ([1.0, 2.0], [-1.0]):
        with pytest.raises(InvalidBudget, match="multipliers must be 1 non-negative"):
            to_bqm(problem, multipliers=multipliers)
    with pytest.raises(InvalidBudget, match="budget='none'"):
        to_bqm(problem, budget="none", multipliers=[1.0])


def test_a_factor_too_large_to_multiply_out_is_refused():
    total = 15_000
    factor = np.zeros((total, 1), dtype=np.float32)
    problem = ChoiceProblem(
        linear=np.zeros(total),
        group_offsets=np.arange(0, total + 1, 15),
        costs=np.ones((1, total), dtype=int),
        limits=[1000],
        factor=factor,
    )
    with pytest.raises(ProblemTooLarge, match="112,500,000 couplings"):
        to_bqm(problem)


@settings(max_examples=20, deadline=None)
@given(problem=small_problems(), seed=st.integers(0, 99))
def test_the_constrained_model_agrees_on_energy_feasibility_and_groups(problem, seed):
    cqm, decode = problem.to_cqm()
    everything = assignments(problem)
    picks = np.random.default_rng(seed).choice(len(everything), size=min(10, len(everything)), replace=False)
    for x in everything[picks]:
        row = bits_of(problem, "one-hot", x)
        sample = dict(enumerate(row))
        assert cqm.objective.energy(sample) == pytest.approx(problem.energy(x), abs=1e-4)
        assert cqm.check_feasible(sample) == problem.is_feasible(x)
        assert np.array_equal(decode(sample).assignments, x)
    choices = {name for name, size in zip(problem.group_names, problem.group_sizes, strict=True) if size > 1}
    assert set(cqm.discrete) == choices  # dimod marks no group of one choice; its constraint still holds
    assert set(problem.group_names) <= set(cqm.constraints)
    assert not cqm.check_feasible(dict.fromkeys(range(problem.num_choices), 0))


def test_a_budget_named_like_a_group_keeps_its_own_constraint():
    problem = ChoiceProblem(
        linear=[0.0, 1.0],
        group_offsets=[0, 2],
        costs=[[2, 1]],
        limits=[1],
        group_names=["bytes"],
        budget_names=["bytes"],
    )
    cqm, _ = to_cqm(problem)
    assert set(cqm.constraints) == {"bytes", "budget bytes"}


def test_building_a_large_dense_model_takes_no_symbolic_work():
    problem = random_problem("dense", 60, 16, 0)
    bqm, _ = to_bqm(problem)
    assert bqm.num_interactions > 300_000


@settings(max_examples=20, deadline=None)
@given(problem=small_problems())
def test_single_flips_lead_from_choice_to_choice_only_where_an_encoding_says_so(problem):
    order = by_cost(problem)
    for name in ENCODINGS:
        for group, size in enumerate(problem.group_sizes):
            local = order[problem.group_offsets[group] :][:size] - problem.group_offsets[group]
            for one, other in itertools.pairwise(local):
                first, second = np.zeros((2, problem.num_groups), dtype=int)
                first[group], second[group] = one, other
                flips = np.sum(np.array(bits_of(problem, name, first)) != bits_of(problem, name, second))
                assert (flips == 1) == encodings.get(name).single_flips
