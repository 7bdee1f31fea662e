"""Sparse pair energies as a mixed-integer linear programme, solved by HiGHS in a process of its own.

Every coupled pair of groups gets a table y of continuous variables over their pairs of choices, with
sum_j y_ij = x_i and sum_i y_ij = x_j (the local marginal polytope, the first level of the reformulation-linearisation
technique): with x in {0, 1} then y_ij = x_i x_j. HiGHS' own word on its status is not used: the answer's energy is
recomputed, and the dual bound, less what the solver's tolerances allow, is all that is claimed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from qubo_compress.problem import ChoiceProblem, FloatArray, IntArray
from qubo_compress.solvers import milp_process
from qubo_compress.solvers.relaxation import scaled_costs

MOST_TABLE_ENTRIES = 250_000
"""Most entries of all coupled tables for which the programme is built."""

_RELATIVE_GAP = 2e-7
_TOLERANCE = 1e-8
"""Share of the magnitude of the objective that is deducted from the solver's dual bound."""

_START_SECONDS = 1.0
_GRACE_SECONDS = 0.3


@dataclass(frozen=True)
class MilpAnswer:
    """What HiGHS found.

    Attributes:
        assignment: (G,) local choices, or None.
        bound: lower bound on every feasible energy, ``-inf`` when the process was ended before it had one.
        nodes: branch and bound nodes of HiGHS.
        ended: whether the process had to be ended because it overran its limit.
    """

    assignment: IntArray | None
    bound: float
    nodes: int
    ended: bool


@dataclass(frozen=True, eq=False)
class _Programme:
    objective: FloatArray
    matrix: sparse.csr_array
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, eq=False)
class CoupledTable:
    """The pair energies of two groups.

    Attributes:
        first: global number of the first choice of one group.
        second: global number of the first choice of the other.
        values: (K, K') energies.
    """

    first: int
    second: int
    values: FloatArray


def coupled_tables(problem: ChoiceProblem) -> Iterator[CoupledTable]:
    """The tables of all coupled pairs of groups, each once."""
    offsets = problem.group_offsets
    lower, upper = _coupled(problem)
    for g, h in zip(lower.tolist(), upper.tolist(), strict=True):
        rows = problem.pairs[offsets[g] : offsets[g + 1]]  # type: ignore[index]
        yield CoupledTable(int(offsets[g]), int(offsets[h]), rows[:, offsets[h] : offsets[h + 1]].toarray())


def table_entries(problem: ChoiceProblem) -> int:
    """Entries of all coupled tables, counted once for each pair of groups."""
    lower, upper = _coupled(problem)
    sizes = problem.group_sizes
    return int((sizes[lower] * sizes[upper]).sum())


def solve_milp(problem: ChoiceProblem, deadline: float, gap: float = _RELATIVE_GAP) -> MilpAnswer:
    """Solve a problem with pair energies (or none) as a mixed-integer linear programme.

    The process is ended when the deadline has passed, and when this function is left by an exception.

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
    programme = _programme(problem)
    with tempfile.TemporaryDirectory(prefix="qubo_compress_") as folder:
        source, target = Path(folder) / "programme.npz", Path(folder) / "answer.npz"
        seconds = deadline - time.perf_counter() - _START_SECONDS - _GRACE_SECONDS
        if seconds <= 0.0:
            return MilpAnswer(None, -np.inf, 0, False)
        matrix = programme.matrix
        np.savez(
            source, objective=programme.objective, data=matrix.data, indices=matrix.indices, indptr=matrix.indptr,
            shape=np.array(matrix.shape), low=programme.low, high=programme.high,
            integrality=(np.arange(programme.objective.size) < problem.num_choices).astype(np.int64),
            seconds=np.float64(seconds), gap=np.float64(gap),
        )  # fmt: skip
        finished = _run_script([str(source), str(target)], deadline - _GRACE_SECONDS)
        if not target.exists():
            return MilpAnswer(None, -np.inf, 0, not finished)
        try:
            with np.load(target, allow_pickle=False) as stored:
                x, bound = stored["x"], float(stored["bound"])
                nodes, infeasible = int(stored["nodes"]), bool(stored["infeasible"])
        except (OSError, ValueError, KeyError):  # ended while it wrote
            return MilpAnswer(None, -np.inf, 0, True)
    assignment = None
    if x.size and not infeasible:
        spans = zip(problem.group_offsets[:-1], problem.group_offsets[1:], strict=True)
        assignment = np.array([int(np.argmax(x[a:b])) for a, b in spans], dtype=np.int64)
    magnitude = abs(bound) + float(np.abs(problem.linear).max(initial=0.0)) * problem.num_groups
    certified = problem.constant + bound - _TOLERANCE * magnitude if np.isfinite(bound) else -np.inf
    return MilpAnswer(assignment, certified, nodes, not finished)


def _run_script(arguments: list[str], deadline: float) -> bool:
    """Run the solver's script until it ends or the deadline passes; whether it ended by itself."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(milp_process.__file__), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C goes to us, and we end it
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
    """Lower and upper group of every coupled pair of groups."""
    empty = np.zeros(0, dtype=np.int64)
    if problem.pairs is None or problem.pairs.nnz == 0:
        return empty, empty
    group = np.repeat(np.arange(problem.num_groups), problem.group_sizes)
    entries = problem.pairs.tocoo()
    keys = np.unique(group[entries.row] * problem.num_groups + group[entries.col])
    lower, upper = keys // problem.num_groups, keys % problem.num_groups
    above = lower < upper
    return lower[above], upper[above]


def _programme(problem: ChoiceProblem) -> _Programme:
    total, groups, sizes = problem.num_choices, problem.num_groups, problem.group_sizes
    objective, rows, columns, values = [problem.linear], [], [], []
    rows.append(np.repeat(np.arange(groups), sizes))
    columns.append(np.arange(total))
    values.append(np.ones(total))
    row, column = groups, total
    for block in coupled_tables(problem):
        table = block.values
        m, k = table.shape
        places = column + np.arange(m * k).reshape(m, k)
        objective.append(table.ravel())
        for axis, (size, start) in enumerate(((m, block.first), (k, block.second))):
            own = row + np.arange(size)
            rows += [np.broadcast_to(own[:, None] if axis == 0 else own, (m, k)).ravel(), own]
            columns += [places.ravel(), start + np.arange(size)]
            values += [np.ones(m * k), -np.ones(size)]
            row += size
        column += m * k
    costs, room, _ = scaled_costs(problem)
    for b in range(room.size):
        rows.append(np.full(total, row + b))
        columns.append(np.arange(total))
        values.append(costs[:, b])
    low = np.concatenate([np.ones(groups), np.zeros(row - groups), np.full(room.size, -np.inf)])
    high = np.concatenate([np.ones(groups), np.zeros(row - groups), room])
    matrix = sparse.csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(row + room.size, column)
    )
    return _Programme(np.concatenate(objective), matrix, low, high)
