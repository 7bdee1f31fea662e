"""What the service says will be switched off is shown once, bounded, printable and without secrets."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_compress import ChoiceProblem, solve
from qubo_compress.errors import ServiceDeprecation
from qubo_compress.solvers.dwave.deprecations import Deprecations
from qubo_compress.testing.loopback_leap import Chip

PROBLEM = ChoiceProblem.random(kind="low-rank", groups=3, choices=2, seed=0)
CHIPS = (Chip("zephyr", 2),)
WARMED_UP = ()
OLD = 'old-accept; deprecated=@1767225600; sunset=@1773014400; link="https://docs.example.com/a,b;c"'

pytestmark = pytest.mark.usefixtures("no_faults")


def texts(*headers):
    found = Deprecations()
    for header in headers:
        found.read(header)
    return found.texts()


def test_every_field_is_shown_and_each_id_once():
    assert texts(f"{OLD}, other; sunset=@1773014400", "old-accept; sunset=@0") == [
        '"old-accept" is deprecated since 2026-01-01 and ends on 2026-03-09; see https://docs.example.com/a,b;c',
        '"other" is deprecated and ends on 2026-03-09',
    ]
    assert texts('x; message="say \\"so\\""; context=solver') == ['"x" is deprecated: say "so"']
    assert texts("", ",;, ;", "x; sunset=@99999999999999; deprecated=@-1") == ['"x" is deprecated']


@settings(max_examples=80, deadline=None)
@given(header=st.text(max_size=300))
def test_whatever_the_header_holds_is_bounded_and_printable(header):
    for text in texts(header):
        assert text.isascii() and text.isprintable() and len(text) < 1000


def test_long_headers_and_many_ids_are_cut():
    assert len(texts(",".join(f"id{k}" for k in range(1000)))) == 16
    assert all(len(text) < 1000 for text in texts("x" * 10**6 + '; message="' + "y" * 10**6))


@pytest.mark.parametrize("solver", ["leap-cqm", "qpu"])
def test_users_of_the_service_are_warned(server, solver):
    server.faults.next("list", deprecation=OLD)
    server.faults.next("submit", deprecation=f"{OLD}, secret-{server.token}; sunset=@1773014400")
    more = {"reserve": 0.3} if solver == "leap-cqm" else {"cache": None, "roof_duality": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = solve(PROBLEM, solver, time_limit=120.0, **server.client_options, **more)
    said = [str(one.message) for one in caught if one.category is ServiceDeprecation]
    assert len(said) == 2 and server.endpoint in said[0]
    assert said[0].endswith('says: "old-accept" is deprecated since 2026-01-01 and ends on 2026-03-09; see '
                            "https://docs.example.com/a,b;c")  # fmt: skip
    assert server.token not in "".join(said) and "secret-<token>" in said[1]
    assert not [one for one in caught if "Deprecat" in one.category.__name__ and one.category is not ServiceDeprecation]
    assert PROBLEM.is_feasible(solution.assignment)
