"""Conformance checks for solvers: run on all registered ones, and meant for users' own.

Example:
    >>> from qubo_compress.testing import check_solver
    >>> check_solver("greedy", time_limit=0.5)
"""

from __future__ import annotations

import _thread
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np

from qubo_compress._internal.processors import usable_processors
from qubo_compress.errors import InfeasibleBudget, NoFeasibleFound, ProblemTooLarge, UnsupportedProblem
from qubo_compress.problem.choice_problem import ChoiceProblem, FactorArray, IntArray
from qubo_compress.problem.generators import random_problem
from qubo_compress.solvers import RawSolution, Search, SearchLimits, Solution, Solver, make_solver, solve
from qubo_compress.solvers.verification import verify
from qubo_compress.testing import clocks

_AMPLE = 1e6
"""More seconds than any search takes, or than a disturbed clock advances during one."""

_NO_TIME = 1e-6
"""A time limit that is over at the first reading of the clock."""

_CTRL_C_AFTER = 0.4
"""Seconds of a search before Ctrl-C is pressed."""

_REACTION = 3.0
"""Seconds that a search may take to end after Ctrl-C."""

_READINGS = {"sparse": (7, 60), "low-rank": (20, 150)}
"""Numbers of clock readings after which the time is over, on problems of each kind."""

_BLOCK = 2**15
"""Assignments whose energies are computed at once."""

_KINDS = ("separable", "sparse", "dense", "low-rank")


def check_solver(solver: str | Solver, *, time_limit: float = 1.0, optimises: bool | None = None) -> None:
    """Run every check of :data:`CHECKS` on a solver.

    Args:
        solver: a registered name or a :class:`~qubo_compress.solvers.Solver`.
        time_limit: wall-clock seconds for each solve; the checks take some dozens of solves.
        optimises: whether the solver must find the optimum where it is obvious (keep everything on a positive
            semidefinite table that no budget binds); None: where the solver's ``optimises`` says so.

    Raises:
        AssertionError: naming the check that failed and what was wrong.
    """
    chosen = make_solver(solver)
    for check in CHECKS:
        _run(check, chosen, time_limit)
    if chosen.optimises if optimises is None else optimises:
        _run(keeps_everything_when_free, chosen, time_limit)


def _run(check: Callable[[Solver, float], None], solver: Solver, time_limit: float) -> None:
    try:
        check(solver, time_limit)
    except AssertionError as failure:
        raise AssertionError(f"solver {solver.name!r}, check {check.__name__}: {failure}") from failure


def brute_force(problem: ChoiceProblem) -> tuple[float, IntArray] | None:
    """The least energy within the budgets and its assignment, by trying all; None if nothing fits.

    Example:
        >>> problem = ChoiceProblem(linear=[0.0, 1.0], group_offsets=[0, 2], costs=[[8, 2]], limits=[4])
        >>> brute_force(problem)[0]
        1.0
    """
    best: tuple[float, IntArray] | None = None
    for picks in _blocks_of_all_assignments(problem):
        energies = problem.energies(picks)
        slack = 1e-9 * float(np.abs(energies).max())  # many energies at once are rounded otherwise than one
        for row in np.argsort(energies, kind="stable"):
            if best is not None and energies[row] > best[0] + slack:
                break
            if problem.is_feasible(picks[row]):
                energy = problem.energy(picks[row])
                if best is None or energy < best[0]:
                    best = energy, picks[row].copy()
    return best


def _blocks_of_all_assignments(problem: ChoiceProblem) -> Iterator[IntArray]:
    """(N, G) arrays that hold every assignment once; only those within the budgets if no pair costs count."""
    every = itertools.product(*(range(size) for size in problem.group_sizes))
    while block := list(itertools.islice(every, _BLOCK)):
        picks = np.array(block, dtype=np.int64).reshape(len(block), problem.num_groups)
        if problem.pair_costs is None:
            totals = problem.costs[:, picks + problem.group_offsets[:-1]].sum(axis=2)
            picks = picks[(totals.T + problem.fixed_costs <= problem.limits).all(axis=1)]
        if len(picks):
            yield picks


def answers_are_verified(solver: Solver, time_limit: float) -> None:
    """Energies, budgets and claims hold on every structure, with none, one and two budgets."""
    found = 0
    for kind, budgets in itertools.product(_KINDS, (0, 1, 2)):
        problem = _small(kind, budgets)
        solution = _attempt(problem, solver, time_limit)
        if solution is not None:
            found += 1
            _check_answer(problem, solution, f"{kind} with {budgets} budgets")
    assert found > 0, "no feasible answer on any of twelve small problems"


