"""What solvers read: embeddings kept on disk, certificates of bounds, and the answers of a service."""

from __future__ import annotations

import contextlib
import json
import random
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import dwave.graphs
import numpy as np

import qubo_compress as qc
from qubo_compress import errors
from qubo_compress._internal.checked_json import with_checksum
from qubo_compress._internal.reader import parsed_json, read_whole, refused_as
from qubo_compress.solvers.dwave.qpu_embedding import Cliques, EmbeddingCache, is_chains, joins
from qubo_compress.solvers.exact.certificates import CertificateNode, check_bound
from qubo_compress.solvers.exact.exact import Exact
from qubo_compress.testing.loopback_leap import LoopbackLeap
from qubo_compress.testing.loopback_leap.protocol import Request, Response
from tests.fuzz.damage import NUMBERS, damaged, random_edits
from tests.fuzz.form import Format, digest_of, hostile_value, replaced_within

# --- embeddings ----------------------------------------------------------------------------------

_CHIP, _SIZE = "a chip;graph_id=01", 5


@cache
def _graph() -> Any:
    return dwave.graphs.zephyr_graph(2, 4)


def _read_embeddings(path: Path) -> object:
    """As a device takes them: what cannot be used counts as refused, since it is searched again."""
    kept = EmbeddingCache(path.parent, _CHIP).get("clique")
    if not (is_chains(kept, _SIZE) and joins(_graph(), kept, None)):
        raise errors.CorruptArtifact(f"{path} holds no chains")
    return digest_of(kept)


def _crafted_embeddings(chance: random.Random, sample: bytes) -> bytes:
    values = json.loads(sample)
    values.pop("checksum")
    if chance.random() < 0.9:
        return _sealed(chance, values)
    changed = replaced_within(chance, values)
    return with_checksum(changed) if isinstance(changed, dict) else json.dumps(changed).encode()


def _sealed(chance: random.Random, values: dict[str, Any]) -> bytes:
    chains = [list(chain) for chain in values["entries"]["clique"]]
    chain = chance.choice(chains)
    chain[chance.randrange(len(chain))] = chance.choice((*NUMBERS, -1, True, chance.randrange(160), 1.5, "1", None))
    return with_checksum({**values, "entries": {"clique": chance.choice((chains, chains[1:], hostile_value(chance)))}})


def embeddings() -> Format:
    """Chains for a clique."""
    with tempfile.TemporaryDirectory() as folder:
        kept = EmbeddingCache(folder, _CHIP)
        kept.put("clique", Cliques(_graph()).chains(_SIZE))
        assert kept.path is not None
        name, sample = kept.path.name, kept.path.read_bytes()
    return Format("embeddings", (sample,), _read_embeddings, _crafted_embeddings, name_of_file=name)


# --- certificates --------------------------------------------------------------------------------


@cache
def _proved() -> tuple[qc.ChoiceProblem, qc.Solution]:
    problem = qc.ChoiceProblem.random("low-rank", groups=8, choices=5, seed=1)
    return problem, qc.solve(problem, Exact(certificate=True), time_limit=3600.0)


def _read_certificate(path: Path) -> object:
    """Nodes as the checker gets them; a bound that it confirms must be one."""
    problem, solution = _proved()
    with refused_as(path, "a certificate"):
        said = parsed_json(read_whole(path, "a certificate"))
        claimed = float(said["bound"])
        nodes = {
            int(number): CertificateNode(
                np.array(node["support"]), np.array(node["shares"]), np.array(node["price"]),
                {int(choice): child for choice, child in node["children"].items()},
            )
            for number, node in said["nodes"].items()
        }  # fmt: skip
    found = check_bound(problem, replace(solution, bound=claimed, details={"certificate": nodes}), most=1)
    if not found.verified:
        raise errors.CorruptArtifact(f"{path} proves nothing")
    assert claimed <= solution.energy + 1e-9, f"{claimed} was confirmed and the optimum is {solution.energy}"
    return "a bound"


def _crafted_certificate(chance: random.Random, sample: bytes) -> bytes:
    said = json.loads(sample)
    numbers = list(said["nodes"])
    for _ in range(chance.choice((1, 1, 2, 5))):
        node = said["nodes"][chance.choice(numbers)]
        part = chance.choice(("support", "shares", "price", "children", "children", "whole"))
        if part == "whole":
            said["nodes"][chance.choice(numbers)] = node
        elif part == "children" and node["children"]:
            known = list(node["children"])
            for choice in known if chance.random() < 0.5 else known[:1]:
                node["children"][choice] = chance.choice((*map(int, numbers), -1, 10**9))
        elif part == "children":
            node["children"] = {str(choice): int(chance.choice(numbers)) for choice in range(40)}
        else:
            values = node[part]
            strange = (0, -1, 0.5, 3.0, 1e300, float("inf"), float("nan"), *NUMBERS[:6])
            if values and chance.random() < 0.7:
                values[chance.randrange(len(values))] = chance.choice(strange)
            else:
                node[part] = chance.choice((values + values, values[1:], [], [values], ["a"]))
    if chance.random() < 0.5:
        said["bound"] += chance.choice((-1.0, -1e-9, 1e-9, 1e-3, 1.0, 1e300))
    return json.dumps(said).encode()


