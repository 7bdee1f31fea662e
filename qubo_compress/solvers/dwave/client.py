"""Ocean's client with bounded requests, timed retries, and a shutdown that works whatever hangs.

A client starts sixteen threads and four pools, and its own ``close`` waits for every pending request. Here, abandoned
problems are cancelled first; then all connections are cut, so that the threads end by themselves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from qubo_compress.errors import RequestRejected, SolverUnavailable
from qubo_compress.solvers.dwave.token import Secrets, Token
from qubo_compress.solvers.dwave.transport import Transport, TransportFailed, origin_of

_logger = logging.getLogger(__name__)

_UPLOAD_PAUSES = (2.0, 4.0)
"""Seconds before each retry of an upload step, as in the client."""

_GRACE = 2.0
"""Seconds for the service to receive cancellations before all connections are cut."""

_JOINED = 60.0
"""Seconds to wait for the client's threads after the cut; only the closing thread waits."""


class _Bounded:
    """Mixin for a client class that sends every request through a transport."""

    transport: Transport
    secrets: Secrets
    upload_failure: BaseException | None = None
    """Why the last try of an upload step failed; None if none did."""

    def create_session(self) -> Any:
        """A session for one thread, guarded by the transport."""
        return self.transport.guard(super().create_session())  # type: ignore[misc]

    @property
    def solvers_session(self) -> Any:
        """The session for the list of solvers."""
        found = super().solvers_session  # type: ignore[misc]
        self.transport.guard(found.session)
        return found

    def _initiate_multipart_upload(self, session: Any, size: int) -> Any:
        return self._tried(super()._initiate_multipart_upload, session, size)  # type: ignore[misc]

    def _upload_multipart_part(self, session: Any, problem_id: str, **part: Any) -> Any:
        return self._tried(super()._upload_multipart_part, session, problem_id, **part)  # type: ignore[misc]

    def _combine_uploaded_parts(self, session: Any, problem_id: str, checksum: str) -> Any:
        return self._tried(super()._combine_uploaded_parts, session, problem_id, checksum)  # type: ignore[misc]

    def _failsafe_get_multipart_upload_status(self, session: Any, problem_id: str) -> Any:
        """Raise if the status is unavailable: the client would assume that nothing is uploaded, and start over."""
        try:
            return self._tried(super()._get_multipart_upload_status, session, problem_id)  # type: ignore[misc]
        except Exception:
            return {"status": "UNDEFINED", "parts": []}

    def _tried(self, step: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Run an upload step, and retry it after a pause if the failure may be temporary and time allows."""
        once = getattr(step, "__wrapped__", step)  # without the client's own pauses, which ignore time limits
        for pause in (*_UPLOAD_PAUSES, None):
            try:
                return once(*given, **named)
            except Exception as failure:
                self.upload_failure = clean = self.secrets.clean(failure)  # the client writes it to its log
                if pause is None or pause >= self.transport.left or _final(failure):
                    raise clean from clean.__cause__
            self.transport.pause(pause)
        raise AssertionError("the last try returns or raises")

    def end(self) -> None:
        """End all threads and connections, whatever is pending; cancellations are sent first, if that is quick."""
        ended = time.monotonic() + _GRACE
        with self._close_lock:  # type: ignore[attr-defined]
            if self._closed:  # type: ignore[has-type]
                return
            self._closed = True
        waiting = (self._submission_queue, self._cancel_queue)  # type: ignore[attr-defined]
        while any(queue.unfinished_tasks for queue in waiting) and time.monotonic() < ended:
            time.sleep(0.02)
        self.transport.cut()
        solvers = getattr(self, "_solvers_session", None)
        if solvers is not None:
            solvers.close()
        for queue, workers, last in self._workers():
            for _ in workers:
                queue.put(last)
        for pool in self._pools():
            pool.shutdown()
        joined = time.monotonic() + _JOINED
        for _, workers, _ in self._workers():
            for worker in workers:
                worker.join(max(0.0, joined - time.monotonic()))

    def _pools(self) -> Iterator[Any]:
        """The pools, ordered so that nobody is left waiting: the pool for parts drops its queue when told to end."""
        for work in ("upload_problem", "upload_part", "download_answer", "encode_problem"):
            yield getattr(self, f"_{work}_executor")

    def _workers(self) -> Iterator[tuple[Any, list[Any], Any]]:
        """Each queue, the threads that read it, and the item that tells one of them to end."""
        for work, last in (("submission", None), ("cancel", None), ("poll", (-1, None)), ("load", None)):
            yield getattr(self, f"_{work}_queue"), getattr(self, f"_{work}_workers"), last


def _final(failure: Exception) -> bool:
    """Whether a retry would fail in the same way: refused here, or refused by the service for good."""
    code = getattr(failure, "error_code", None)
    return isinstance(failure, TransportFailed) or (isinstance(code, int) and 400 <= code < 500 and code != 429)


@cache
def _bounded(client: type) -> type:
    return type(f"Bounded{client.__name__}", (_Bounded, client), {})


def connect(
    sampler: Any, arguments: dict[str, Any], token: Token | None, transport: Transport, secrets: Secrets
) -> None:
    """Do what the constructor of an Ocean sampler does, with a client whose requests are bounded.

    Args:
        sampler: an uninitialised object of a sampler's class; its ``client`` is set as soon as there is one.
        arguments: of the class, except the token.
        token: the API token; None to use Ocean's variables and files.
        transport: handles all requests.
        secrets: learns the token, and the password of a proxy.

    Raises:
        Exception: whatever the client raises.
    """
    from dwave.cloud.client import hybrid, qpu
    from dwave.system import DWaveSampler

    chip = isinstance(sampler, DWaveSampler)
    preferred = {"order_by": "-num_active_qubits"} if chip else dict(sampler.default_solver)
    config = _configuration(arguments, token, transport, secrets)
    # As in Ocean: uploads over keep-alive connections are sometimes reset.
    config = {**({} if chip else {"connection_close": True}), **config, "defaults": {"solver": preferred}}
    kind: Any = _bounded(qpu.Client if chip else hybrid.Client)
    client = kind.__new__(kind)
    client.transport, client.secrets = transport, secrets
    client.__init__(**config)
    sampler.client = client
    if chip:
        sampler.failover, sampler.retry_interval, sampler._solver_penalty = False, -1, {}
        sampler.solver = sampler._get_solver()
    else:
        sampler.solver = client.get_solver()
        _check_kind(sampler)


def _check_kind(sampler: Any) -> None:
    """Check that the named solver takes the models of the sampler."""
    wanted = sampler.default_solver["supported_problem_types__contains"]
    found = sampler.solver
    if sampler.properties.get("category") != "hybrid" or wanted not in found.supported_problem_types:
        raise TransportFailed(
            SolverUnavailable,
            f"the solver configured is of the wrong kind ({found.name} does not take {wanted} models)",
            "name another solver, or leave the name out so that the newest one of the right kind is used",
        )


def _configuration(
    arguments: dict[str, Any], token: Token | None, transport: Transport, secrets: Secrets
) -> dict[str, Any]:
    """A client's arguments: as given, then from Ocean's variables and files; checks the token, resolves the region.

    Raises:
        InvalidToken: for a malformed token, wherever it came from.
    """
    from dwave.cloud.config import load_config, validate_config_v1

    clear = {} if token is None else {"token": token.reveal()}
    config: dict[str, Any] = load_config(**arguments, **clear)
    config.pop("client", None)
    found = token if token is not None or not config.get("token") else Token(config["token"])
    secrets.add(found)
    if found is not None and found.stripped:
        _logger.warning("the API token had white space around it, which was removed")
    for name in ("proxy", "endpoint"):
        secrets.add(_password(config.get(name), name))
    validate_config_v1({**config, "token": None})  # before a fault in it could look like a fault of an answer
    if config.get("region") and not config.get("endpoint") and not config.get("leap_api_endpoint"):
        config["endpoint"] = _endpoint_of(config, transport)
    return {**config, "token": None if found is None else found.reveal()}


def _password(url: str | None, name: str) -> str | None:
    """The password in an address, or None.

    Raises:
        TransportFailed: when it is not an address; otherwise each of the client's threads would fail on it.
    """
    try:
        return None if url is None or not origin_of(url)[1] else urlsplit(url).password
    except ValueError as cause:
        raise TransportFailed(
            RequestRejected, f"the {name} is not a URL ({cause}), and nothing was sent", "give the whole one"
        ) from cause


def _endpoint_of(config: dict[str, Any], transport: Transport) -> str | None:
    """The address of a region, requested without the token, which that service does not need.

    None if the client knows it. The client itself would send the token along, and use another region if the address
    service fails.
    """
    from dwave.cloud import api
    from dwave.cloud.config import constants, validate_config_v1

    model = validate_config_v1({**config, "token": None})
    known = constants.DEFAULT_METADATA_API_ENDPOINT
    model.metadata_api_endpoint = model.metadata_api_endpoint or known
    if model.region == constants.DEFAULT_REGION and model.metadata_api_endpoint == known:
        return None
    with api.Regions.from_config(model) as regions:
        transport.guard(regions.session)
        places = {region.code: region.solver_api_endpoint for region in regions.list_regions()}
    if model.region not in places:
        raise TransportFailed(
            RequestRejected, f"there is no region {model.region!r}", f"name one of {', '.join(sorted(places))}"
        )
    return str(places[model.region])
