"""The behaviour of each call of the solver API."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qubo_compress.testing.loopback_leap.faults import MESSAGES, Fault, Faults
from qubo_compress.testing.loopback_leap.jobs import Jobs, LeapJob
from qubo_compress.testing.loopback_leap.protocol import (
    BASE_PATH,
    BadRequest,
    Request,
    Response,
    error_response,
    filtered,
    json_response,
)
from qubo_compress.testing.loopback_leap.solvers import Offered
from qubo_compress.testing.loopback_leap.uploads import UploadRefused, Uploads

_LONGEST_POLL = 60.0

Call = Callable[..., Response]


class Api:
    """Answers requests.

    Args:
        token: the only accepted one.
        solvers: offered solvers by name.
        jobs: receives submitted problems.
        faults: applied before anything else.
        closing: set when the server closes; ends delays and endless answers.
    """

    def __init__(
        self, token: str, solvers: Mapping[str, Offered], jobs: Jobs, faults: Faults, closing: threading.Event
    ) -> None:
        self._token, self._solvers, self._jobs = token, solvers, jobs
        self._faults, self.closing = faults, closing
        self._uploads = Uploads()
        self._routes: list[tuple[str, str, str, Call]] = [
            ("GET", r"solvers/remote/?", "list", self._list_solvers),
            ("GET", r"solvers/remote/([^/]+)/?", "list", self._get_solver),
            ("GET", r"regions/?", "regions", self._regions),
            ("POST", r"problems/?", "submit", self._submit),
            ("GET", r"problems/?", "poll", self._poll),
            ("DELETE", r"problems/?", "cancel", self._cancel_many),
            ("GET", r"problems/([^/]+)/?", "load", self._load),
            ("DELETE", r"problems/([^/]+)/?", "cancel", self._cancel_one),
            ("GET", r"problems/([^/]+)/answer/data/?", "download", self._download),
            ("POST", r"bqm/multipart/?", "upload", self._start_upload),
            ("GET", r"bqm/multipart/([^/]+)/status/?", "upload", self._upload_status),
            ("PUT", r"bqm/multipart/([^/]+)/part/(\d+)/?", "upload", self._upload_part),
            ("POST", r"bqm/multipart/([^/]+)/combine/?", "upload", self._combine_upload),
        ]

    def kind(self, request: Request) -> str | None:
        """Kind of a request, as faults know it; None for calls that do not exist."""
        found = self._route(request)
        return None if found is None else found[0]

    def respond(self, request: Request) -> Response:
        """The response to a request, faults included."""
        found = self._route(request)
        if found is None:
            return error_response(404, f"there is no {request.method} {request.target}")
        kind, call, values = found
        fault = self._faults.take(kind) or Fault()
        if fault.delay:
            self.closing.wait(fault.delay)
        answer = self._answer(request, call, values, fault)
        headers = {} if fault.deprecation is None else {"X-Deprecation": fault.deprecation}
        return replace(answer, drop=fault.drop, drip=fault.drip, headers={**answer.headers, **headers})

    def _answer(self, request: Request, call: Call, values: tuple[str, ...], fault: Fault) -> Response:
        if fault.status is not None:
            message = fault.message or MESSAGES.get(fault.status, "Injected fault")
            return error_response(fault.status, message, fault.retry_after, fault.location)
        if call != self._regions and request.headers.get("X-Auth-Token") != self._token:
            return error_response(401, MESSAGES[401])
        try:
            options = {"item_error": fault.item_error} if fault.item_error is not None else {}
            response = call(request, *values, **options)
        except (BadRequest, UploadRefused) as cause:
            return error_response(cause.status, str(cause))
        return response if fault.body is None else replace(response, body=fault.body)

    def _route(self, request: Request) -> tuple[str, Call, tuple[str, ...]] | None:
        for method, pattern, kind, call in self._routes:
            match = re.fullmatch(pattern, request.path)
            if method == request.method and match is not None:
                return kind, call, match.groups()
        return None

    def _regions(self, request: Request) -> Response:
        """Of the metadata API, which anybody may ask: this server is the only region."""
        here = f"http://{request.headers['Host']}{BASE_PATH}"
        body = json.dumps([{"code": "loopback", "name": "This machine", "endpoint": here}]).encode()
        return Response(body, "application/vnd.dwave.metadata.regions+json; version=1.0.0")

    def _list_solvers(self, request: Request) -> Response:
        rule = request.query.get("filter", "")
        records = [filtered(solver.record, rule) for solver in self._solvers.values()]
        return json_response(records, "solver-definition-list")

    def _get_solver(self, request: Request, name: str) -> Response:
        if name not in self._solvers:
            raise BadRequest(f"there is no solver {name!r}; there are {', '.join(self._solvers)}", 404)
        return json_response(filtered(self._solvers[name].record, request.query.get("filter", "")), "solver-definition")

    def _submit(self, request: Request, item_error: tuple[int, str] | None = None) -> Response:
        items = request.json()
        many = isinstance(items, list)
        answers = []
        for item in items if many else [items]:
            try:
                if item_error is not None:
                    raise BadRequest(item_error[1], item_error[0])
                answers.append(self._submit_one(item).message())
            except (BadRequest, UploadRefused) as cause:
                answers.append({"error_code": cause.status, "error_msg": str(cause)})
        return json_response(answers if many else answers[0], "problems")

    def _submit_one(self, item: Any) -> LeapJob:
        try:
            identity, kind, data = item["solver"], item["type"], item["data"]
            params, label = dict(item.get("params") or {}), item.get("label")
            name = identity["name"] if isinstance(identity, dict) else str(identity)
        except (KeyError, TypeError, AttributeError) as cause:
            raise BadRequest(f"a problem has solver, data, type and params: {cause!r}") from cause
        if name not in self._solvers:
            raise BadRequest(f"there is no solver {name!r}", 404)
        solver = self._solvers[name]
        known = solver.record["identity"].get("version")
        asked = identity.get("version") if isinstance(identity, dict) else None
        if asked and known and asked.get("graph_id") != known["graph_id"]:
            raise BadRequest(f"the working graph of {name} is {known['graph_id']}, not {asked.get('graph_id')}", 404)
        if kind not in solver.record["properties"]["supported_problem_types"]:
            raise BadRequest(f"{name} does not take problems of type {kind!r}")
        if isinstance(data, dict) and data.get("format") == "ref":
            data = self._uploads.data(str(data.get("data")))
        elif solver.record["properties"]["category"] != "qpu":
            raise BadRequest("hybrid problems are uploaded first and submitted with format 'ref'")
        return self._jobs.submit(solver, kind, data, params, label)

    def _poll(self, request: Request) -> Response:
        wanted = request.query.get("id")
        if wanted is None:
            return json_response([job.message() for job in self._jobs.all()], "problems")
        jobs = [self._job(identifier) for identifier in wanted.split(",")]
        try:
            timeout = float(request.query.get("timeout", 0))
        except ValueError as cause:
            raise BadRequest(f"timeout is a number of seconds; got {request.query['timeout']!r}") from cause
        self._jobs.wait_for_any(jobs, min(max(timeout, 0.0), _LONGEST_POLL))
        return json_response([job.message() for job in jobs], "problems")

    def _load(self, request: Request, identifier: str) -> Response:
        return json_response(self._job(identifier).message(with_answer=True), "problem")

    def _download(self, request: Request, identifier: str) -> Response:
        answer = self._job(identifier).answer
        if answer is None or answer.data is None:
            raise BadRequest(f"problem {identifier} has no answer data", 404)
        return Response(answer.data, "application/octet-stream")

    def _cancel_many(self, request: Request, item_error: tuple[int, str] | None = None) -> Response:
        answers = []
        for identifier in request.json():
            try:
                answers.append(self._cancelled(str(identifier), item_error))
            except BadRequest as cause:
                answers.append({"error_code": cause.status, "error_msg": str(cause)})
        return json_response(answers, "problems")

    def _cancel_one(self, request: Request, identifier: str, item_error: tuple[int, str] | None = None) -> Response:
        return json_response(self._cancelled(identifier, item_error), "problem")

    def _cancelled(self, identifier: str, item_error: tuple[int, str] | None) -> dict[str, Any]:
        if item_error is not None:
            raise BadRequest(item_error[1], item_error[0])
        job = self._job(identifier)
        self._jobs.cancel(job)
        return job.message()

    def _job(self, identifier: str) -> LeapJob:
        job = self._jobs.get(identifier)
        if job is None:
            raise BadRequest(f"there is no problem {identifier!r}", 404)
        return job

    def _start_upload(self, request: Request) -> Response:
        body = request.json()
        return json_response({"id": self._uploads.start(body.get("size") if isinstance(body, dict) else None)})

    def _upload_status(self, request: Request, identifier: str) -> Response:
        return json_response(self._uploads.status(identifier))

    def _upload_part(self, request: Request, identifier: str, number: str) -> Response:
        self._uploads.put(identifier, int(number), request.content(), request.headers.get("Content-MD5"))
        return json_response({})

    def _combine_upload(self, request: Request, identifier: str) -> Response:
        body = request.json()
        self._uploads.combine(identifier, body.get("checksum") if isinstance(body, dict) else None)
        return json_response({})
