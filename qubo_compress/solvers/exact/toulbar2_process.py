"""A process in which toulbar2 solves one cost function network.

The task is read from standard input and the answer is written to standard output. It runs as a script and imports
nothing from the library, not even numpy, so that it starts within a tenth of a second. The signal
SIGVTALRM makes toulbar2 stop and report the best assignment and bound that it has.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from typing import Any

_NO_LIMIT = 2**31 - 1
"""Seconds: the timer only has to be set once for its signal to be handled."""

_ROUNDING = 1e-3
"""Deducted before a fractional bound of a budget is rounded up to a whole cost. toulbar2's default, 1e-9, is less than
the rounding error of sums of large costs."""


def read_task(data: bytes) -> tuple[dict[str, Any], array[int]]:
    """The header and the numbers of :func:`write_task`."""
    head, _, body = data.partition(b"\n")
    numbers = array("q")
    numbers.frombytes(body)
    return json.loads(head), numbers


def write_task(header: dict[str, Any], numbers: bytes) -> bytes:
    """A line of JSON, then 64-bit integers."""
    return json.dumps(header).encode() + b"\n" + numbers


def write_answer(answer: dict[str, Any]) -> str:
    """A line of JSON behind its checksum."""
    text = json.dumps(answer)
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}\n"


def read_answer(line: str) -> dict[str, Any]:
    """The answer from :func:`write_answer`.

    Raises:
        ValueError: when it is incomplete or was altered.
    """
    digest, _, text = line.strip().partition(" ")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("the answer of toulbar2's process is damaged: its checksum does not match")
    answer = json.loads(text)
    if not isinstance(answer, dict):
        raise ValueError("the answer of toulbar2's process is not an object")
    return answer


def _posted(network: Any, task: dict[str, Any], numbers: array[int]) -> None:
    """Add groups, costs and budgets."""
    sizes = task["sizes"]
    place = 0
    for group, size in enumerate(sizes):
        network.AddVariable(f"group{group}", list(range(size)))
        network.AddFunction([group], list(map(float, numbers[place : place + size])))
        place += size
    for first, second in task["coupled"]:
        entries = sizes[first] * sizes[second]
        network.AddFunction([first, second], list(map(float, numbers[place : place + entries])))
        place += entries
    for room in task["room"]:
        # "at least": weights and room change their signs. AddGeneralizedLinearConstraint takes time in the square.
        words = [str(-room)]
        for size in sizes:
            words.append(str(size))
            for choice in range(size):
                words += [str(choice), str(-numbers[place + choice])]
            place += size
        network.CFN.wcsp.postKnapsackConstraint(list(range(len(sizes))), " ".join(words), kp=True)


def solve(task: dict[str, Any], numbers: array[int]) -> dict[str, Any]:
    """The best assignment below the given cost, if any, and a lower bound on all costs."""
    from pytoulbar2 import CFN

    network = CFN(ubinit=task["below"], resolution=0, seed=1, verbose=-1)
    network.Option.epsilon = _ROUNDING
    if task["backtracks"] is not None:
        network.Option.backtrackLimit = task["backtracks"]
    try:
        _posted(network, task, numbers)
        found = network.Solve(timeLimit=_NO_LIMIT)
    except network.Contradiction:
        return {"assignment": None, "bound": 0.0, "complete": True, "nodes": 0, "backtracks": 0}
    return {
        "assignment": None if found is None else [int(choice) for choice in found[0]],
        "bound": float(network.GetDDualBound()),
        "complete": not network.Option.limited,
        "nodes": int(network.GetNbNodes()),
        "backtracks": int(network.GetNbBacktracks()),
    }


def main() -> None:
    """Solve the task on standard input; write the answer to standard output."""
    target = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # toulbar2 prints
    task, numbers = read_task(sys.stdin.buffer.read())
    target.write(write_answer(solve(task, numbers)))
    target.flush()


if __name__ == "__main__":
    main()