def bounds_hold(solver: Solver, time_limit: float) -> None:
    """No bound is above the optimum found by trying all assignments."""
    for kind, (budgets, seed) in itertools.product(_KINDS, ((1, 5), (2, 6))):
        rank = 6 if kind == "low-rank" else None
        problem = random_problem(kind, groups=5, choices=4, seed=seed, budgets=budgets, rank=rank)
        _check_claims(problem, _attempt(problem, solver, time_limit), f"{kind}, seed {seed}")


def pair_costs_are_taken_or_refused(solver: Solver, time_limit: float) -> None:
    """Budgets with pair costs: totals, energies and bounds hold, or the problem is refused before any search."""
    for kind, share, seed in (("channels", 0.0, 3), ("dense", 0.8, 4), ("low-rank", 0.8, 5), ("separable", 0.8, 6)):
        problem = random_problem(kind, groups=5, choices=3, seed=seed, budgets=1 + seed % 2, pair_costs=share)
        try:
            _check_claims(problem, _attempt(problem, solver, time_limit), f"{kind} with pair costs")
        except UnsupportedProblem:
            assert not solver.accepts_pair_costs, f"{kind}: says that it accepts pair costs, and refuses them"


def _check_claims(problem: ChoiceProblem, solution: Solution | None, where: str) -> None:
    """An answer, its bound and its status against the optimum found by trying all assignments."""
    truth = brute_force(problem)
    if truth is None or solution is None:
        assert solution is None, f"an answer where nothing fits ({where})"
        return
    least, energy, bound = truth[0], solution.energy, solution.bound
    tolerance = 1e-9 * max(1.0, abs(least))
    assert problem.is_feasible(solution.assignment), f"over budget ({where})"
    assert energy >= least - tolerance, f"energy {energy} below the optimum {least} ({where})"
    assert bound is None or bound <= least + tolerance, f"bound {bound} above the optimum {least} ({where})"
    optimal = energy <= least + 1e-5 * max(abs(least), 1e-9)
    assert optimal or solution.status != "optimal", f"called optimal at {energy}, but {least} can be reached ({where})"


def scales_change_no_claim(solver: Solver, time_limit: float) -> None:
    """Energies of 1e-12 or 1e9, and a large constant, make no bound invalid and no answer falsely optimal."""
    for kind, scale, constant in zip(_KINDS, (1e-12, 1e9, 1.0, 1e-12), (0.0, -1e9, 1e9, 1.0), strict=True):
        plain = random_problem(kind, groups=4, choices=4, seed=8, rank=6 if kind == "low-rank" else None)
        problem = rescaled(plain, scale, constant)
        # Without the constant, which would swamp the digits of the energies; a scaled factor is rounded again.
        bare = problem.without_constant()
        truth = brute_force(bare)
        solution = _attempt(problem, solver, time_limit)
        if truth is None or solution is None:
            continue
        where = f"{kind} at scale {scale:g} with constant {constant:g}"
        wrong = [note for note in solution.notes if "bound" in note and "dropped" in note]
        assert not wrong, f"{where}: {wrong[0]}"
        slack = 1e-9 * abs(truth[0]) + 4e-16 * abs(constant)
        if solution.bound is not None:
            bound = solution.bound - constant
            assert bound <= truth[0] + slack, f"bound {bound} above the optimum {truth[0]}, {where}"
        energy = bare.energy(solution.assignment)
        assert solution.status != "optimal" or energy <= truth[0] + 1e-5 * abs(truth[0]), (
            f"called optimal at {energy}, but {truth[0]} can be reached ({where})"
        )


def rescaled(problem: ChoiceProblem, scale: float, constant: float = 0.0) -> ChoiceProblem:
    """The same choices and budgets with all energies multiplied by ``scale``, and another constant.

    Example:
        >>> problem = ChoiceProblem(linear=[0.0, 2.0], group_offsets=[0, 2], costs=[[8, 2]], limits=[4])
        >>> rescaled(problem, 1e-3, 5.0).energy([1])
        5.002
    """
    return ChoiceProblem(
        linear=scale * problem.linear,
        group_offsets=problem.group_offsets,
        costs=problem.costs,
        limits=problem.limits,
        fixed_costs=problem.fixed_costs,
        factor=None if problem.factor is None else np.sqrt(scale) * problem.factor.astype(np.float64),
        pairs=None if problem.pairs is None else scale * problem.pairs,
        constant=constant,
    )