def certificates() -> Format:
    """A tree that proves a bound; it is never on disk, and here written as JSON."""
    _, solution = _proved()
    nodes = {
        number: {"support": n.support.tolist(), "shares": n.shares.tolist(), "price": n.price.tolist(),
                 "children": n.children}
        for number, n in solution.details["certificate"].items()
    }  # fmt: skip
    sample = json.dumps({"bound": solution.bound, "nodes": nodes}).encode()
    return Format("certificate", (sample,), _read_certificate, _crafted_certificate)


# --- services ------------------------------------------------------------------------------------

_IDENTIFIER = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ANY_IDENTIFIER = b"00000000-0000-4000-8000-000000000000"
_SERVICES = {"leap-bqm": 2.0, "leap-dqm": 6.0, "leap-nonlinear": 3.0}
"""Solver -> time limit; the service asks for 5 s of discrete models."""

_KINDS = ("list", "loads", "upload", "parts", "submit", "poll", "load", "download")
_ENOUGH = 600.0
_ANSWERS = (errors.RemoteSolverError, errors.NoFeasibleFound, errors.ProblemTooLarge, errors.TimeLimitTooShort)


@cache
def _asked() -> qc.ChoiceProblem:
    return qc.ChoiceProblem.random("low-rank", groups=3, choices=2, seed=0)


@contextlib.contextmanager
def _answering(server: LoopbackLeap, answer: Any) -> Iterator[None]:
    """Every response goes through ``answer``: (kind, request, response) -> response."""
    api = server._running().api
    inner = api.respond

    def respond(request: Request) -> Response:
        kind = "loads" if "filter=none" in request.target else api.kind(request)
        return answer("parts" if request.path.endswith("/status") else kind, request, inner(request))

    api.respond = respond  # type: ignore[method-assign]
    try:
        with server.environment():
            yield
    finally:
        api.respond = inner  # type: ignore[method-assign]


def _solve(server: LoopbackLeap, solver: str, seconds: float) -> None:
    problem = _asked()
    found = qc.solve(problem, solver, time_limit=seconds, reserve=0.3, **server.client_options)
    assert (problem.totals(found.assignment) <= problem.limits).all(), "an answer beyond the budgets"
    assert found.energy == problem.energy(found.assignment), "an answer of another energy"


def _recorded() -> tuple[bytes, ...]:
    bodies: dict[bytes, None] = {}
    with LoopbackLeap(chips=(), eager=True) as server:
        for solver in _SERVICES:

            def record(kind: str | None, request: Request, response: Response, solver: str = solver) -> Response:
                if kind in _KINDS and response.status == 200 and len(response.body) > 2:
                    head = f"{solver} {kind}\n".encode()
                    bodies[head + _IDENTIFIER.sub(_ANY_IDENTIFIER, response.body)] = None
                return response

            with _answering(server, record):
                _solve(server, solver, _ENOUGH)
    return tuple(bodies)


_RUNNING: list[LoopbackLeap] = []


def stop_services() -> None:
    """End the server that answers, if there is one: an interpreter waits for its threads."""
    while _RUNNING:
        _RUNNING.pop().close()


def _read_answer(path: Path) -> object:
    """Solve while the service answers every request of one kind with what is in the file."""
    head, _, body = path.read_bytes().partition(b"\n")
    solver, _, asked = head.decode(errors="replace").partition(" ")
    if solver not in _SERVICES or asked not in _KINDS:
        raise errors.ServiceFailed("no answer of a service")  # damage to what only this fuzzer writes
    if not _RUNNING:
        _RUNNING.append(LoopbackLeap(chips=(), eager=True))
        _RUNNING[0].start()

    def answer(kind: str | None, request: Request, response: Response) -> Response:
        if kind != asked or response.status != 200 or len(response.body) <= 2:
            return response
        known = _IDENTIFIER.search(request.target.encode()) or _IDENTIFIER.search(response.body)
        return replace(response, body=body.replace(_ANY_IDENTIFIER, known.group() if known else b""))

    with _answering(_RUNNING[0], answer):
        _solve(_RUNNING[0], solver, _SERVICES[solver])
    return "solved"


def _crafted_answer(chance: random.Random, sample: bytes) -> bytes:
    head, _, body = sample.partition(b"\n")
    try:
        body = json.dumps(replaced_within(chance, json.loads(body))).encode()
    except ValueError:
        body = damaged(body, random_edits(chance), sample)
    return head + b"\n" + body


def services() -> Format:
    """Bodies of answers, behind a line that says to what."""
    return Format(
        "service answer", _recorded(), _read_answer, _crafted_answer,
        checked=False, refusals=_ANSWERS, every=50, named=False, read_as="solved",
    )  # fmt: skip
