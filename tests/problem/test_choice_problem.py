"""The choice problem: energies, differences, files and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qubo_compress import ChoiceProblem
from qubo_compress.errors import CorruptArtifact, InvalidAssignment, InvalidProblem, UnknownName

KINDS = ("separable", "sparse", "dense", "low-rank", "planted")
GOOD = {"linear": [0.0, 1.0, 0.0, 2.0], "group_offsets": [0, 2, 4], "costs": [[8, 2, 8, 2]], "limits": [10]}


def naive_energy(problem: ChoiceProblem, assignment: np.ndarray) -> float:
    """The definition, term by term."""
    chosen = problem.group_offsets[:-1] + assignment
    matrix = np.zeros((problem.num_choices, problem.num_choices))
    if problem.factor is not None:
        rows = problem.factor.astype(np.float64)
        matrix = rows @ rows.T
    elif problem.pairs is not None:
        matrix = problem.pairs.toarray()
    value = problem.constant + sum(problem.linear[v] for v in chosen)
    for g, v in enumerate(chosen):
        for h, w in enumerate(chosen):
            value += 0.5 * matrix[v, w] if g != h else 0.0
    return float(value)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(KINDS), groups=st.integers(1, 6), choices=st.integers(1, 5), seed=st.integers(0, 10**6),
    draw=st.integers(0, 10**6),
)  # fmt: skip
def test_energy_and_deltas(kind, groups, choices, seed, draw):
    problem = ChoiceProblem.random(kind=kind, groups=groups, choices=choices, seed=seed)
    rng = np.random.default_rng(draw)
    assignment = rng.integers(problem.group_sizes)
    energy = problem.energy(assignment)
    assert energy == pytest.approx(naive_energy(problem, assignment), abs=1e-9)
    group = int(rng.integers(groups))
    deltas = problem.deltas(assignment, group)
    assert deltas.shape == (choices,) and deltas[assignment[group]] == 0.0
    for choice in range(choices):
        other = assignment.copy()
        other[group] = choice
        assert energy + deltas[choice] == pytest.approx(problem.energy(other), abs=1e-9)
    assert problem.energies([assignment, assignment]).tolist() == [energy, energy]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS), groups=st.integers(1, 8), choices=st.integers(1, 5), rows=st.integers(0, 12),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_energies_of_many_are_those_of_each(kind, groups, choices, rows, seed):
    problem = ChoiceProblem.random(kind=kind, groups=groups, choices=choices, seed=seed)
    assignments = np.random.default_rng(seed).integers(problem.group_sizes, size=(rows, groups))
    expected = [problem.energy(row) for row in assignments]
    assert problem.energies(assignments) == pytest.approx(np.array(expected), rel=1e-12, abs=1e-12)


def test_energies_of_more_than_one_chunk(monkeypatch):
    monkeypatch.setattr("qubo_compress.problem.choice_problem._CHUNK_NUMBERS", 20)
    for kind in KINDS:
        problem = ChoiceProblem.random(kind=kind, groups=5, choices=3, seed=1)
        assignments = np.random.default_rng(0).integers(3, size=(17, 5))
        expected = [problem.energy(row) for row in assignments]
        assert problem.energies(assignments) == pytest.approx(np.array(expected), rel=1e-12, abs=1e-12)


def test_energies_refuses_what_is_no_assignment():
    problem = ChoiceProblem.random(kind="dense", groups=3, choices=4, seed=0)
    with pytest.raises(InvalidAssignment, match=r"\(N, 3\).*got \(2, 2\)"):
        problem.energies([[0, 1], [1, 0]])
    with pytest.raises(InvalidAssignment, match="'group1' has 4 choices; got index 4"):
        problem.energies([[0, 0, 0], [0, 4, 0]])


@settings(max_examples=50, deadline=None)
@given(groups=st.integers(1, 5), seed=st.integers(0, 10**6), budgets=st.integers(0, 3))
def test_totals(groups, seed, budgets):
    problem = ChoiceProblem.random(kind="separable", groups=groups, choices=4, seed=seed, budgets=budgets)
    assignment = np.random.default_rng(seed).integers(problem.group_sizes)
    chosen = problem.selected(assignment)
    expected = [problem.fixed_costs[b] + sum(problem.costs[b, v] for v in chosen) for b in range(budgets)]
    assert problem.totals(assignment).tolist() == expected
    assert problem.is_feasible(assignment) == all(t <= limit for t, limit in zip(expected, problem.limits, strict=True))
    assert (problem.smallest_totals() <= problem.totals(assignment)).all()


def test_constant_is_added():
    plain, moved = ChoiceProblem(**GOOD), ChoiceProblem(**GOOD, constant=5.0)
    assert moved.energy([1, 0]) == plain.energy([1, 0]) + 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_files_round_trip(kind, tmp_path):
    problem = ChoiceProblem.random(kind=kind, groups=4, choices=3, seed=0)
    path = tmp_path / "p.npz"
    problem.save(path)
    again = ChoiceProblem.load(path)
    assert again.structure == problem.structure
    for name in ("linear", "group_offsets", "costs", "limits", "fixed_costs", "diagonal"):
        assert (getattr(again, name) == getattr(problem, name)).all()
    assert (again.group_names, again.choice_names, again.budget_names) == (
        problem.group_names, problem.choice_names, problem.budget_names,
    )  # fmt: skip
    assert again.energy([1, 0, 2, 1]) == problem.energy([1, 0, 2, 1])


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "incomplete"])
def test_damaged_files_are_refused(damage, tmp_path):
    path = tmp_path / "p.npz"
    ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=0).save(path)
    whole = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "foreign":
        path.write_bytes(b"not a problem at all")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        np.savez(path, linear=np.zeros(3))
    with pytest.raises(CorruptArtifact, match=r"p\.npz"):
        ChoiceProblem.load(path)


def test_pickles_are_never_loaded(tmp_path):
    path = tmp_path / "p.npz"
    np.savez(path, linear=np.array([object()], dtype=object))
    with pytest.raises(CorruptArtifact):
        ChoiceProblem.load(path)


def test_arrays_are_read_only_and_not_the_callers():
    linear = np.array([0.0, 1.0, 0.0, 2.0])
    problem = ChoiceProblem(**{**GOOD, "linear": linear}, factor=np.ones((4, 1), dtype=np.float32))
    linear[0] = 99.0
    assert problem.linear[0] == 0.0
    for name in ("linear", "group_offsets", "costs", "limits", "fixed_costs", "factor", "diagonal"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(problem, name)[...] = 0
    with pytest.raises(AttributeError):
        problem.linear = linear


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"linear": [0.0, np.nan, 0.0, 2.0]}, "linear"),
        ({"linear": [0.0, np.inf, 0.0, 2.0]}, "linear"),
        ({"linear": [[0.0, 1.0, 0.0, 2.0]]}, "axis"),
        ({"group_offsets": [0, 2, 3]}, "group_offsets"),
        ({"group_offsets": [1, 2, 4]}, "group_offsets"),
        ({"group_offsets": [0, 2, 2, 4]}, "empty"),
        ({"costs": [[8, 2, 8]]}, "costs"),
        ({"costs": [[8, 2, 8, -1]]}, "negative"),
        ({"costs": [[8.5, 2, 8, 1]]}, "integers"),
        ({"limits": [10, 11]}, "costs"),
        ({"fixed_costs": [1, 2]}, "fixed_costs"),
        ({"factor": np.ones((3, 1))}, "factor"),
        ({"factor": np.full((4, 1), np.nan)}, "factor"),
        ({"factor": np.ones((4, 1)), "pairs": sparse.csr_array((4, 4))}, "both"),
        ({"pairs": np.zeros((4, 4))}, "sparse"),
        ({"pairs": sparse.csr_array((3, 3))}, "shape"),
        ({"pairs": sparse.csr_array(np.eye(4)[[2, 3, 0, 1]] * [1, 2, 3, 4])}, "symmetric"),
        ({"pairs": sparse.csr_array(np.eye(4)[[1, 0, 3, 2]])}, "couples two choices"),
        ({"pairs": sparse.csr_array(np.eye(4)[[2, 3, 0, 1]] * np.nan)}, "NaN"),
        ({"group_names": ["a"]}, "group_names"),
        ({"group_names": ["a", "a"]}, "unique"),
        ({"choice_names": ["a", "a", "b", "c"]}, "unique"),
        ({"constant": float("nan")}, "constant"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(InvalidProblem, match=message):
        ChoiceProblem(**{**GOOD, **changes})


@pytest.mark.parametrize("assignment", [[0], [0, 0, 0], [0, 2], [-1, 0], [0.0, 1.0]])
def test_assignments_are_checked(assignment):
    problem = ChoiceProblem(**GOOD)
    for method in (problem.energy, problem.is_feasible, problem.names_of):
        with pytest.raises(InvalidAssignment):
            method(assignment)


def test_changed_copies_share_what_is_large():
    problem = ChoiceProblem.random(kind="low-rank", groups=4, choices=3, seed=0)
    other = problem.with_limits(problem.limits * 2)
    assert other.factor is problem.factor and (other.limits == problem.limits * 2).all()
    assert problem.without_interactions().structure == "separable"


def test_structure_names():
    assert [ChoiceProblem.random(kind=kind, groups=4, choices=3, seed=0).structure for kind in KINDS] == [
        "separable", "pairs", "pairs", "factor", "factor",
    ]  # fmt: skip
    with pytest.raises(UnknownName, match="low-rank"):
        ChoiceProblem.random(kind="lowrank")
