"""The API token: checked, never shown, never pickled, and found again in what others wrote."""

from __future__ import annotations

import base64
import copy
import dataclasses
import html
import json
import pickle
from urllib.parse import quote

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from qubo_compress import errors as e
from qubo_compress.solvers import make_solver
from qubo_compress.solvers.dwave.connection import Connection
from qubo_compress.solvers.dwave.errors import translated
from qubo_compress.solvers.dwave.token import MASK, ClientError, Secrets, Token

SECRET = "DEV-0123456789abcdef/ABCDEF"
PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
TOKENS = st.text(PRINTABLE, min_size=8, max_size=48)
FORMS = {
    "plain": str,
    "percent": lambda value: quote(value, safe=""),
    "percent, all of it": lambda value: "".join(f"%{ord(c):02x}" for c in value),
    "JSON": lambda value: json.dumps(value),
    "JSON, slashes escaped": lambda value: json.dumps(value).replace("/", r"\/"),
    "JSON, all of it escaped": lambda value: "".join(f"\\u{ord(c):04X}" for c in value),
    "HTML": html.escape,
    "Python": repr,
    "upper case": str.upper,
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
}


def everything_shown(error):
    """The exception and what stands behind it, as anybody could print or pickle them."""
    shown, waiting, seen = [], [error], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        shown += [str(one), repr(one), str(vars(one)), str(one.args)]
        shown += [str(vars(value)) for value in vars(one).values() if hasattr(value, "headers")]
        waiting += [one.__cause__, one.__context__]
    return "\n".join(shown)


@pytest.mark.parametrize("form", FORMS)
@given(token=TOKENS, before=st.text(max_size=20), after=st.text(max_size=20))
def test_a_secret_is_found_in_every_form(form, token, before, after):
    written = FORMS[form](token)
    masked = Secrets(Token(token)).mask(f"{before} {written} {after}")
    assert written not in masked and MASK in masked


@given(token=TOKENS, data=st.data())
def test_a_part_of_a_secret_is_masked_too(token, data):
    start = data.draw(st.integers(0, len(token) - 8))
    part = token[start : start + data.draw(st.integers(8, len(token)))]
    assert part not in Secrets(Token(token)).mask(f"it was {part}")


@given(st.text(alphabet="abcdefgh ", max_size=200))
def test_other_texts_stay_as_they_are(text):
    assert Secrets(Token("ZYXW-9876543210")).mask(text) == text


def test_a_short_secret_is_masked_where_it_stands_by_itself():
    secrets = Secrets(Token("ab1"))
    assert secrets.mask("token ab1, cab1n, (ab1)") == f"token {MASK}, cab1n, ({MASK})"


@pytest.mark.parametrize("around", ["\n", " ", "\t", "\r\n", "\u00a0"])
def test_white_space_around_it_is_removed(around):
    for given_token in (SECRET + around, around + SECRET):
        token = Token(given_token)
        assert token.reveal() == SECRET and token.stripped and token == Token(SECRET)
    assert not Token(SECRET).stripped


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (SECRET[:10] + "\x00" + SECRET[10:], "a control character at place 11 of 28"),
        (SECRET[:4] + "\n" + SECRET[4:], "white space at place 5"),
        (SECRET[:4] + " " + SECRET[4:], "white space at place 5"),
        (SECRET + "é", "a character that is not ASCII at place 28"),
        (SECRET + "\u2028x", "a character that is not ASCII"),
        (SECRET + "\ud800", "a character that is not ASCII"),
        ("", "empty"),
        (" \n", "empty"),
        (b"bytes", "must be text"),
    ],
    ids=str,
)
def test_what_cannot_be_a_token_is_refused_without_showing_it(wrong, words):
    for make in (Token, lambda token: Connection(token=token), lambda token: make_solver("leap-cqm", token=token)):
        with pytest.raises(e.InvalidToken, match=words) as raised:
            make(wrong)
        assert not str(wrong).strip() or str(wrong)[:8] not in str(raised.value)


