"""Translation of the Ocean client's exceptions to the library's own: what happened, where, and what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qubo_compress.errors import (
    InvalidToken,
    MissingToken,
    QuboCompressError,
    QuotaExceeded,
    RemoteCancelled,
    RemoteSolverError,
    RemoteTimeout,
    RequestRejected,
    ServiceFailed,
    SolverUnavailable,
    UploadFailed,
)
from qubo_compress.solvers.dwave.token import Secrets
from qubo_compress.solvers.dwave.transport import TransportFailed

_QUOTA_WORDS = re.compile(r"insufficient remaining|quota|limits? exceeded|too many requests", re.IGNORECASE)
_INVALID_WORDS = re.compile(
    r"invalid|not valid|unknown parameter|unsupported|not supported|malformed|must be|out of range|exceeds the maximum",
    re.IGNORECASE,
)
_LONGEST = 300


@contextmanager
def translated(where: str, secrets: Secrets | None = None) -> Iterator[None]:
    """Turn every failure of the client in this block into a subclass of :class:`RemoteSolverError`.

    Errors of this library and ``KeyboardInterrupt`` pass through unchanged.

    Args:
        where: the solver and the service, as messages name them.
        secrets: removed from the message, and from the client's exceptions behind it.

    Raises:
        RemoteSolverError: the subclass that fits, with the client's exception as its cause.

    Example:
        >>> with translated("leap-cqm"):  # doctest: +ELLIPSIS
        ...     raise ValueError("API token not defined")
        Traceback (most recent call last):
        ...
        qubo_compress.errors.MissingToken: leap-cqm: no API token is configured, and nothing was sent; ...
    """
    try:
        yield
    except QuboCompressError:
        raise
    except Exception as cause:
        secrets = secrets or Secrets()
        translation = translate(cause, where, secrets)
        _release(cause)
        clean = secrets.clean(cause)
        try:
            raise translation from clean
        finally:
            translation.__context__ = clean  # Python has set the unmasked exception


@contextmanager
def described(where: str, secrets: Secrets) -> Iterator[None]:
    """For a block that computes with a solver's properties: missing or malformed ones are the service's fault.

    Args:
        where: the solver and the service, for the message.
        secrets: removed from the message.

    Raises:
        ServiceFailed: when a property is missing or not what it should be.
    """
    try:
        yield
    except QuboCompressError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as cause:
        said = _short(secrets.mask(f"{type(cause).__name__}: {cause}"))
        raise ServiceFailed(
            f"{where}: the service describes the solver in a way that cannot be used ({said}), and nothing was "
            "submitted; name another solver, or report it to the service"
        ) from cause


def _release(cause: BaseException) -> None:
    """Release the connections that exceptions hold, by their response or in the locals of their frames.

    Closing a session only drops its pools: each stays open while one of its responses is alive.
    """
    for error in _chain(cause):
        response: Any = getattr(error, "response", None)
        if getattr(response, "raw", None) is not None:  # a cached response has no connection
            response.close()
        traceback.clear_frames(error.__traceback__)


def translate(cause: BaseException, where: str, secrets: Secrets | None = None) -> RemoteSolverError:
    """The library's exception for one from the client; programming errors become :class:`ServiceFailed`.

    Args:
        cause: what the client raised.
        where: the solver and the service, as the message names them.
        secrets: removed from the message.
    """
    secrets = secrets or Secrets()
    kind, text, advice = _kind(list(_chain(cause)))
    if kind is InvalidToken and secrets.stripped:
        text += " (sent without the white space around it)"
    return kind(secrets.mask(f"{where}: ") + f"{_short(secrets.mask(text))}; {secrets.mask(advice)}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _kind(chain: list[BaseException]) -> tuple[type[RemoteSolverError], str, str]:
    from dwave.cloud import exceptions as cloud

    upload = isinstance(chain[0], cloud.ProblemUploadError)
    for error in chain:
        for rule in (_transport, _configuration, _cloud, _status, _network):
            found = rule(error)
            if found is not None:
                return _while_uploading(*found) if upload else found
    text = f"the client failed with {type(chain[0]).__name__}: {chain[0]}"
    unknown = ServiceFailed, text, "try again, and report it if it persists"
    return _while_uploading(*unknown) if upload else unknown


def _while_uploading(kind: type[RemoteSolverError], text: str, advice: str) -> tuple[type[RemoteSolverError], str, str]:
    """Before the submission, the service's faults become :class:`UploadFailed`."""
    if issubclass(kind, (ServiceFailed, RemoteTimeout)):
        kind, advice = UploadFailed, "nothing was submitted; try again later"
    return kind, f"uploading the problem failed: {text}", advice


_Rule = tuple[type[RemoteSolverError], str, str] | None


def _transport(error: BaseException) -> _Rule:
    return (error.kind, error.said, error.advice) if isinstance(error, TransportFailed) else None