def same_seed_and_work_repeat(solver: Solver, time_limit: float) -> None:
    """The same seed and work limit give the same answer, and so does the work done under a time limit.

    A solver that says of itself ``repeats = False`` need not repeat, but must keep the work limit; neither need a timed
    run whose ``details`` say so, because the clock decided more than when to stop.
    """
    for kind in ("sparse", "low-rank"):
        problem = random_problem(kind, groups=8, choices=6, seed=2)
        first = _attempt(problem, solver, _AMPLE, work=40, seed=3)
        if first is not None:
            assert first.work <= 40, f"work_limit=40, but {first.work} was done"
        if not solver.repeats:
            continue
        second = _attempt(problem, solver, _AMPLE, work=40, seed=3)
        _check_same(first, second, f"work_limit=40 on {kind}")
        timed = _attempt(problem, solver, min(time_limit, 0.5), seed=3)
        if timed is not None and timed.work >= 1 and timed.details.get("repeats", True):
            again = _attempt(problem, solver, _AMPLE, work=timed.work, seed=3)
            _check_same(timed, again, f"re-running with the recorded work {timed.work} on {kind}", counted=False)


def loads_change_nothing(solver: Solver, time_limit: float) -> None:  # noqa: ARG001
    """The same seed and work give the same answer while the clock jumps and another thread is busy.

    The time is also let run out at some reading of the clock: what was done by then gives the same answer again. A
    solver that says of itself ``repeats = False`` need not repeat.
    """
    if not solver.repeats:
        return
    for kind, all_readings in _READINGS.items():
        problem = random_problem(kind, groups=8, choices=6, seed=2)
        calm = _attempt(problem, solver, _AMPLE, work=20, seed=3)
        with clocks.busy_thread(), clocks.under(clocks.jumping_clock(len(kind))):
            disturbed = _attempt(problem, solver, _AMPLE, work=20, seed=3)
        _check_same(calm, disturbed, f"work_limit=20 on {kind}, under a clock that jumps")
        done = 0
        for readings in all_readings:
            with clocks.under(clocks.steady_clock(1.0 / readings)):
                timed = _attempt(problem, solver, 1.0, seed=3)
            if timed is not None and timed.work > done and timed.details.get("repeats", True):
                done = timed.work
                again = _attempt(problem, solver, _AMPLE, work=done, seed=3)
                where = f"re-running with the work {done} done in {readings} readings of the clock on {kind}"
                _check_same(timed, again, where, counted=False)


def time_limit_is_kept(solver: Solver, time_limit: float) -> None:
    """A limit that is over before the search begins leaves no more than the least that an answer takes.

    Work is counted, not seconds, so that a busy machine changes nothing: what is done within a microsecond must be one
    unit of the solver's own, a proof, or less than half of what is done within ``time_limit`` or, where that is still
    too short for more, within ten or a hundred times as much. A search that comes to its own end within ``time_limit``
    seconds of the processor, however much time it is given, need not look at the clock. A solver that counts no work
    is checked by its processor seconds alone: within ``time_limit`` and half a second, or a twentieth, on each of its
    ``threads``. They are no more than the wall clock's, whatever else the machine does.
    """
    for kind in ("dense", "low-rank", "separable"):
        problem = random_problem(kind, groups=60, choices=12, seed=1)
        allowed = _threads_of(solver) * (time_limit + max(0.5, 0.05 * time_limit))
        _refuse_overruns(problem, solver, time_limit, kind, allowed)
        hurried = _attempt(problem, solver, _NO_TIME)
        if hurried is None or hurried.work <= 1 or hurried.status == "optimal":
            continue
        for longer in (1.0, 10.0, 100.0):
            begin = _processor_seconds()
            patient = _attempt(problem, solver, longer * time_limit)
            used = _processor_seconds() - begin
            if patient is not None and patient.work > 2 * hurried.work:
                break
        else:
            assert used <= time_limit, (
                f"the time limit is not kept: on {kind}, work {hurried.work} was done within {_NO_TIME} s, and "
                f"{0 if patient is None else patient.work} within {longer * time_limit:g} s; look at the clock after "
                "every unit of work"
            )


