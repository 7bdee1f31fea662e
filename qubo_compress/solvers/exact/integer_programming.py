"""Sparse pair energies as a mixed-integer linear program, solved by HiGHS in a separate process.

Every coupled pair of groups gets a table y of continuous variables over their pairs of choices, with
sum_j y_ij = x_i and sum_i y_ij = x_j (the local marginal polytope, the first level of the reformulation-linearisation
technique): x in {0, 1} then implies y_ij = x_i x_j. HiGHS' own status is not used: the answer's energy is recomputed,
and only the dual bound, less the solver's tolerances, is claimed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import sparse

from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.problem.energy_scale import StandardProblem, standardise
from qubo_compress.solvers.exact import milp_process
from qubo_compress.solvers.exact.convex_relaxation import scaled_costs

MOST_TABLE_ENTRIES = 250_000
"""The program is built for at most this many entries of coupled tables."""

_RELATIVE_GAP = 2e-7
"""Below the gap of an optimal solution, 1e-6, to leave room for tolerances."""
_OBJECTIVE_SCALE = 1e3
"""Typical difference between choices in the program. It is larger than in the standardised problem because HiGHS'
tolerances are absolute: they then matter a thousand times less."""

_TOLERANCE = 1e-6
"""HiGHS may miss a better node, or treat a reduced cost as zero, by this much in the program's units."""

_START_SECONDS = 1.0
"""Reserved for starting the process."""
_GRACE_SECONDS = 0.3
"""Reserved for ending the process."""


@dataclass(frozen=True)
class MilpAnswer:
    """The answer of HiGHS to a choice problem.

    Attributes:
        assignment: (G,) local choices, or None.
        bound: lower bound on every feasible energy, ``-inf`` if the process ended without one.
        nodes: branch and bound nodes of HiGHS.
        ended: whether the process was killed because it overran its limit.
    """

    assignment: IntArray | None
    bound: float
    nodes: int
    ended: bool


@dataclass(frozen=True, eq=False)
class Programme:
    """Minimise objective . x with low <= matrix x <= high and x between 0 and 1."""

    objective: FloatArray
    matrix: sparse.csr_array
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, eq=False)
class ProgrammeAnswer:
    """The answer of HiGHS to a program.

    Attributes:
        x: the variables of the best solution; empty if there is none.
        bound: dual bound; ``-inf`` if there is none.
        nodes: branch and bound nodes.
        infeasible: whether HiGHS found that there is no solution.
        ended: whether the process was killed because it overran its limit.
    """

    x: FloatArray
    bound: float
    nodes: int
    infeasible: bool
    ended: bool


@dataclass(frozen=True, eq=False)
class CoupledTable:
    """The pair energies and pair costs of two groups.

    Attributes:
        first: global number of the first choice of one group.
        second: global number of the first choice of the other.
        values: (K, K') energies.
        costs: (K, K') pair costs of each budget, or None for a budget without; empty if no budget has any.
    """

    first: int
    second: int
    values: FloatArray
    costs: tuple[IntArray | None, ...] = ()


def coupled_tables(problem: ChoiceProblem) -> Iterator[CoupledTable]:
    """The tables of all coupled pairs of groups, each once."""
    offsets = problem.group_offsets
    lower, upper = _coupled(problem)
    for g, h in zip(lower.tolist(), upper.tolist(), strict=True):
        first, second = slice(offsets[g], offsets[g + 1]), slice(offsets[h], offsets[h + 1])
        values = np.zeros((first.stop - first.start, second.stop - second.start))
        if problem.pairs is not None:
            values = problem.pairs[first][:, second].toarray()
        costs = [None if matrix is None else matrix[first][:, second].toarray() for matrix in problem.pair_costs or ()]
        yield CoupledTable(int(offsets[g]), int(offsets[h]), values, tuple(costs))


def table_entries(problem: ChoiceProblem) -> int:
    """Entries of all coupled tables, counted once for each pair of groups."""
    lower, upper = _coupled(problem)
    sizes = problem.group_sizes
    return int((sizes[lower] * sizes[upper]).sum())


def solve_milp(problem: ChoiceProblem, deadline: float, gap: float = _RELATIVE_GAP) -> MilpAnswer:
    """Solve a problem with pair energies (or none) as a mixed-integer linear program; pair costs are exact.

    The process is killed when the deadline passes, and when an exception leaves this function.

    Args:
        problem: the problem; any number of budgets.
        deadline: value of ``time.perf_counter`` by which this function returns.
        gap: relative gap at which HiGHS stops.

    Example:
        >>> problem = ChoiceProblem.random(kind="sparse", groups=6, choices=4, seed=0, neighbours=1, budgets=2)
        >>> answer = solve_milp(problem, time.perf_counter() + 30.0)
        >>> bool(problem.energy(answer.assignment) - answer.bound < 1e-5)
        True
    """
    standard = standardise(problem)
    programme = linear_programme(standard.problem)
    scaled = replace(programme, objective=_OBJECTIVE_SCALE * programme.objective)
    found = run_programme(scaled, problem.num_choices, deadline, gap)
    assignment = None
    if found.x.size and not found.infeasible:
        spans = zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)
        assignment = np.array([int(np.argmax(found.x[a:b])) for a, b in spans], dtype=np.int64)
    return MilpAnswer(assignment, _certified(standard, programme, found.bound), found.nodes, found.ended)


