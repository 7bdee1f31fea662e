"""The amplify solver up to the submission: what is sent, what becomes of answers, and what of failures. No network."""

from __future__ import annotations

import http.server
import itertools
import json
import threading
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import (
    DryRun,
    InvalidSolverOption,
    InvalidToken,
    MissingToken,
    ProblemTooLarge,
    RemoteTimeout,
    ServiceFailed,
)
from qubo_compress.solvers.amplify.amplify import CLIENTS, Amplify, takes_budgets
from qubo_compress.testing.solvers import brute_force

amplify = pytest.importorskip("amplify")

PROBLEM = ChoiceProblem.random(kind="dense", groups=3, choices=3, seed=4, budgets=2)


class Parameters:
    """Those of a client of ours."""

    def __init__(self):
        self.sweeps = 1

    @property
    def time_limit(self):
        return self.asked

    @time_limit.setter
    def time_limit(self, value):
        self.asked = value


class Answer:
    def __init__(self, rows):
        self._solutions = [(row, timedelta(seconds=1)) for row in rows]
        self._response_time = self._execution_time = timedelta(seconds=2)


class Enumerator:
    """A client of Amplify's protocol that tries every bit pattern and keeps what it was sent."""

    version = "1"

    def __init__(self, inequalities, *, best=True, failure=None):
        native = {"inequality_constraints": {"Binary": "Linear"}, "equality_constraints": {"Binary": "Linear"}}
        self.acceptable_degrees = amplify.AcceptableDegrees(
            objective={"Binary": "Quadratic"}, **(native if inequalities else {})
        )
        self.parameters, self.sent, self.best, self.failure = Parameters(), [], best, failure

    def solve(self, objective, constraints, dry_run=False):
        terms = objective.as_dict()
        rules = [rule.conditional for rule in constraints or ()]
        self.sent.append((terms, rules))
        if self.failure is not None:
            raise self.failure
        if dry_run:
            return None
        bits = 1 + max(i for part in [terms, *(rule[0].as_dict() for rule in rules)] for ids in part for i in ids)

        def total(part, row):
            return sum(value * np.prod([row[i] for i in ids]) for ids, value in part.items())

        def meets(rule, row):
            found = total(rule[0].as_dict(), row)
            return found == rule[2] if rule[1] == "EQ" else found <= rule[2]

        rows = [row for row in itertools.product((0.0, 1.0), repeat=bits) if all(meets(rule, row) for rule in rules)]
        rows.sort(key=lambda row: total(terms, row), reverse=not self.best)
        return Answer([list(row) for row in rows[:3]])


def test_groups_and_budgets_are_sent_as_constraints():
    client = Enumerator(inequalities=True)
    solution = solve(PROBLEM, "amplify", client=client, time_limit=60.0, parameters={"sweeps": 7})
    terms, rules = client.sent[0]
    kinds = [rule[1] for rule in rules]
    assert kinds.count("EQ") == 3 and kinds.count("LE") == 2 and len(client.sent) == 1
    weights = [rule[0].as_dict() for rule in rules if rule[1] == "LE"]
    assert weights[1] == {(v,): float(cost) for v, cost in enumerate(PROBLEM.costs[1].tolist()) if cost}
    # What is sent is the energy without the constant, and so the optimum that comes back is the problem's.
    assert {ids: value for ids, value in terms.items() if len(ids) == 1} == pytest.approx(
        {(v,): value for v, value in enumerate(PROBLEM.linear.tolist()) if value}
    )
    assert solution.energy == pytest.approx(brute_force(PROBLEM)[0])
    assert solution.bound is None and solution.status == "feasible"
    assert client.parameters.sweeps == 7 and 1.0 <= client.parameters.asked.total_seconds() <= 60.0
    assert solution.details["client"] == "Enumerator" and solution.details["samples"] == 3
    assert solution.details["feasible_share"] == 1.0 and not solution.details["priced"]


def test_clients_without_inequalities_get_prices_in_domain_walls():
    client = Enumerator(inequalities=False)
    solution = solve(PROBLEM, "amplify", client=client, time_limit=60.0, submissions=3)
    assert all(rules == [] for _, rules in client.sent) and len(client.sent) == 3
    assert max(i for ids in client.sent[0][0] for i in ids) == PROBLEM.num_choices - PROBLEM.num_groups - 1
    assert PROBLEM.is_feasible(solution.assignment) and solution.details["priced"]
    assert solution.energy <= brute_force(PROBLEM)[0] + 0.5


