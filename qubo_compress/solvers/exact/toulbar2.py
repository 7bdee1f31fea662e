"""toulbar2 on a cost function network, in a separate process that can be stopped at any moment.

toulbar2 searches depth first from the best open node and keeps a lower bound on all costs. When it is stopped, it
reports its best assignment and this bound. The search is sequential, and depends only on the network and on the number
of backtracks allowed.
"""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from qubo_compress._internal.optional import installed
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.solvers.exact import toulbar2_process
from qubo_compress.solvers.exact.cost_network import CostNetwork, cost_network

START_SECONDS = 0.15
"""Below this, starting the process does not pay."""

_POLL_SECONDS = 0.03

_STOP = signal.SIGTERM if sys.platform == "win32" else signal.SIGVTALRM
"""toulbar2 stops and reports on this signal, which Windows does not have."""

_GRACE_SHARE, _LEAST_GRACE = 0.05, 0.1
"""Reserved for stopping: a share of the time, and the least number of seconds."""


@dataclass(frozen=True, eq=False)
class NetworkAnswer:
    """What toulbar2 found.

    Attributes:
        assignment: (G,) the best assignment below the given cost, or None.
        bound: lower bound on the costs of all feasible assignments, or the given cost if that is less; None if nothing
            is known.
        complete: whether the search came to its end: nothing is better than ``assignment``, or than the given cost.
        work: backtracks, and one for the end; as a limit on work, it repeats the search.
        ended: whether the process had to be killed or failed, so that nothing is known.
        late: whether the clock or Ctrl-C stopped the search.
        interrupted: whether Ctrl-C did.
    """

    assignment: IntArray | None = None
    bound: int | None = None
    complete: bool = False
    work: int = 0
    ended: bool = False
    late: bool = False
    interrupted: bool = False


@dataclass(frozen=True, eq=False)
class NetworkProof:
    """What toulbar2 found, in energies.

    Attributes:
        assignment: (G,) an assignment better than the given one, or None.
        bound: lower bound on all energies; ``-inf`` if there is none, ``inf`` if nothing meets the budgets.
        answer: the same in costs.
        unit: energy of a cost of one, to which energies were rounded down; zero if there was no time for that.
    """

    assignment: IntArray | None
    bound: float
    answer: NetworkAnswer
    unit: float


def prove_by_network(
    problem: ChoiceProblem, first: IntArray | None, deadline: float, backtracks: int | None = None
) -> NetworkProof:
    """Improve an assignment, or prove that nothing is better.

    Args:
        problem: the problem, standardised, with at most ``MOST_NETWORK_ENTRIES`` entries.
        first: a feasible assignment, or None.
        deadline: value of ``time.perf_counter``; it covers building.
        backtracks: most work; None for no limit.
    """
    network = cost_network(problem, first, deadline)
    if network is None:
        return NetworkProof(None, -np.inf, NetworkAnswer(late=True), 0.0)
    below = None if first is None else network.cost(first)
    answer = solve_network(network, below, deadline, backtracks)
    bound = -np.inf if answer.bound is None else network.energy(answer.bound)
    if answer.complete and answer.bound is None:
        bound = np.inf
    better = answer.assignment
    if better is not None and first is not None and problem.energy(better) >= problem.energy(first):
        better = None  # less by rounding only
    return NetworkProof(better, bound, answer, network.unit)


def toulbar2_is_installed() -> bool:
    """Whether this computer can run it: it needs a signal that Windows does not have."""
    return sys.platform != "win32" and installed("pytoulbar2")