def large_problems_keep_it_too(solver: Solver, time_limit: float) -> None:
    """On 500 groups of 12 choices, all coupled, no more than a quarter and a second above the limit per thread.

    Building a binary model of 15 million couplings, and one call of a sampler, count.
    """
    problem = random_problem("low-rank", groups=500, choices=12, seed=1)
    allowed = _threads_of(solver) * (1.25 * time_limit + 1.0)
    _refuse_overruns(problem, solver, time_limit, "500 groups", allowed)


def _refuse_overruns(problem: ChoiceProblem, solver: Solver, time_limit: float, kind: str, allowed: float) -> None:
    """The least processor seconds of five tries stay within what is allowed; the first may compile."""
    least = float("inf")
    for _ in range(5):
        begin = _processor_seconds()
        _attempt(problem, solver, time_limit)
        least = min(least, _processor_seconds() - begin)
        if least <= allowed:
            return
    raise AssertionError(
        f"the time limit is not kept: {least:.2f} s of the processor were used on {kind}, where {allowed:.2f} s are "
        f"allowed for time_limit={time_limit}"
    )


def _threads_of(solver: Solver) -> int:
    """Threads that one search may use: its ``threads``, or as many as the process may use processors."""
    return solver.threads or usable_processors()


def unreachable_budgets_are_refused(solver: Solver, time_limit: float) -> None:
    """One budget out of reach: InfeasibleBudget. Two that exclude each other: that or NoFeasibleFound."""
    problem = random_problem("low-rank", groups=4, choices=3, seed=0)
    refusal: InfeasibleBudget | None = None
    try:
        solve(problem.with_limits(problem.smallest_totals() - 1), solver, time_limit=time_limit)
    except InfeasibleBudget as raised:
        refusal = raised
    assert refusal is not None, "a budget below the smallest reachable total was accepted"
    assert refusal.smallest == problem.smallest_totals()[0], "the error does not name the smallest reachable total"
    contradictory = _problem([0.0] * 4, [0, 2, 4], [[4, 1, 4, 1], [1, 4, 1, 4]], [4, 4])
    try:
        solution = solve(contradictory, solver, time_limit=time_limit)
    except (InfeasibleBudget, NoFeasibleFound):
        return
    raise AssertionError(f"an answer over budget was returned: {solution.assignment.tolist()}")


def degenerate_shapes_are_solved(solver: Solver, time_limit: float) -> None:
    """One group, one choice everywhere, and nothing but ties."""
    single = _problem([3.0, 2.0, 1.0], [0, 3], [[1, 2, 3]], [2])
    solution = _attempt(single, solver, time_limit)
    assert solution is not None, "no answer for one group with three choices"
    _check_answer(single, solution, "one group")
    forced = random_problem("low-rank", groups=5, choices=1, seed=0)
    solution = _attempt(forced, solver, time_limit)
    assert solution is not None and not solution.assignment.any(), "no answer where every group has one choice"
    tied = _problem([1.0] * 12, [0, 4, 8, 12], [[1] * 12], [3], factor=np.zeros((12, 2), dtype=np.float32))
    solution = _attempt(tied, solver, time_limit)
    assert solution is not None and solution.energy == 3.0, "no answer where all choices are alike"


def tight_budgets_are_met(solver: Solver, time_limit: float) -> None:
    """Where only one assignment fits, a solver finds it or says that it found none, and never more than fits."""
    problem = random_problem("dense", groups=5, choices=4, seed=4)
    tight = problem.with_limits(problem.smallest_totals())
    solution = _attempt(tight, solver, time_limit)
    if solution is not None:
        _check_answer(tight, solution, "the smallest reachable budget")


