"""Each exception of the Ocean client has one of ours; messages say what to do and never show a token."""

from __future__ import annotations

import pytest
import requests
from dwave.cloud import exceptions as cloud
from dwave.cloud.api import exceptions as api
from dwave.cloud.config import validate_config_v1
from pydantic import ValidationError

from qubo_compress import errors as e
from qubo_compress.solvers.dwave.errors import translate, translated
from qubo_compress.solvers.dwave.token import Secrets

TABLE = [
    (ValueError("API token not defined"), e.MissingToken),
    (ValueError("Config profile 'x' not found"), e.RequestRejected),
    (ValueError("selected solver is not a hybrid solver."), e.SolverUnavailable),
    (cloud.ConfigFileReadError("no such file"), e.RequestRejected),
    (cloud.SolverAuthenticationError(), e.InvalidToken),
    (api.ResourceAuthenticationError(), e.InvalidToken),
    (cloud.SolverNotFoundError("No solver with name='x' available"), e.SolverUnavailable),
    (cloud.SolverOfflineError("solver is offline"), e.SolverUnavailable),
    (cloud.SolverFailureError("Problem not accepted because user has insufficient remaining solver access time"),
     e.QuotaExceeded),
    (cloud.SolverFailureError("Invalid parameter: foo"), e.RequestRejected),
    (cloud.SolverFailureError("An unknown error has occurred."), e.ServiceFailed),
    (cloud.SolverError(error_msg="slow down", error_code=429), e.QuotaExceeded),
    (cloud.SolverError(error_msg="forbidden", error_code=403), e.RequestRejected),
    (cloud.SolverError(error_msg="oops", error_code=500), e.ServiceFailed),
    (cloud.InvalidAPIResponseError("JSON response expected"), e.ServiceFailed),
    (api.RequestTimeout(), e.RemoteTimeout),
    (cloud.PollingTimeout(), e.RemoteTimeout),
    (cloud.CanceledFutureError(), e.RemoteCancelled),
    (cloud.UseAfterCloseError("closed"), e.RemoteCancelled),
    (requests.exceptions.ReadTimeout("slow"), e.RemoteTimeout),
    (requests.exceptions.ConnectionError("reset by peer"), e.ServiceFailed),
    (requests.exceptions.SSLError("wrong version"), e.RemoteTimeout),
    (requests.exceptions.InvalidSchema("ftp"), e.RequestRejected),
    (requests.exceptions.ConnectionError("Failed to resolve 'x'"), e.RemoteTimeout),
    (KeyError("answer"), e.ServiceFailed),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "expected"), TABLE, ids=lambda item: str(item)[:60])
def test_the_table(cause, expected):
    with pytest.raises(e.RemoteSolverError, match="^here: ") as raised, translated("here"):
        raise cause
    assert type(raised.value) is expected
    assert raised.value.__cause__ is cause


def test_an_upload_says_so_and_keeps_the_reason():
    try:
        try:
            raise cloud.SolverError(error_msg="no", error_code=503)
        except cloud.SolverError as reason:
            raise cloud.ProblemUploadError("failed") from reason
    except cloud.ProblemUploadError as cause:
        found = translate(cause, "here")
    assert type(found) is e.UploadFailed
    assert str(found).startswith("here: uploading the problem failed: the service failed (HTTP 503: no)")


def test_our_own_errors_and_interruptions_pass():
    with pytest.raises(e.ProblemTooLarge), translated("here"):
        raise e.ProblemTooLarge("too large")
    with pytest.raises(KeyboardInterrupt), translated("here"):
        raise KeyboardInterrupt


def test_tokens_are_taken_out_of_messages():
    secret = "DEV-0123456789abcdef"
    leaky = RuntimeError(f"sent {secret} with token='another-secret-99'")
    text = str(translate(leaky, "here", Secrets(secret)))
    assert secret not in text and "another-secret" not in text and "<token>" in text


def test_what_a_terminal_would_obey_is_taken_out_of_messages():
    text = str(translate(cloud.SolverError(error_msg="\x1b[31mred\x07\u202e", error_code=500), "here"))
    assert text.isprintable() and "red" in text


def test_a_wrong_value_in_a_configuration_is_named_and_not_shown():
    with pytest.raises(ValidationError) as raised:
        validate_config_v1({"token": {"secret-in-a-dict": 1}, "request_timeout": "soon"})
    text = str(translate(raised.value, "here"))
    assert "token" in text and "request_timeout" in text and "secret-in-a-dict" not in text


def test_a_wrong_value_in_an_answer_is_the_services_fault():
    from pydantic import TypeAdapter

    with pytest.raises(ValidationError) as raised:
        TypeAdapter(list[int]).validate_python({})
    found = translate(raised.value, "here")
    assert type(found) is e.ServiceFailed and "nothing was sent" not in str(found)


def test_pages_are_cut_short():
    page = cloud.SolverError(error_msg="<html>\n" + "x" * 5000, error_code=502)
    text = str(translate(page, "here"))
    assert len(text) < 600 and "\n" not in text and "502" in text
