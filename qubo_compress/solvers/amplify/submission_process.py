"""A process that submits one problem by Amplify: a task on its standard input, the answer on its standard output.

Amplify holds Python's lock while it waits for a service, so only the end of a process keeps a time limit. It runs as a
script and imports nothing from the library, which would only take time.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

_LIMITS = ("time_limit", "time_limit_ms", "time_limit_sec", "timeout")
"""How clients call the time limit of their service; at most one of them is there."""


def submit(task: dict[str, Any], client: Any) -> dict[str, Any]:
    """Submit a task by a client, and return the values of its bits.

    Args:
        task: ``bits`` (their number), ``linear``, ``rows``, ``columns``, ``values`` (the couplings, each once),
            ``constant``; ``groups`` (begin, end and weight of each), ``costs`` and ``limits`` of budgets; ``seconds``,
            ``parameters`` of the client, ``dry_run``.
        client: of Amplify, or one with the same interface.
    """
    import amplify

    model, bits = _model(amplify, task)
    _set(client.parameters, task["seconds"], task["parameters"])
    client = _Still(client) if task["dry_run"] else client
    result = amplify.solve(model, client, dry_run=task["dry_run"], filter_solution=False)
    return {
        "samples": [[int(value > 0.5) for value in bits.evaluate(one.values)] for one in result.solutions],
        "bits_sent": int(result.intermediate.num_variables),
        "execution": result.execution_time.total_seconds(),
        "response": result.response_time.total_seconds(),
        "total": result.total_time.total_seconds(),
    }


class _Still:
    """Takes what a client takes and sends nothing: some clients greet their service in a dry run, too."""

    version = ""

    def __init__(self, client: Any) -> None:
        self.acceptable_degrees, self.parameters = client.acceptable_degrees, client.parameters

    def solve(self, objective: Any, constraints: Any, dry_run: bool = False) -> None:
        """Only called for a dry run, which has no answer."""


def _model(amplify: Any, task: dict[str, Any]) -> tuple[Any, Any]:
    """The model and its bits."""
    matrix = amplify.VariableGenerator().matrix("Binary", task["bits"])
    matrix.linear[:] = task["linear"]
    for row, column, value in zip(task["rows"], task["columns"], task["values"], strict=True):
        matrix.quadratic[min(row, column), max(row, column)] = value
    matrix.constant = task["constant"]
    bits = matrix.variable_array
    constraints = amplify.ConstraintList()
    for first, last, weight in task["groups"]:
        rule = amplify.one_hot(bits[first:last])
        rule.weight = weight
        constraints += rule
    for costs, limit in zip(task["costs"], task["limits"], strict=True):
        constraints += amplify.less_equal(amplify.dot(bits, _array(costs)), limit)
    return (amplify.Model(matrix, constraints) if len(constraints) else amplify.Model(matrix)), bits


def _array(values: list[int]) -> Any:
    import numpy as np

    return np.array(values, dtype=np.float64)


def _set(parameters: Any, seconds: float, given: dict[str, Any]) -> None:
    """Set the service's time limit, if it has one, and what the user gave."""
    for name in _LIMITS:
        if hasattr(type(parameters), name) and name not in given:
            setattr(parameters, name, datetime.timedelta(seconds=seconds))
    for name, value in given.items():
        if not hasattr(parameters, name):
            raise AttributeError(f"the client has no parameter {name!r}")
        setattr(parameters, name, value)


def _main() -> None:
    task = json.load(sys.stdin)
    try:
        import amplify

        client = getattr(amplify, task["client"] + "Client")()
        for name, value in task["connection"].items():
            setattr(client, name, value)
        answer = submit(task, client)
    except BaseException as failure:
        answer = {"failure": [type(failure).__name__, str(failure)]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
