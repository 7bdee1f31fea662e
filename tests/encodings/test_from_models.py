"""A problem read from a dimod model has the model's energies and feasible samples, and leads back to them."""

from __future__ import annotations

import itertools
from fractions import Fraction

import dimod
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.encodings import from_cqm, from_dqm
from qubo_compress.encodings.whole_costs import as_fraction
from qubo_compress.errors import InfeasibleBudget, InvalidAssignment, InvalidProblem, ProblemTooLarge

KINDS = ("BINARY", "BINARY", "BINARY", "SPIN", "INTEGER")


def values_of(cqm, label):
    kind = cqm.vartype(label).name
    if kind == "INTEGER":
        return range(int(cqm.lower_bound(label)), int(cqm.upper_bound(label)) + 1)
    return (-1, 1) if kind == "SPIN" else (0, 1)


def all_samples(cqm):
    return [
        dict(zip(cqm.variables, picks, strict=True))
        for picks in itertools.product(*(values_of(cqm, label) for label in cqm.variables))
    ]


def empty_objective(cqm):
    objective = dimod.QuadraticModel()
    for label in cqm.variables:
        bounds = {"lower_bound": cqm.lower_bound(label), "upper_bound": cqm.upper_bound(label)}
        objective.add_variable(cqm.vartype(label), label, **bounds)
    return objective