def interruption_returns_the_best(solver: Solver, time_limit: float) -> None:  # noqa: ARG001
    """Ctrl-C ends the search with an answer; a search that ended before is as good. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return
    problem = random_problem("low-rank", groups=60, choices=12, seed=7)
    before = _attempt(problem, solver, 0.2)  # whatever is compiled once is compiled here
    begin = _processor_seconds()
    try:
        raw, met = _search_under_ctrl_c(solver, problem, 20.0)
        used = _processor_seconds() - begin
        solution = verify(problem, solver.name, raw, 0.0)
    except ProblemTooLarge:
        return
    except NoFeasibleFound:
        assert before is None, "Ctrl-C came during the search, and nothing that was found until then was kept"
        return
    except KeyboardInterrupt:
        raise AssertionError("KeyboardInterrupt escaped instead of ending the search") from None
    assert solution.interrupted or solution.status == "optimal" or not met, (
        "Ctrl-C came during the search, and the answer does not say that it was interrupted"
    )
    allowed = _threads_of(solver) * (_CTRL_C_AFTER + _REACTION)
    assert not solution.interrupted or used <= allowed, (
        f"{used:.1f} s of the processor were used by a search that Ctrl-C came to after {_CTRL_C_AFTER} s"
    )
    _check_answer(problem, solution, "an interrupted search")


def keeps_everything_when_free(solver: Solver, time_limit: float) -> None:
    """On a positive semidefinite table that no budget binds, nothing is changed: energy zero, proven or not."""
    for groups, choices in ((5, 4), (20, 8)):
        problem = random_problem("low-rank", groups=groups, choices=choices, seed=groups)
        everything = problem.totals(np.zeros(groups, dtype=np.int64))
        solution = solve(problem.with_limits(everything), solver, time_limit=time_limit)
        assert not solution.assignment.any(), f"changed {int((solution.assignment > 0).sum())} of {groups} groups"


CHECKS: tuple[Callable[[Solver, float], None], ...] = (
    answers_are_verified,
    bounds_hold,
    pair_costs_are_taken_or_refused,
    scales_change_no_claim,
    same_seed_and_work_repeat,
    loads_change_nothing,
    time_limit_is_kept,
    large_problems_keep_it_too,
    unreachable_budgets_are_refused,
    degenerate_shapes_are_solved,
    tight_budgets_are_met,
    interruption_returns_the_best,
)
"""Every check that any solver must pass: each takes a solver and a time limit and raises AssertionError."""


def _problem(
    linear: list[float],
    offsets: list[int],
    costs: list[list[int]],
    limits: list[int],
    factor: FactorArray | None = None,
) -> ChoiceProblem:
    return ChoiceProblem(np.array(linear), np.array(offsets), np.array(costs), np.array(limits), factor=factor)


def _small(kind: str, budgets: int) -> ChoiceProblem:
    return random_problem(kind, groups=6, choices=5, seed=11, budgets=budgets, rank=8 if kind == "low-rank" else None)


def _search_under_ctrl_c(solver: Solver, problem: ChoiceProblem, seconds: float) -> tuple[RawSolution, bool]:
    """Search, press Ctrl-C meanwhile, and say whether it came before the search had ended.

    The time runs from the beginning of the search, so that nothing else is interrupted.
    """
    pressed, met, ended = threading.Event(), False, False
    search = Search(problem, SearchLimits(seconds), np.random.default_rng(0))

    def press() -> None:
        _thread.interrupt_main()
        pressed.set()

    timer = threading.Timer(_CTRL_C_AFTER, press)
    # A process started in the background may ignore SIGINT, and then nothing would be tested.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        search.run(solver)
        ended = True
        met = pressed.is_set()
        timer.cancel()
        timer.join()
    except KeyboardInterrupt:
        if not ended:
            raise
        met = False  # it came when the search had just ended
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, handler)
    return search.result(), met


def _processor_seconds() -> float:
    """Used so far by all threads, and by the processes that were waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _attempt(
    problem: ChoiceProblem, solver: Solver, time_limit: float, work: int | None = None, seed: int = 0
) -> Solution | None:
    try:
        return solve(problem, solver, time_limit=time_limit, work_limit=work, seed=seed)
    except (NoFeasibleFound, ProblemTooLarge):
        return None


def _check_answer(problem: ChoiceProblem, solution: Solution, where: str) -> None:
    assert problem.is_feasible(solution.assignment), f"over budget on {where}"
    recomputed = problem.energy(solution.assignment)
    assert np.isclose(solution.energy, recomputed, rtol=1e-12, atol=1e-12), f"wrong energy on {where}"
    wrong = [note for note in solution.notes if "claimed" in note or "dropped" in note]
    assert not wrong, f"{where}: {wrong[0]}"
    assert solution.bound is None or solution.bound <= solution.energy, f"bound above the energy on {where}"
    assert all(entry.energy >= solution.energy for entry in solution.pool), f"pool not sorted on {where}"


def _check_same(first: Solution | None, second: Solution | None, where: str, counted: bool = True) -> None:
    if first is None or second is None:
        assert first is None and second is None, f"{where}: one run found an answer and the other did not"
        return
    assert (first.assignment == second.assignment).all(), f"{where}: different assignments"
    assert not counted or first.work == second.work, f"{where}: work {first.work} and {second.work}"
