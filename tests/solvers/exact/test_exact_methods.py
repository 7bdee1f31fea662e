"""Band programming, integer programming, strengthening and certificates: each against brute force or each other."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qubo_compress import ChoiceProblem, solve
from qubo_compress.solvers.exact import exact, integer_programming, milp_process, proof
from qubo_compress.solvers.exact.band_programming import find_band, solve_band
from qubo_compress.solvers.exact.certificates import CertificateNode, check_bound, least_energy
from qubo_compress.solvers.exact.convex_relaxation import convex_form, relax, start_at
from qubo_compress.solvers.exact.exact import Exact
from qubo_compress.solvers.exact.integer_programming import MilpAnswer, solve_milp
from qubo_compress.solvers.exact.strengthening import strengthen
from qubo_compress.testing import brute_force


def soon(seconds: float = 30.0) -> float:
    return time.perf_counter() + seconds


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), neighbours=st.integers(1, 3), budgets=st.integers(0, 1), fraction=st.floats(0.1, 0.9)
)
def test_band_equals_brute_force(seed, neighbours, budgets, fraction):
    problem = ChoiceProblem.random(
        kind="sparse", groups=6, choices=3, seed=seed, neighbours=neighbours, budgets=budgets, coupling=1.0,
        budget_fraction=fraction,
    )  # fmt: skip
    answer = solve_band(problem, find_band(problem), np.full(6, 2), soon())
    truth = brute_force(problem)[0]
    assert problem.is_feasible(answer.assignment)
    assert problem.energy(answer.assignment) == pytest.approx(truth, abs=1e-10)
    assert truth - 1e-9 <= answer.bound <= truth


def shuffled(problem: ChoiceProblem, seed: int) -> ChoiceProblem:
    """The same problem with its groups in another order."""
    order = np.random.default_rng(seed).permutation(problem.num_groups)
    offsets = problem.group_offsets
    choices = np.concatenate([np.arange(offsets[g], offsets[g + 1]) for g in order])
    return ChoiceProblem(
        linear=problem.linear[choices], costs=problem.costs[:, choices], limits=problem.limits,
        group_offsets=np.concatenate([[0], np.cumsum(problem.group_sizes[order])]),
        fixed_costs=problem.fixed_costs, pairs=sparse.csr_array(problem.pairs[choices][:, choices]),
    )  # fmt: skip


def test_a_band_is_found_in_any_order_and_proven():
    problem = ChoiceProblem.random(kind="sparse", groups=40, choices=8, seed=3, neighbours=1)
    plain = solve(problem, "exact", time_limit=20.0)
    mixed = solve(shuffled(problem, 0), "exact", time_limit=20.0)
    assert plain.details["method"] == mixed.details["method"] == "dynamic programming over a band of width 1"
    assert plain.status == mixed.status == "optimal"
    assert plain.energy == pytest.approx(mixed.energy, rel=1e-9)


def test_band_out_of_work_or_time_leaves_a_true_bound():
    problem = ChoiceProblem.random(kind="sparse", groups=30, choices=8, seed=1, neighbours=2)
    band, poor = find_band(problem), np.full(30, 7)
    optimum = solve_band(problem, band, poor, soon())
    assert problem.energy(optimum.assignment) - optimum.bound < 1e-9
    for answer in (solve_band(problem, band, poor, soon(), work=1), solve_band(problem, band, poor, soon(-1.0))):
        assert answer.bound <= optimum.bound + 1e-12
        assert problem.is_feasible(answer.assignment)


@pytest.mark.parametrize("budgets", [1, 2])
def test_integer_programming_agrees(budgets):
    problem = ChoiceProblem.random(kind="sparse", groups=6, choices=4, seed=5, neighbours=1, budgets=budgets)
    truth = brute_force(problem)[0]
    answer = solve_milp(problem, soon(60.0))
    assert problem.is_feasible(answer.assignment)
    assert problem.energy(answer.assignment) == pytest.approx(truth, rel=1e-6)
    assert truth - 1e-5 * abs(truth) <= answer.bound <= truth


@pytest.fixture
def nothing_before_highs(monkeypatch):
    """Small problems are proven before HiGHS gets them."""
    monkeypatch.setattr(proof, "LARGEST_TREE_BLOCKS", -1)
    monkeypatch.setattr(proof, "toulbar2_is_installed", lambda: False)


def test_sparse_problems_with_two_budgets_go_to_highs(nothing_before_highs):
    problem = ChoiceProblem.random(kind="sparse", groups=12, choices=4, seed=0, neighbours=1, budgets=2)
    solution = solve(problem, "exact", time_limit=30.0)
    assert solution.details["method"] == "mixed-integer programming"
    assert solution.bound is not None and solution.bound <= solution.energy
    assert solution.gap < 1e-5


def test_a_process_that_hangs_is_ended(monkeypatch, tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text("import time\ntime.sleep(3600)\n")  # longer than any test may take
    monkeypatch.setattr(milp_process, "__file__", str(script))
    problem = ChoiceProblem.random(kind="sparse", groups=12, choices=4, seed=0, neighbours=1, budgets=2)
    answer = solve_milp(problem, soon(4.0))
    assert answer.ended and answer.assignment is None and answer.bound == -np.inf


def test_an_answer_without_the_process_is_said_to_be_one(monkeypatch, nothing_before_highs):
    monkeypatch.setattr(proof, "solve_milp", lambda *_, **__: MilpAnswer(None, -np.inf, 0, True))
    problem = ChoiceProblem.random(kind="sparse", groups=12, choices=4, seed=0, neighbours=1, budgets=2)
    solution = solve(problem, "exact", time_limit=60.0)
    assert any("overran" in note for note in solution.notes)
    assert solution.bound is not None and solution.bound <= solution.energy


def test_what_is_exchanged_with_the_process_is_checked_and_never_unpickled(tmp_path):
    path, arrays = tmp_path / "answer", {"x": np.arange(5.0), "bound": -np.inf, "shape": (3, 4)}
    milp_process.write_arrays(path, arrays)
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer"]
    found = milp_process.read_arrays(path)
    assert (
        found["x"].tolist() == arrays["x"].tolist() and found["bound"] == -np.inf and found["shape"].tolist() == [3, 4]
    )
    whole = path.read_bytes()
    for place in (0, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            milp_process.read_arrays(path)
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="damaged"):
        milp_process.read_arrays(path)
    milp_process.write_arrays(path, {"x": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle"):
        milp_process.read_arrays(path)


def test_a_damaged_answer_claims_nothing(monkeypatch):
    monkeypatch.setattr(milp_process, "_DIGEST_LENGTH", 31)
    problem = ChoiceProblem.random(kind="sparse", groups=6, choices=4, seed=5, neighbours=1)
    answer = solve_milp(problem, soon(60.0))
    assert answer.assignment is None and answer.bound == -np.inf


def test_ctrl_c_ends_the_process(monkeypatch, tmp_path, ctrl_c, nothing_before_highs):
    script = tmp_path / "hangs.py"
    script.write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setattr(milp_process, "__file__", str(script))
    started = []
    popen = integer_programming.subprocess.Popen

    def start(*args, **options):
        started.append(popen(*args, **options))
        ctrl_c(0.3)
        return started[-1]

    monkeypatch.setattr(integer_programming.subprocess, "Popen", start)
    problem = ChoiceProblem.random(kind="sparse", groups=12, choices=4, seed=0, neighbours=1, budgets=2)
    exact.warm_up()
    solution = solve(problem, "exact", time_limit=3600.0)
    assert solution.interrupted and problem.is_feasible(solution.assignment)
    assert started and started[0].poll() is not None


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
def test_strengthening_raises_the_bound_and_changes_no_energy(kind):
    problem = ChoiceProblem.random(kind=kind, groups=7, choices=5, seed=2)
    form, vertex = convex_form(problem), problem.group_offsets[:-1].copy()
    plain = relax(form, start_at(form, vertex), soon())[0]
    result = strengthen(form, vertex, soon(), iterations=200)
    assert plain < result.bound <= least_energy(problem) + 1e-12
    rng = np.random.default_rng(0)
    for _ in range(20):
        assignment = rng.integers(0, 5, size=7)
        chosen = problem.selected(assignment)
        energy = result.form.constant + result.form.diagonal[chosen].sum()
        energy += 0.5 * result.form.gram[np.ix_(chosen, chosen)].sum()
        assert energy == pytest.approx(problem.energy(assignment), abs=1e-10)


def test_strengthened_search_agrees_with_the_plain_one(monkeypatch):
    problem = ChoiceProblem.random(kind="low-rank", groups=14, choices=10, seed=1)
    plain = solve(problem, "exact", time_limit=30.0)
    monkeypatch.setattr(proof, "PLAIN_NODES", 20)
    monkeypatch.setattr(proof, "STRENGTHENING_ITERATIONS", 100)
    strong = solve(problem, "exact", time_limit=30.0)
    assert strong.details["strengthening iterations"] == 100
    assert strong.status == plain.status == "optimal"
    assert strong.energy == pytest.approx(plain.energy, rel=1e-6)
    assert strong.details["strengthened root bound"] <= plain.energy
    repeated = solve(problem, "exact", time_limit=60.0, work_limit=strong.work)
    assert (repeated.assignment == strong.assignment).all() and repeated.work <= strong.work


def test_the_tree_is_the_same_with_any_number_of_threads():
    problem = ChoiceProblem.random(kind="low-rank", groups=16, choices=12, seed=0)
    one, three = (solve(problem, Exact(threads=threads), time_limit=60.0, work_limit=600) for threads in (1, 3))
    assert one.bound == three.bound and one.work == three.work
    assert (one.assignment == three.assignment).all()


def test_memory_for_nodes_grows_and_then_the_search_dives(monkeypatch):
    from qubo_compress.solvers.exact import branch_and_bound

    problem = ChoiceProblem.random(kind="low-rank", groups=16, choices=12, seed=0)
    roomy = solve(problem, "exact", time_limit=60.0)
    monkeypatch.setattr(branch_and_bound, "_FIRST_ROWS", 64)
    monkeypatch.setattr(branch_and_bound, "_MOST_BYTES", 1)
    tight = solve(problem, "exact", time_limit=60.0)
    assert roomy.status == tight.status == "optimal"
    assert tight.energy == pytest.approx(roomy.energy, rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), budgets=st.integers(0, 2))
def test_certificates_verify(seed, budgets):
    problem = ChoiceProblem.random(kind="low-rank", groups=8, choices=4, seed=seed, budgets=budgets, rank=5)
    solution = solve(problem, Exact(certificate=True), time_limit=60.0)
    enumerated = check_bound(problem, solution)
    assert enumerated.how == "enumeration" and enumerated.verified
    replayed = check_bound(problem, solution, most=1)
    assert replayed.how == "dual certificate" and replayed.verified


def proven() -> tuple[ChoiceProblem, object]:
    problem = ChoiceProblem.random(kind="low-rank", groups=16, choices=10, seed=0)
    return problem, solve(problem, Exact(certificate=True), time_limit=60.0)


def going_to(node: CertificateNode, child: object) -> CertificateNode:
    """The same node with every choice of the problem decided in one child."""
    return dataclasses.replace(node, children=dict.fromkeys(range(160), child))


def test_falsified_certificates_are_rejected():
    problem, solution = proven()
    check = check_bound(problem, solution)
    assert check.verified and check.how == "dual certificate" and check.leaves > 5
    nodes = solution.details["certificate"]
    inner = max(nodes, key=lambda number: len(nodes[number].children))
    dropped = dict(list(nodes[inner].children.items())[1:])
    weakened = {n: CertificateNode(m.support, 0.0 * m.shares, m.price, m.children) for n, m in nodes.items()}
    forgeries = {
        "a child is missing": nodes | {inner: dataclasses.replace(nodes[inner], children=dropped)},
        "a node is missing": {number: node for number, node in nodes.items() if number != 0},
        "the duals prove nothing": weakened,
        "a node leads back to itself": nodes | {inner: going_to(nodes[inner], inner)},
        "all lead to one": {n: going_to(m, inner) for n, m in nodes.items()},
        "a child is no number": nodes | {inner: going_to(nodes[inner], [inner])},
        "shares are missing": nodes | {0: dataclasses.replace(nodes[0], shares=nodes[0].shares[1:])},
        "there is a price too many": nodes | {0: dataclasses.replace(nodes[0], price=np.ones(7))},
        "choices are no whole numbers": nodes | {0: dataclasses.replace(nodes[0], support=nodes[0].support + 0.5)},
        "a price is negative": nodes | {0: dataclasses.replace(nodes[0], price=nodes[0].price - 10.0)},
    }
    for name, forgery in forgeries.items():
        forged = dataclasses.replace(solution, details={"certificate": forgery})
        assert not check_bound(problem, forged).verified, name


def test_a_bound_that_is_too_high_is_rejected():
    problem, solution = proven()
    worse = dataclasses.replace(solution, bound=solution.energy * 1.01)
    assert not check_bound(problem, worse).verified
    small = ChoiceProblem.random(kind="dense", groups=5, choices=4, seed=0)
    truth = brute_force(small)[0]
    assert least_energy(small) == pytest.approx(truth, abs=1e-12)
    answer = solve(small, "exact")
    assert check_bound(small, answer).verified
    assert not check_bound(small, dataclasses.replace(answer, bound=truth + 1e-6)).verified
