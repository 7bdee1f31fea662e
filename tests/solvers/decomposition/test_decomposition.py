"""Blocks of groups, chosen by what they can gain: never worse, within every budget, the same with any solver inside."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from dwave.system.testing import MockDWaveSampler
from scipy import sparse

from qubo_compress import errors as e
from qubo_compress import solve
from qubo_compress.problem.choice_problem import ChoiceProblem
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers import Search, Solver
from qubo_compress.solvers.decomposition.blocks import BlockPicker, pair_gains
from qubo_compress.solvers.decomposition.decomposition import Decomposition, QpuDecomposition
from qubo_compress.solvers.dwave.qpu import Qpu
from qubo_compress.solvers.local_search.local_model import local_model
from qubo_compress.solvers.solver import solvers
from qubo_compress.testing.loopback_leap import Chip, LoopbackLeap


@dataclass(frozen=True)
class Careless(Solver):
    """Answers every block with its most expensive choices, and fails when asked too often."""

    name: ClassVar[str] = "careless"
    fail_after: int = 1000
    calls: ClassVar[list[ChoiceProblem]] = []

    def run(self, search: Search) -> None:
        problem = search.problem
        self.calls.append(problem)
        if len(self.calls) > self.fail_after:
            raise e.ServiceFailed("careless: broken")
        spans = itertools.pairwise(problem.group_offsets)
        search.keep(np.array([int(np.argmax(problem.costs[0, a:b])) for a, b in spans]))
        search.work = 1


@pytest.mark.parametrize(
    "inner, kind", [("simulated-annealing", "dense"), ("simulated-annealing", "low-rank"), ("exact", "low-rank")]
)
def test_blocks_improve_the_assignment_and_keep_the_budgets(inner, kind):
    problem = random_problem(kind, groups=18, choices=8, seed=5)
    solver = Decomposition(inner=inner, block_groups=6, blocks=8, block_work=1500)
    solution = solve(problem, solver, time_limit=60.0)
    assert problem.is_feasible(solution.assignment)
    assert solution.details["blocks"] == 8 and solution.details["inner"] == inner
    assert solution.energy < solution.details["energy_before_blocks"]
    energies = [energy for _, energy, _ in solution.trace]
    assert energies == sorted(energies, reverse=True), "only improvements are kept"


def test_the_blocks_of_an_exact_solver_leave_nothing_to_gain_in_them():
    problem = random_problem("low-rank", groups=8, choices=4, seed=0)
    solution = solve(problem, Decomposition(inner="exact", block_groups=4, blocks=25), time_limit=60.0)
    truth = solve(problem, "exact", time_limit=60.0)
    assert solution.energy == pytest.approx(truth.energy, rel=0.02)


def test_what_makes_things_worse_is_not_kept():
    problem = random_problem("dense", groups=10, choices=5, seed=0)
    Careless.calls.clear()
    solution = solve(problem, Decomposition(inner=Careless(), block_groups=3, blocks=5), time_limit=30.0)
    assert problem.is_feasible(solution.assignment)
    assert solution.energy == solution.details["energy_before_blocks"]
    assert solution.details["blocks_that_improved"] == 0 and solution.work == 5
    assert all(block.num_groups == 3 for block in Careless.calls)
    assert len({block.group_names for block in Careless.calls}) > 1, "blocks tried in vain give way to others"


def test_a_failure_later_on_keeps_what_was_found_and_a_first_one_is_raised():
    problem = random_problem("dense", groups=10, choices=5, seed=0)
    Careless.calls.clear()
    solution = solve(problem, Decomposition(inner=Careless(fail_after=2), block_groups=3), time_limit=30.0)
    assert solution.details["blocks"] == 2
    assert any("stopped early, after 2 blocks: ServiceFailed" in note for note in solution.notes)
    with pytest.raises(e.ServiceFailed):
        solve(problem, Decomposition(inner=Careless(fail_after=0), block_groups=3), time_limit=30.0)


def test_block_sizes_follow_bits_and_groups():
    problem = random_problem("dense", groups=12, choices=6, seed=0)
    for options, most_groups, most_bits in (
        ({"block_bits": 20}, 4, 20),
        ({"block_groups": 3}, 3, 60),
        ({"block_bits": 20, "block_groups": 2}, 2, 20),
    ):
        Careless.calls.clear()
        solve(problem, Decomposition(inner=Careless(), blocks=4, **options), time_limit=30.0)
        for block in Careless.calls:
            assert block.num_groups <= most_groups and block.num_choices - block.num_groups <= most_bits
    with pytest.raises(e.ProblemTooLarge, match="alone takes 5 bits and a block may have 4"):
        solve(problem, Decomposition(inner=Careless(), block_bits=4), time_limit=30.0)


def test_the_picker_finds_the_pair_that_gains():
    # Two groups gain only if both change; all others cannot gain at all.
    groups = 9
    linear = np.tile([0.0, 1.0], groups)
    pairs = np.zeros((2 * groups, 2 * groups))
    pairs[2 * 3 + 1, 2 * 7 + 1] = pairs[2 * 7 + 1, 2 * 3 + 1] = -5.0
    problem = ChoiceProblem(
        linear, 2 * np.arange(groups + 1), np.zeros((1, 2 * groups), dtype=np.int64), [0], pairs=sparse.csr_array(pairs)
    )
    here = np.zeros(groups, dtype=np.int64)
    numbers, gains = pair_gains(problem, local_model(problem, here), here, np.arange(groups))
    assert gains[3, 7] == pytest.approx(3.0) and np.isneginf(np.diag(gains)).all()
    assert (np.unravel_index(np.argmax(gains), gains.shape)) in ((3, 7), (7, 3))
    picker = BlockPicker(problem, np.ones(groups, np.int64), 2, np.random.default_rng(0))
    assert picker.pick(here).tolist() == [3, 7]
    picker.record(np.array([3, 7]), improved=False)
    assert picker.tired[[3, 7]].tolist() == [1.0, 1.0] and picker.tired.sum() == 2.0
    picker.record(np.array([0]), improved=True)
    assert picker.tired.sum() == 1.0


def test_pair_gains_are_the_energies_of_joint_changes():
    for kind in ("dense", "low-rank"):
        problem = random_problem(kind, groups=4, choices=3, seed=1, budgets=0)
        here = np.array([0, 1, 2, 0])
        _, gains = pair_gains(problem, local_model(problem, here), here, np.arange(4))
        for g, h in itertools.combinations(range(4), 2):
            best = np.inf
            for k, m in itertools.product(range(3), repeat=2):
                if k == here[g] or m == here[h]:
                    continue
                there = here.copy()
                there[[g, h]] = k, m
                best = min(best, problem.energy(there) - problem.energy(here))
            assert gains[g, h] == pytest.approx(-best, abs=1e-5)


def test_a_timed_run_is_repeated_exactly_by_its_work():
    problem = random_problem("dense", groups=16, choices=6, seed=2)
    solver = Decomposition(block_groups=5, block_work=600)
    timed = solve(problem, solver, time_limit=1.0, seed=5)
    again = solve(problem, solver, time_limit=60.0, work_limit=timed.work, seed=5)
    assert np.array_equal(timed.assignment, again.assignment) and timed.work == again.work


def test_large_problems_are_begun_in_time(clock):
    problem = random_problem("sparse", groups=1500, choices=8, seed=0)
    solve(problem, Decomposition(inner="greedy"), time_limit=0.2)  # compile first

    def solved_and_reads(step):
        with clock(step) as wound:
            return solve(problem, Decomposition(inner="greedy"), time_limit=2.0), wound.reads

    hurried, few = solved_and_reads(1.0)  # the time is over at the second reading
    patient, many = solved_and_reads(0.01)
    assert few <= 40 and 3 * few <= many
    assert hurried.work == 0 < patient.work
    assert problem.is_feasible(hurried.assignment)
    assert hurried.details["energy_before_blocks"] > patient.details["energy_before_blocks"], "begun in less time"


def test_a_chip_takes_blocks_of_its_largest_clique():
    chip = MockDWaveSampler(topology_type="zephyr", topology_shape=[2, 4], parameter_warnings=False)
    problem = random_problem("dense", groups=20, choices=16, seed=0)
    solver = QpuDecomposition(inner=Qpu(sampler=chip, num_reads=20, cache=None), blocks=3, block_work=1)
    solution = solve(problem, solver, time_limit=60.0)
    assert problem.is_feasible(solution.assignment)
    details = solution.details
    assert details["simulated"] is True and details["bits"] <= details["largest_clique"] == 24
    assert details["submissions"] <= 3 == details["blocks"]
    assert {"embed", "queue", "programming", "anneal", "readout", "decode"} <= set(solution.timing)
    assert any("no D-Wave machine was involved" in note for note in solution.notes)


def test_one_connection_serves_all_blocks():
    problem = random_problem("dense", groups=14, choices=8, seed=0)
    with LoopbackLeap(chips=[Chip("zephyr", 2)]) as server, server.environment():
        inner = Qpu(num_reads=20, cache=None, **server.client_options)
        solution = solve(problem, QpuDecomposition(inner=inner, blocks=3, block_work=1), time_limit=30.0)
        listed = sum(request.kind == "list" for request in server.requests)
    assert solution.details["blocks"] == 3 and problem.is_feasible(solution.assignment)
    assert listed <= 2, "solvers are listed once (the client asks twice)"
    assert solvers.get("qpu-decomposition").remote and solvers.get("decomposition")().inner != "qpu"


def test_ctrl_c_returns_the_best_so_far(ctrl_c):
    problem = random_problem("low-rank", groups=40, choices=10, seed=0)
    solve(problem, "decomposition", time_limit=0.2)  # compile first
    ctrl_c(0.5)
    solution = solve(problem, "decomposition", time_limit=3600.0)
    assert solution.interrupted and problem.is_feasible(solution.assignment)


@pytest.mark.parametrize(
    "options",
    [{"block_groups": 0}, {"block_bits": 0}, {"block_work": 0}, {"blocks": 0}, {"block_seconds": 0.0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(e.InvalidSolverOption):
        Decomposition(**options)


def test_a_decomposition_of_decompositions_is_refused():
    with pytest.raises(e.InvalidSolverOption, match="itself"):
        Decomposition(inner="decomposition")
    with pytest.raises(e.UnknownName):
        Decomposition(inner="quantun")