def _configuration(error: BaseException) -> _Rule:
    from dwave.cloud.config.exceptions import ConfigFileError
    from pydantic import ValidationError

    text = str(error)
    if isinstance(error, ConfigFileError):
        advice = "correct the path or the file (see `dwave config inspect`), or give endpoint and token yourself"
        return RequestRejected, f"the configuration file cannot be used ({text}), and nothing was sent", advice
    if isinstance(error, ValidationError):  # its text quotes the given values, including the token
        fields = ", ".join(".".join(map(str, detail["loc"])) or "all" for detail in error.errors(include_input=False))
        if error.title != "ClientConfig":
            return ServiceFailed, f"the service's answer is not valid in {fields}", "report it to the service"
        return RequestRejected, f"the configuration is not valid in {fields}, and nothing was sent", "correct it"
    if not isinstance(error, ValueError):
        return None
    if "token not defined" in text:
        advice = (
            "set token=..., the DWAVE_API_TOKEN variable or a profile in dwave.conf (Leap's trial plan has no token)"
        )
        return MissingToken, "no API token is configured, and nothing was sent", advice
    if "endpoint not defined" in text or text.startswith("Config profile"):
        return RequestRejected, f"{text}, and nothing was sent", "correct the connection's endpoint, region or profile"
    if text.startswith("selected solver"):
        advice = "name another solver, or leave the name out so that the newest one of the right kind is used"
        return SolverUnavailable, f"the solver configured is of the wrong kind ({text})", advice
    return None


def _cloud(error: BaseException) -> _Rule:
    """Translate the client's own exception classes."""
    from dwave.cloud import exceptions as cloud
    from dwave.cloud.api import exceptions as api

    text = str(error)
    if isinstance(error, (cloud.SolverAuthenticationError, api.ResourceAuthenticationError)):
        return InvalidToken, "the service does not accept the API token", "copy it again from the Leap dashboard"
    if isinstance(error, (cloud.SolverNotFoundError, cloud.SolverOfflineError, cloud.UnsupportedSolverError)):
        return (
            SolverUnavailable,
            text,
            "see `dwave solvers` for those that your account has, and use one that is online",
        )
    if isinstance(error, cloud.SolverFailureError):
        return _failure(text)
    if isinstance(error, api.RequestTimeout):
        return _unreachable(error) or (
            RemoteTimeout,
            f"the service did not answer in time ({text})",
            "try again, or raise the time limit",
        )
    if isinstance(error, cloud.PollingTimeout):
        return RemoteTimeout, "the polling time-out passed before an answer came", "raise polling_timeout or time_limit"
    if isinstance(error, cloud.CanceledFutureError):
        return RemoteCancelled, "the problem was cancelled before it was solved", "submit it again"
    if isinstance(error, cloud.UseAfterCloseError):
        return RemoteCancelled, "the connection was closed before an answer came", "submit it again"
    if isinstance(error, api.ResourceBadResponseError):
        return ServiceFailed, f"the answer cannot be read ({text})", "check the endpoint, or update the Ocean SDK"
    return None


def _failure(text: str) -> tuple[type[RemoteSolverError], str, str]:
    """Translate a problem that the service refused or failed on: only its message says which."""
    if _QUOTA_WORDS.search(text):
        return QuotaExceeded, f"the service refused the problem ({text})", "see the Leap dashboard for what is left"
    if _INVALID_WORDS.search(text):
        return RequestRejected, f"the service refused the problem ({text})", "correct it; sent again it will fail again"
    return ServiceFailed, f"the service failed on the problem ({text})", "try again later; it may have been charged"


def _status(error: BaseException) -> _Rule:
    """Translate failures that the client knows only by their HTTP status."""
    from dwave.cloud.api.exceptions import RequestError

    code = getattr(error, "error_code", None)
    if not isinstance(error, RequestError) or not isinstance(code, int):
        return None
    text = f"HTTP {code}: {error}"
    if code == 401:
        return InvalidToken, f"the service does not accept the API token ({text})", "copy it from the Leap dashboard"
    if code == 429 or (400 <= code < 500 and _QUOTA_WORDS.search(str(error))):
        return QuotaExceeded, f"too many requests or no quota left ({text})", "wait, or see the Leap dashboard"
    if code == 404:
        return SolverUnavailable, f"not found at the service ({text})", "check the endpoint and the solver's name"
    if 400 <= code < 500:
        return RequestRejected, f"the service refused the request ({text})", "sent again as it is, it will fail again"
    return ServiceFailed, f"the service failed ({text})", "try again later; the problem may or may not have been solved"


def _network(error: BaseException) -> _Rule:
    import requests
    import urllib3

    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
        return RemoteTimeout, "the service did not answer in time", "try again, or raise the time limit"
    if isinstance(error, _bad_addresses()):
        return RequestRejected, f"the endpoint is not a URL ({error})", "give the whole one, https:// included"
    if isinstance(error, requests.exceptions.SSLError):
        text = f"no secure connection could be made ({error})"
        return RemoteTimeout, text, "check the endpoint, the proxy and the certificates"
    if isinstance(error, (requests.exceptions.ConnectionError, urllib3.exceptions.HTTPError, OSError)):
        advice = "try again; the problem may have been solved"
        return _unreachable(error) or (ServiceFailed, f"the connection broke ({error})", advice)
    return None


def _bad_addresses() -> tuple[type[BaseException], ...]:
    from requests import exceptions

    return exceptions.InvalidURL, exceptions.MissingSchema, exceptions.InvalidSchema


def _unreachable(error: BaseException) -> _Rule:
    """Translate connections that were refused, and names that cannot be resolved; nothing was sent."""
    causes = list(_chain(error))
    if any(isinstance(cause, ConnectionRefusedError) or "refused" in str(cause) for cause in causes):
        return RemoteTimeout, "the service cannot be reached (connection refused)", "check the endpoint and the network"
    if any("resolve" in str(cause).lower() for cause in causes):
        return RemoteTimeout, "the service's name cannot be resolved", "check the endpoint and the network"
    return None


def _short(text: str) -> str:
    """One printable line of a message that may be a whole page."""
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
