"""One submission through Amplify: in a separate process that ends on time, or by a client object of the user's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from qubo_compress.errors import (
    InvalidSolverOption,
    InvalidToken,
    QuotaExceeded,
    RemoteSolverError,
    RemoteTimeout,
    RequestRejected,
    ServiceFailed,
)
from qubo_compress.solvers.amplify.submission_process import submit
from qubo_compress.solvers.dwave.token import Secrets

_SCRIPT = str(Path(__file__).resolve().with_name("submission_process.py"))
_POLL_SECONDS = 0.05
_LONGEST_REASON = 300

_KINDS: tuple[tuple[tuple[str, ...], type[RemoteSolverError], str], ...] = (
    (("401", "403", "unauthorized", "forbidden", "authentication", "token"), InvalidToken, "copy the token again"),
    (("429", "quota", "too many"), QuotaExceeded, "wait, or see the service's own page for what is left"),
    (("connection", "resolve", "timed out", "timeout"), RemoteTimeout, "check url and proxy, or try again"),
    (("400", "404", "422", "bad request", "invalid"), RequestRejected, "check the client's name, url and parameters"),
)
"""What a failure's text holds, the error, and what to do; Amplify raises RuntimeError for everything."""


def submitted(task: dict[str, Any], client: Any, deadline: float, where: str, secrets: Secrets) -> dict[str, Any]:
    """The answer to a task; see :func:`~qubo_compress.solvers.amplify.submission_process.submit`.

    Args:
        task: with ``client``, the name of the client's class without "Client", and ``connection``, its attributes.
        client: an object to use in this process instead, or None.
        deadline: of ``time.perf_counter()``, at which the separate process is ended; a client object is not cut off.
        where: the solver and the client, for messages.
        secrets: are masked in messages.

    Raises:
        RemoteSolverError: its subclass says what went wrong.
        InvalidSolverOption: for a parameter that the client does not have.
    """
    if client is None:
        answer = _in_process(task, deadline, where)
    else:
        try:
            answer = submit(task, client)
        except Exception as cause:
            answer = {"failure": [type(cause).__name__, str(cause)]}
    if "failure" in answer:
        kind, text = answer["failure"]
        raise _translated(kind, secrets.mask(text), where)
    return answer


def _in_process(task: dict[str, Any], deadline: float, where: str) -> dict[str, Any]:
    command = [sys.executable, "-P", _SCRIPT]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    text = json.dumps(task)  # through a pipe: the token is in no argument, no variable and no file
    # In a thread without a time limit: after a timeout, `communicate` would not send what the pipe did not hold.
    with (
        ThreadPoolExecutor(1) as executor,
        subprocess.Popen(command, text=True, **pipes) as process,  # noqa: S603
    ):
        talk = executor.submit(process.communicate, text)
        try:
            while not wait([talk], timeout=_POLL_SECONDS).done:
                if time.perf_counter() >= deadline:
                    raise RemoteTimeout(
                        f"{where}: the service did not answer within the time limit; raise the time limit. A job "
                        "that it has accepted goes on there"
                    )
        finally:
            process.kill()
            wait([talk])
        text, _ = talk.result()
    if process.returncode != 0:
        raise ServiceFailed(f"{where}: the process that submits ended with code {process.returncode}; try again")
    answer: dict[str, Any] = json.loads(text)
    return answer


def _translated(kind: str, text: str, where: str) -> Exception:
    """The library's own error for a failure."""
    said = " ".join(text.split())[:_LONGEST_REASON]
    if kind == "AttributeError":
        return InvalidSolverOption(f"{where}: {said}; see Amplify's pages for the parameters of its clients")
    if kind in ("TypeError", "ValueError"):
        return InvalidSolverOption(f"{where} does not take the problem or a parameter ({said})")
    lowered = said.lower()
    for signs, error, advice in _KINDS:
        if any(sign in lowered for sign in signs):
            return error(f"{where}: the service does not do it ({said}); {advice}")
    return ServiceFailed(f"{where}: the service failed ({kind}: {said}); try again")