def solve_network(
    network: CostNetwork, below: int | None, deadline: float, backtracks: int | None = None
) -> NetworkAnswer:
    """Search for the least cost; the process has ended when this returns.

    Args:
        network: the costs.
        below: only assignments of a lower cost are searched for; None: all.
        deadline: value of ``time.perf_counter``.
        backtracks: most work; None for no limit.

    Example:
        >>> from qubo_compress import ChoiceProblem
        >>> from qubo_compress.solvers.exact.cost_network import cost_network
        >>> problem = ChoiceProblem.random(kind="dense", groups=4, choices=3, seed=0)
        >>> network = cost_network(problem, None, np.inf)
        >>> answer = solve_network(network, None, time.perf_counter() + 20.0)
        >>> answer.complete, answer.bound == network.cost(answer.assignment)
        (True, True)
    """
    if below is not None and below <= 0:
        return NetworkAnswer(bound=below, complete=True)  # no cost is negative
    seconds = deadline - time.perf_counter()
    if seconds < START_SECONDS + _LEAST_GRACE:
        return NetworkAnswer(late=True)
    header = {
        "sizes": network.sizes.tolist(),
        "coupled": network.coupled.tolist(),
        "room": network.room.tolist(),
        "below": below,
        "backtracks": None if backtracks is None else max(0, backtracks - 1),
    }
    numbers = np.concatenate([network.alone, network.tables, network.weights.ravel()])
    task = toulbar2_process.write_task(header, numbers.astype(np.int64).tobytes())
    stop = deadline - max(_LEAST_GRACE, _GRACE_SHARE * seconds)
    text, late, interrupted = _exchange(task, stop, deadline)
    try:
        answer = _checked(network, below, toulbar2_process.read_answer(text))
    except ValueError:  # a damaged answer claims nothing
        return NetworkAnswer(ended=True, late=late, interrupted=interrupted)
    complete, work = answer["complete"], answer["backtracks"] + int(answer["complete"])
    return NetworkAnswer(
        assignment=answer["assignment"],
        bound=answer["bound"],
        complete=complete,
        work=work if backtracks is None else min(work, backtracks),
        late=late and not complete,
        interrupted=interrupted,
    )


def _exchange(task: bytes, stop: float, deadline: float) -> tuple[str, bool, bool]:
    """Give the process its task; its answer, whether it was stopped, and whether Ctrl-C did that."""
    with _given(task) as source, subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", str(toulbar2_process.__file__)],
        stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only this process, which then stops the other
    ) as process:  # fmt: skip
        try:
            output = _output(process, stop)
            if output is not None:
                return output, False, False
            process.send_signal(_STOP)
            return _output(process, deadline) or "", True, False
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):  # the second one ends it at once
                process.send_signal(_STOP)
                return _output(process, min(deadline, time.perf_counter() + _LEAST_GRACE)) or "", True, True
            return "", True, True
        finally:
            process.kill()


def _given(task: bytes) -> IO[bytes]:
    """A nameless file with the task: of a pipe, what was not written when the first wait ended would be lost."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(task)
    file.seek(0)
    return file


def _output(process: subprocess.Popen[bytes], deadline: float) -> str | None:
    """All that a process writes until it ends; None if the deadline passes before."""
    while True:
        try:
            # Short waits: Ctrl-C that another thread received does not end a long one.
            return process.communicate(timeout=_POLL_SECONDS)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            if time.perf_counter() >= deadline:
                return None


def _checked(network: CostNetwork, below: int | None, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with its assignment as an array and its bound as a whole cost.

    Raises:
        ValueError: if it contradicts itself or the network.
    """
    complete, bound = answer.get("complete"), answer.get("bound")
    if not (isinstance(complete, bool) and isinstance(bound, float) and isinstance(answer.get("backtracks"), int)):
        raise ValueError("toulbar2's process did not say what it found")
    found, cost = answer.get("assignment"), below
    if found is not None:
        found = np.array(found)
        sizes = network.sizes
        if found.shape != sizes.shape or found.dtype != np.int64 or (found < 0).any() or (found >= sizes).any():
            raise ValueError("toulbar2's process answered with choices that do not exist")
        cost = network.cost(found)
        if not network.fits(found) or (below is not None and cost >= below):
            raise ValueError("toulbar2's process answered with an assignment that was not asked for")
    lower = math.floor(bound) if math.isfinite(bound) else None
    if complete:
        lower = cost
    elif lower is not None and cost is not None:
        lower = min(lower, cost)
    return {**answer, "assignment": found, "bound": lower}
