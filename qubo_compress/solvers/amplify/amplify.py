"""Annealers of other makers behind one solver, through the package of Fixstars Amplify.

The problem is sent to the service of the client that is named. Budgets are inequalities where the client takes them;
elsewhere the problem is sent in domain-wall encoding, with a price for each budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qubo_compress._internal.optional import require
from qubo_compress.encodings.encoding import encodings
from qubo_compress.errors import InvalidSolverOption, MissingToken, nearest
from qubo_compress.solvers.amplify.amplify_search import AmplifySearch
from qubo_compress.solvers.dwave.token import Secrets, Token
from qubo_compress.solvers.search import Search
from qubo_compress.solvers.solver import Solver, solvers

CLIENTS: Mapping[str, bool] = {
    "AmplifyAE": True,
    "DWaveSampler": False,
    "FujitsuDA3c": True,
    "FujitsuDA4": True,
    "Gurobi": True,
    "Hitachi": False,
    "LeapHybridCQMSampler": True,
    "LeapHybridSampler": False,
    "ToshibaSQBM2": False,
}
"""Clients of Amplify, without "Client" at the end, and whether they take linear inequalities."""

_WITHOUT_TOKEN = ("Gurobi",)


@solvers.register
@dataclass(frozen=True)
class Amplify(Solver):
    """Submit the problem by a client of Fixstars Amplify; needs ``pip install 'qubo_compress[amplify]'``.

    Each submission runs in a separate process, which is ended when the time limit is over; a job that the service has
    accepted by then goes on there. Samples are filtered for the budgets, which are recomputed here. If no sample fits,
    or where budgets are priced, samples are repaired and filled on this machine, and a note says so. For D-Wave's own
    service ``leap-*`` and ``qpu`` are the better choice: they refuse redirects and cancel what is abandoned.

    ``work`` counts submissions. What was sent and came back is in ``details``.

    Args:
        client: one of :data:`CLIENTS`, or a client object of Amplify, or one with Amplify's ``CustomClientProtocol``.
            An object is used in this process, and Amplify lets nothing else run meanwhile: only the service's own time
            limit ends it.
        token: the service's; never shown, logged or pickled. An object has its own.
        url: of the service, if it is not the client's own.
        proxy: URL of a proxy.
        parameters: of the client, by name, such as ``{"num_gpus": 1}``. The service's time limit is set by itself.
        encoding: for clients without inequalities.
        submissions: most problems to send; more than one helps where budgets are priced.
        penalty: weight of "one choice per group" as a share of what is proven to suffice, for clients without
            equalities.
        reserve: seconds of the time limit set aside for the way there and back; None: 2 s or a tenth, whichever is
            more.
        dry_run: submit nothing and raise :class:`~qubo_compress.errors.DryRun` with a preview.

    Raises:
        InvalidSolverOption: for an unknown client or a number out of range.
        InvalidToken: for a malformed token.

    Example:
        >>> Amplify(client="FujitsuDA4", token="secret")  # doctest: +ELLIPSIS
        Amplify(client='FujitsuDA4', url=None, ...)
    """

    name: ClassVar[str] = "amplify"
    requires: ClassVar[tuple[str, ...]] = ("amplify",)
    remote: ClassVar[bool] = True
    repeats: ClassVar[bool] = False

    client: Any = "AmplifyAE"
    token: str | Token | None = field(default=None, repr=False)
    url: str | None = None
    proxy: str | None = field(default=None, repr=False)  # its URL may hold a password
    parameters: Mapping[str, Any] = field(default_factory=dict)
    encoding: str = "domain-wall"
    submissions: int = 1
    penalty: float = 0.1
    reserve: float | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", Token.of(self.token))
        encodings.get(self.encoding)
        if isinstance(self.client, str) and self.client not in CLIENTS:
            raise InvalidSolverOption(
                f"client {self.client!r} is not known{nearest(self.client, CLIENTS) or '.'} There are: "
                f"{', '.join(CLIENTS)}; or give a client object of Amplify"
            )
        if not isinstance(self.client, str) and (self.token or self.url or self.proxy):
            raise InvalidSolverOption("a client object has its own token, url and proxy; set them there")
        if self.submissions < 1 or not 0 < self.penalty < math.inf:
            raise InvalidSolverOption(
                f"submissions must be at least 1, and penalty positive; got {self.submissions} and {self.penalty}"
            )
        if self.reserve is not None and not 0 <= self.reserve < math.inf:
            raise InvalidSolverOption(f"reserve must be a number of seconds from 0; got {self.reserve}")

    def run(self, search: Search) -> None:
        """Submit the problem, wait, and keep every sample that fits.

        Raises:
            MissingDependency: when amplify is not installed.
            MissingToken: when the client needs a token; nothing was sent.
            DryRun: with ``dry_run=True``.
            ProblemTooLarge: for a model that is too large to build.
            RemoteSolverError: its subclass says what went wrong.
        """
        with search.compiling():  # importing takes a second, once
            amplify = require("amplify", "amplify")
        named = isinstance(self.client, str)
        if named and self.token is None and not self.dry_run and self.client not in _WITHOUT_TOKEN:
            raise MissingToken(f"{self.client} needs an API token, and nothing was sent; give token=")
        budgets = CLIENTS[self.client] if named else takes_budgets(amplify, self.client)
        AmplifySearch(self, search, budgets).run()

    @property
    def label(self) -> str:
        """The client's name for messages."""
        return self.client if isinstance(self.client, str) else type(self.client).__name__

    @property
    def secrets(self) -> Secrets:
        """What must not be shown."""
        own = None if isinstance(self.client, str) else getattr(self.client, "token", None)
        return Secrets(self.token, self.proxy, own if isinstance(own, str) else None)

    def connection(self) -> dict[str, str]:
        """Attributes for a named client, the token in clear text."""
        token = self.token.reveal() if isinstance(self.token, Token) else None
        given = {"token": token, "url": self.url, "proxy": self.proxy}
        return {name: value for name, value in given.items() if value is not None}


def takes_budgets(amplify: Any, client: Any) -> bool:
    """Whether a client takes linear inequalities of binary variables."""
    degrees = client.acceptable_degrees.inequality_constraints
    return bool(degrees[amplify.VariableType.Binary] != amplify.Degree.Zero)