def run_programme(programme: Programme, integers: int, deadline: float, gap: float = _RELATIVE_GAP) -> ProgrammeAnswer:
    """Solve a program over variables from 0 to 1 by HiGHS in a separate process.

    Args:
        programme: what to minimise.
        integers: how many variables, starting from the first, are 0 or 1.
        deadline: value of ``time.perf_counter`` by which this function returns.
        gap: relative gap at which HiGHS stops.
    """
    nothing = ProgrammeAnswer(np.zeros(0), -np.inf, 0, False, False)
    seconds = deadline - time.perf_counter() - _START_SECONDS - _GRACE_SECONDS
    if seconds <= 0.0:
        return nothing
    with tempfile.TemporaryDirectory(prefix="qubo_compress_") as folder:
        source, target = Path(folder) / "programme", Path(folder) / "answer"
        matrix = programme.matrix
        given = {
            "objective": programme.objective,
            "data": matrix.data,
            "indices": matrix.indices,
            "indptr": matrix.indptr,
            "shape": matrix.shape,
            "low": programme.low,
            "high": programme.high,
            "integrality": (np.arange(programme.objective.size) < integers).astype(np.int64),
            "seconds": seconds,
            "gap": gap,
        }
        milp_process.write_arrays(source, given)
        finished = _run_script([str(source), str(target)], deadline - _GRACE_SECONDS)
        if not target.exists():
            return replace(nothing, ended=not finished)
        try:
            stored = milp_process.read_arrays(target)
        except ValueError:  # a damaged answer claims nothing
            return replace(nothing, ended=True)
        return ProgrammeAnswer(
            stored["x"], float(stored["bound"]), int(stored["nodes"]), bool(stored["infeasible"]), not finished
        )


def _certified(standard: StandardProblem, programme: Programme, bound: float) -> float:
    """HiGHS' dual bound less its tolerances, once for every group and coupled pair of groups."""
    if not np.isfinite(bound):
        return -np.inf
    counted = 1 + standard.problem.num_groups + _coupled(standard.problem)[0].size
    sums = 1e-15 * float(np.abs(programme.objective).sum())
    return standard.energy((bound - _TOLERANCE * counted) / _OBJECTIVE_SCALE - sums)


def _run_script(arguments: list[str], deadline: float) -> bool:
    """Run the solver's script until it ends or the deadline passes; returns whether it ended by itself."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(milp_process.__file__), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only this process, which then ends the child
    )  # fmt: skip
    try:
        process.wait(max(0.01, deadline - time.perf_counter()))
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def _coupled(problem: ChoiceProblem) -> tuple[IntArray, IntArray]:
    """The lower and the upper group of every pair that is coupled by energies or by pair costs."""
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    found = [np.zeros(0, dtype=np.int64)]
    for matrix in (problem.pairs, *(problem.pair_costs or ())):
        if matrix is not None:
            entries = matrix.tocoo()
            found.append(group[entries.row] * problem.num_groups + group[entries.col])
    keys = np.unique(np.concatenate(found))
    lower, upper = keys // problem.num_groups, keys % problem.num_groups
    above = lower < upper
    return lower[above], upper[above]


def linear_programme(problem: ChoiceProblem, more: float = 0.0) -> Programme:
    """The program of a problem without a factor: a variable for every choice, then those of the coupled tables.

    Args:
        problem: the problem.
        more: room added to every budget, in units of cost.
    """
    total, groups, sizes = problem.num_choices, problem.num_groups, problem.group_sizes
    objective, rows, columns, values = [problem.linear], [], [], []
    rows.append(np.repeat(np.arange(groups), sizes))
    columns.append(np.arange(total))
    values.append(np.ones(total))
    row, column = groups, total
    spent: list[tuple[int, IntArray, IntArray]] = []
    for block in coupled_tables(problem):
        table = block.values
        m, k = table.shape
        places = column + np.arange(m * k).reshape(m, k)
        objective.append(table.ravel())
        for b, extra in enumerate(block.costs):
            if extra is not None and extra.any():
                spent.append((b, places[extra != 0], extra[extra != 0]))
        for axis, (size, start) in enumerate(((m, block.first), (k, block.second))):
            own = row + np.arange(size)
            rows += [np.broadcast_to(own[:, None] if axis == 0 else own, (m, k)).ravel(), own]
            columns += [places.ravel(), start + np.arange(size)]
            values += [np.ones(m * k), -np.ones(size)]
            row += size
        column += m * k
    costs, room, scales = scaled_costs(problem)
    for b, where, extra in spent:
        rows.append(np.full(where.size, row + b))
        columns.append(where)
        values.append(extra / scales[b])
    for b in range(room.size):
        rows.append(np.full(total, row + b))
        columns.append(np.arange(total))
        values.append(costs[:, b])
    low = np.concatenate([np.ones(groups), np.zeros(row - groups), np.full(room.size, -np.inf)])
    high = np.concatenate([np.ones(groups), np.zeros(row - groups), room + more / scales])
    matrix = sparse.csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(row + room.size, column)
    )
    return Programme(np.concatenate(objective), matrix, low, high)