HOLDERS = [
    Token(SECRET),
    Connection(token=SECRET),
    *[make_solver(name, token=SECRET) for name in ("leap-cqm", "leap-nonlinear", "leap-dqm", "leap-bqm", "qpu")],
    make_solver("leap-cqm", connection=Connection(token=SECRET)),
    make_solver("qpu", connection=Connection(token=SECRET)),
    make_solver("decomposition", inner=make_solver("qpu", token=SECRET)),
]


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: type(holder).__name__)
def test_what_holds_a_token_does_not_show_it_and_is_not_pickled(holder):
    shown = f"{holder} {holder!r} {vars(holder) if hasattr(holder, '__dict__') else ''}"
    assert SECRET not in shown
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(e.InvalidToken, match="DWAVE_API_TOKEN"):
            pickle.dumps(holder, protocol)
    assert copy.deepcopy(holder) == holder == copy.copy(holder)


@pytest.mark.parametrize("name", ["leap-cqm", "leap-bqm", "qpu"])
def test_without_a_token_solvers_are_pickled(name):
    solver = make_solver(name, connection=Connection(region="eu-central-1"))
    assert pickle.loads(pickle.dumps(solver)) == solver


def test_a_connection_can_be_changed_and_keeps_its_token():
    changed = dataclasses.replace(Connection(token=SECRET), retries=1)
    assert changed.token == Token(SECRET) and SECRET not in str(dataclasses.asdict(changed))
    assert SECRET not in str(changed.arguments())


def test_passwords_belong_nowhere_in_an_endpoint():
    with pytest.raises(e.InvalidSolverOption, match="user name or a password") as raised:
        Connection(endpoint="https://user:hidden-word@example.com/sapi/v2/")
    assert "hidden-word" not in str(raised.value)


def sent_with(secret):
    response = requests.Response()
    response.request = requests.Request("GET", "http://x", headers={"X-Auth-Token": secret}).prepare()
    return response


@pytest.mark.parametrize("form", FORMS)
def test_exceptions_of_the_client_are_cleaned_to_the_last(form):
    written = FORMS[form](SECRET)
    with pytest.raises(e.RemoteSolverError) as raised, translated("here", Secrets(Token(SECRET))):
        try:
            try:
                raise KeyError({"a": [written, {written: written.encode()}]})
            except KeyError as first:
                first.add_note(f"note of {written}")
                raise requests.exceptions.HTTPError(f"no {written}", response=sent_with(SECRET)) from first
        except requests.exceptions.HTTPError as second:
            second.told = [f"again {written}"]
            raise RuntimeError(written, 3)  # noqa: B904  the context must be cleaned as the cause is
    shown = everything_shown(raised.value)
    assert written not in shown and SECRET not in shown and MASK in shown
    assert isinstance(raised.value.__cause__, RuntimeError) and raised.value.__context__ is raised.value.__cause__
    assert isinstance(raised.value.__cause__.__context__, requests.exceptions.HTTPError)


def test_exceptions_that_cannot_be_cleaned_are_stood_in_for():
    with pytest.raises(e.RemoteSolverError) as raised, translated("here", Secrets(Token(SECRET))):
        f"{SECRET}\ud800".encode()
    assert isinstance(raised.value.__cause__, ClientError) and "UnicodeEncodeError" in str(raised.value.__cause__)
    assert SECRET not in everything_shown(raised.value)


def test_pages_of_any_length_are_masked_quickly_and_cut():
    masked = Secrets(Token(SECRET)).mask("x" * 10_000 + SECRET + "y" * 10_000_000)
    assert len(masked) < 30_000 and SECRET not in masked and MASK in masked


def test_nests_are_masked_and_keep_their_kinds():
    nest = {"a": (SECRET, 1, None), SECRET: [b"x" + SECRET.encode()]}
    assert Secrets(Token(SECRET)).masked(nest) == {"a": (MASK, 1, None), MASK: [b"x" + MASK.encode()]}