@st.composite
def models(draw):
    """Constrained models of up to six variables of all kinds, with labels of all kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    cqm = dimod.ConstrainedQuadraticModel()
    labels = [("x", 0), "x", 1, "1", 2.5, "none"][: int(rng.integers(1, 7))]
    for label in labels:
        kind = str(rng.choice(KINDS))
        low = int(rng.integers(-2, 1))
        bounds = {"lower_bound": low, "upper_bound": low + int(rng.integers(0, 4))} if kind == "INTEGER" else {}
        cqm.add_variable(kind, label, **bounds)
    objective = empty_objective(cqm)
    for label in labels:
        objective.add_linear(label, float(rng.normal()))
    for u, v in itertools.combinations_with_replacement(labels, 2):
        if rng.random() < 0.5 and (u != v or cqm.vartype(u) is dimod.INTEGER):
            objective.add_quadratic(u, v, float(rng.normal()))
    objective.offset = float(rng.normal())
    cqm.set_objective(objective)
    binary = [label for label in labels if cqm.vartype(label) is dimod.BINARY]
    if len(binary) > 2 and rng.random() < 0.5:
        cqm.add_discrete(binary[:2], label="kind")
    for number in range(int(rng.integers(0, 4))):
        some = [label for label in labels if rng.random() < 0.7] or labels[:1]
        step = float(rng.choice([1.0, 0.1, 0.25]))
        ones = rng.random() < 0.3
        terms = [(label, 1 if ones else int(rng.integers(-3, 4)) * step) for label in some]
        sense = str(rng.choice(["<=", ">=", "=="]))
        right = 1 if ones else int(rng.integers(-3, 4)) * step
        pairs = [(u, v) for u, v in itertools.combinations(some, 2) if not ones and rng.random() < 0.2]
        terms += [(u, v, int(rng.integers(-2, 3)) * step) for u, v in pairs]
        cqm.add_constraint_from_iterable(terms, sense, rhs=right, label=number)
    return cqm


def feasible(cqm, sample):
    """Exactly, with decimals read as such: dimod allows for a relative violation of 1e-6."""
    return cqm.check_feasible(sample, rtol=0.0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(cqm=models())
def test_a_constrained_model_has_the_problems_energies_and_feasible_samples(cqm):
    try:
        problem, samples = ChoiceProblem.from_cqm(cqm)
    except InfeasibleBudget:
        assert not any(feasible(cqm, sample) for sample in all_samples(cqm))
        return
    seen = set()
    for sample in all_samples(cqm):
        try:
            assignment = samples.assignment(sample)
        except InvalidAssignment:
            assert not feasible(cqm, sample)
            continue
        seen.add(tuple(assignment.tolist()))
        assert samples(assignment) == sample
        assert problem.energy(assignment) == pytest.approx(float(cqm.objective.energy(sample)), abs=1e-9)
        assert problem.is_feasible(assignment) == feasible(cqm, sample)
    assert len(seen) == np.prod(problem.group_sizes)
    rows = samples.rows(sorted(seen))
    assert dimod.as_samples((rows, list(samples.labels)))[0].shape == (len(seen), len(cqm.variables))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_discrete_model_has_the_problems_energies(seed):
    rng = np.random.default_rng(seed)
    dqm = dimod.DiscreteQuadraticModel()
    labels = ["a", 1, ("b", 2), "1"][: int(rng.integers(1, 5))]
    for label in labels:
        dqm.add_variable(int(rng.integers(1, 4)), label)
        dqm.set_linear(label, rng.normal(size=dqm.num_cases(label)))
    for u, v in itertools.combinations(labels, 2):
        if rng.random() < 0.7:
            dqm.set_quadratic(u, v, rng.normal(size=(dqm.num_cases(u), dqm.num_cases(v))))
    dqm.offset = 0.5
    problem, samples = ChoiceProblem.from_dqm(dqm)
    assert samples.labels == tuple(labels) and problem.num_budgets == 0
    for picks in itertools.product(*(range(dqm.num_cases(label)) for label in labels)):
        sample = samples(list(picks))
        assert sample == dict(zip(labels, picks, strict=True))
        assert problem.energy(list(picks)) == pytest.approx(dqm.energy(sample))
        assert samples.assignment(sample).tolist() == list(picks)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["dense", "sparse", "separable"]))
def test_our_own_models_come_back_as_the_same_problem(seed, kind):
    problem = ChoiceProblem.random(kind=kind, groups=4, choices=3, seed=seed, budgets=2)
    again, samples = ChoiceProblem.from_cqm(problem.to_cqm()[0])
    assert again.group_names == problem.group_names
    rng = np.random.default_rng(seed)
    for _ in range(10):
        assignment = rng.integers(problem.group_sizes)
        assert again.energy(assignment) == pytest.approx(problem.energy(assignment), abs=1e-6)
        assert again.is_feasible(assignment) == problem.is_feasible(assignment)
        assert sum(samples(assignment).values()) == problem.num_groups


def groups(cqm):
    problem, _ = from_cqm(cqm)
    offsets = problem.group_offsets
    return {
        name: problem.choice_names[first:last]
        for name, first, last in zip(problem.group_names, offsets[:-1], offsets[1:], strict=True)
    }


def test_rules_about_one_variable_of_several_become_groups():
    cqm = dimod.ConstrainedQuadraticModel()
    a, b, c, d, e, f = dimod.Binaries("abcdef")
    cqm.add_constraint(a + b <= 1, label="at most one of a and b")
    cqm.add_constraint(-2 * b - 2 * c == -2, label="one of b and c")
    cqm.add_constraint(d + e + f + 3 <= 4.5, label="at most one of d, e, f")
    cqm.add_constraint(d + e <= 1, label="met by the group")
    assert groups(cqm) == {
        "a": ("0", "1"),
        "one of b and c": ("b", "c"),
        "at most one of d, e, f": ("none", "d", "e", "f"),
    }
    assert from_cqm(cqm)[0].budget_names == ("at most one of a and b",)


def test_equalities_are_two_budgets_and_solved():
    cqm = dimod.ConstrainedQuadraticModel()
    numbers = [dimod.Integer(f"i{k}", upper_bound=9) for k in range(3)]
    cqm.set_objective(sum((number - 3) ** 2 for number in numbers))
    cqm.add_constraint(numbers[0] + 2 * numbers[1] + 3 * numbers[2] == 10, label="sum")
    problem, samples = from_cqm(cqm)
    assert problem.budget_names == ("sum", "sum >=")
    solution = solve(problem, "exact")
    sample = samples(solution.assignment)
    assert solution.status == "optimal" and cqm.check_feasible(sample)
    best = min(float(cqm.objective.energy(one)) for one in all_samples(cqm) if cqm.check_feasible(one))
    assert solution.energy == pytest.approx(best) and cqm.objective.energy(sample) == pytest.approx(best)


def test_totals_are_the_left_sides_in_their_unit():
    cqm = dimod.ConstrainedQuadraticModel()
    a, b = dimod.Binaries("ab")
    cqm.add_constraint(0.2 * a - 0.3 * b + 0.1 <= 0.25, label="rule")
    problem, samples = from_cqm(cqm)
    assert problem.fixed_costs.tolist() == [-3] and problem.limits.tolist() == [1]
    assert problem.totals(samples.assignment({"a": 1, "b": 1})).tolist() == [-1]


def test_integers_are_bounded_by_rules_on_them_alone():
    cqm = dimod.ConstrainedQuadraticModel()
    i = dimod.Integer("i")
    cqm.set_objective(-1 * i)
    cqm.add_constraint(2 * i <= 7, label="most")
    cqm.add_constraint(-1 * i <= -2, label="least")
    assert groups(cqm) == {"i": ("2", "3")}
    cqm.add_constraint(i >= 4, label="none left")
    with pytest.raises(InfeasibleBudget, match="the integer 'i' would have to be at least 4 and at most 3"):
        from_cqm(cqm)


def built(rule, **options):
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.add_constraint(rule, label="rule\x1b[31m", **options)
    return cqm


def test_what_no_group_or_budget_can_say_is_refused_by_name():
    x, y, z = dimod.Binaries("xyz")
    with pytest.raises(InvalidProblem, match=r"constraint 'rule\\x1b\[31m' is soft \(weight 2\)"):
        from_cqm(built(x + y + z <= 2, weight=2.0))
    with pytest.raises(InvalidProblem, match="coefficients have no common unit"):
        from_cqm(built(1e-20 * x + 3**0.5 * y <= 1))
    with pytest.raises(InvalidProblem, match="not finite"):
        from_cqm(built(float("nan") * x + y <= 1))
    with pytest.raises(InvalidProblem, match="variable 'r' is real"):
        from_cqm(built(dimod.Real("r") + x <= 1))
    with pytest.raises(InvalidProblem, match="integer 'i' goes from 0 to 9007199254740991"):
        from_cqm(built(dimod.Integer("i") + x <= 1))
    with pytest.raises(InvalidProblem, match="exceed 2\\*\\*52"):
        from_cqm(built(2.0**53 * x + 3 * y <= 1))
    with pytest.raises(InvalidProblem, match="no variables"):
        from_cqm(dimod.ConstrainedQuadraticModel())
    with pytest.raises(InvalidProblem, match="takes a dimod.ConstrainedQuadraticModel; got DiscreteQuadraticModel"):
        from_cqm(dimod.DiscreteQuadraticModel())
    with pytest.raises(InvalidProblem, match="takes a dimod.DiscreteQuadraticModel; got dict"):
        from_dqm({})
    with pytest.raises(InvalidProblem, match="no variables"):
        from_dqm(dimod.DiscreteQuadraticModel())
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(float("inf") * x)
    with pytest.raises(InvalidProblem, match="not finite"):
        from_cqm(cqm)


def test_products_within_a_group_are_no_products():
    x, y, z = dimod.Binaries("xyz")
    cqm = built(x * y + 2 * x + z <= 2)
    cqm.add_discrete("xy", label="one")
    cqm.set_objective(7 * x * y - x - z)
    problem, samples = from_cqm(cqm)
    assert problem.structure == "separable"
    assert samples(solve(problem, "exact").assignment) == {"x": 0, "y": 1, "z": 1} or solve(problem).energy == -1.0


def test_hostile_sizes_are_refused_before_memory_is_taken():
    cqm = dimod.ConstrainedQuadraticModel()
    numbers = [cqm.add_variable("INTEGER", upper_bound=1000) for _ in range(16)]
    objective = empty_objective(cqm)
    for u, v in itertools.combinations(numbers, 2):
        objective.add_quadratic(u, v, 1.0)
    cqm.set_objective(objective)
    with pytest.raises(ProblemTooLarge, match="120,000,000 pairs of choices"):
        from_cqm(cqm)


def test_floats_are_read_as_they_were_written():
    read = [as_fraction(value) for value in (0.1 + 0.2, 2 / 3, 1e-3, 1e-9, -7.0)]
    assert read == [Fraction(3, 10), Fraction(2, 3), Fraction(1, 1000), Fraction(1, 10**9), -7]
    assert float(as_fraction(np.pi)) == np.pi