def test_answers_that_do_not_fit_are_repaired_here():
    client = Enumerator(inequalities=True, best=False)
    client.solve = lambda objective, constraints, dry_run=False: Answer([[1.0, 0.0, 0.0] * 3])
    tight = PROBLEM.with_limits(PROBLEM.smallest_totals() * 3 // 2)
    solution = solve(tight, "amplify", client=client, time_limit=60.0)
    assert tight.is_feasible(solution.assignment)
    assert any("repaired and filled on this machine" in note for note in solution.notes)


def test_nothing_is_sent_where_nothing_is_chosen():
    client = Enumerator(inequalities=True)
    single = ChoiceProblem(linear=[1.0, 2.0], group_offsets=[0, 1, 2], costs=np.zeros((0, 2), int), limits=[])
    assert solve(single, "amplify", client=client).energy == 3.0 and client.sent == []


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (RuntimeError("401: Unauthorized, token SECRET-0123456789"), InvalidToken),
        (RuntimeError("500: Internal Server Error"), ServiceFailed),
        (RuntimeError("maximum retries exceeded: Connection failed"), RemoteTimeout),
        (ValueError("no such degree"), InvalidSolverOption),
    ],
)
def test_failures_are_ours_and_hold_no_token(failure, error):
    client = Enumerator(inequalities=True, failure=failure)
    client.token = "SECRET-0123456789"
    with pytest.raises(error, match=r"amplify \(Enumerator\)") as raised:
        solve(PROBLEM, "amplify", client=client)
    assert client.token not in str(raised.value)


def test_options_are_checked_before_work():
    with pytest.raises(InvalidSolverOption, match="'FujitsuDA5' is not known; did you mean 'FujitsuDA4'"):
        Amplify(client="FujitsuDA5")
    with pytest.raises(InvalidSolverOption, match="has its own token"):
        Amplify(client=Enumerator(True), token="x")
    with pytest.raises(InvalidSolverOption, match="submissions must be at least 1"):
        Amplify(submissions=0)
    with pytest.raises(InvalidSolverOption, match="reserve must be"):
        Amplify(reserve=-1.0)
    with pytest.raises(InvalidToken, match="white space at place 4"):
        Amplify(token="two words")
    with pytest.raises(MissingToken, match="FujitsuDA4 needs an API token, and nothing was sent"):
        solve(PROBLEM, "amplify", client="FujitsuDA4")
    with pytest.raises(InvalidSolverOption, match="no parameter 'sweepz'"):
        solve(PROBLEM, "amplify", client=Enumerator(True), parameters={"sweepz": 1})
    large = ChoiceProblem.random(kind="separable", groups=600, choices=8, seed=0)
    with pytest.raises(ProblemTooLarge, match="at most 4,096 bits and this problem has 4,800"):
        solve(large, "amplify", client=Enumerator(True))
    assert "SECRET" not in repr(Amplify(token="SECRET-0123456789", proxy="http://u:SECRET@x"))


def test_the_list_of_clients_is_that_of_amplify():
    for name, budgets in CLIENTS.items():
        assert takes_budgets(amplify, getattr(amplify, f"{name}Client")()) == budgets, name


@pytest.mark.parametrize(("client", "sent"), [("FujitsuDA4", 9), ("AmplifyAE", 9), ("ToshibaSQBM2", 6)])
def test_a_dry_run_ends_before_the_submission(client, sent):
    with pytest.raises(DryRun) as raised:
        solve(PROBLEM, "amplify", client=client, dry_run=True, time_limit=120.0)
    preview = raised.value.preview
    assert preview.client == client
    assert preview.bits == preview.bits_sent == sent
    assert preview.priced == (client == "ToshibaSQBM2") and preview.constraints == (0 if preview.priced else 5)


@contextmanager
def service(status):
    """An address that accepts greetings and answers every submission with a status."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append((self.command, self.path, dict(self.headers), body))
            if status is None and self.command == "POST":
                stop.wait(60.0)
            text = json.dumps({"message": f"never heard of {self.headers.get('Authorization')}"}).encode()
            self.send_response(200 if self.command == "GET" else status or 500)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    stop = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            stop.set()
            server.shutdown()
            thread.join()


def test_a_submission_reaches_the_address_given_with_the_token_in_its_header_only():
    with service(401) as (url, seen), pytest.raises(InvalidToken, match="401") as raised:
        solve(PROBLEM, "amplify", client="Hitachi", url=url, token="SECRET-0123456789", time_limit=120.0)
    posts = [(headers, body) for command, _, headers, body in seen if command == "POST"]
    assert posts and posts[0][0]["Authorization"] == "Bearer SECRET-0123456789"
    assert json.loads(posts[0][1])["model"] and b"SECRET" not in posts[0][1]
    assert "SECRET" not in str(raised.value)


def test_the_time_limit_ends_a_submission_that_is_never_answered():
    with service(None) as (url, seen), pytest.raises(RemoteTimeout, match="goes on there"):
        solve(PROBLEM, "amplify", client="Hitachi", url=url, token="SECRET-0123456789", time_limit=5.0)
    assert [command for command, *_ in seen] == ["POST"]
