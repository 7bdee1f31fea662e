"""One search through Amplify: build, submit, read, and fill what came back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dimod
import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress.encodings import to_bqm
from qubo_compress.encodings.encoding import Decoded, Decoder, worst_case_penalties
from qubo_compress.encodings.one_hot import OneHot
from qubo_compress.encodings.quadratic import pair_energies, refuse_too_many
from qubo_compress.errors import DryRun, ProblemTooLarge, RemoteSolverError
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.amplify.submission import submitted
from qubo_compress.solvers.dwave.leap_prices import price_search, starting_prices
from qubo_compress.solvers.local_search.descent import LocalSearch, warm_up
from qubo_compress.solvers.samplers.prices import PriceSearch
from qubo_compress.solvers.search import Search

if TYPE_CHECKING:
    from qubo_compress.solvers.amplify.amplify import Amplify

_MOST_BITS = 4096
"""Most bits of a model: Amplify holds a dense matrix of them, 134 MB."""

_MOST_COUPLINGS = 4_000_000
"""Most couplings of a model: they are passed as text."""

_MOST_FILLED = 16
_SHORTEST_RESERVE = 2.0
_RESERVE_SHARE = 0.1
_SHORTEST_LIMIT = 1.0
"""Least time limit to ask a service for, in seconds; some take whole seconds only."""


@dataclass(frozen=True)
class AmplifyPreview:
    """What would be sent through Amplify.

    Attributes:
        client: its name.
        bits: of the model, before the client adds any.
        bits_sent: with those that Amplify adds, for example for inequalities that a client does not take.
        couplings: pairs of bits with an energy.
        constraints: equalities and inequalities.
        priced: whether the budgets are prices, not inequalities.
    """

    client: str
    bits: int
    bits_sent: int
    couplings: int
    constraints: int
    priced: bool


class AmplifySearch:
    """Submissions for one search.

    Args:
        options: the solver.
        search: what they are for.
        budgets: whether the client takes budgets as inequalities.
    """

    def __init__(self, options: Amplify, search: Search, budgets: bool) -> None:
        self.options, self.search, self.problem, self.budgets = options, search, search.problem, budgets
        self.where = f"amplify ({options.label})"
        self.samples = self.feasible = self.invalid = self.filled = 0
        self.bits_sent = 0
        self._local: LocalSearch | None = None

    def run(self) -> None:
        """Submit as often as allowed, and report."""
        if (self.problem.group_sizes == 1).all():
            self.search.keep(np.zeros(self.problem.num_groups, dtype=np.int64))
            self.search.notes.append("every group has one choice only; nothing was sent")
            return
        most = self.search.most_work(self.options.submissions)
        prices = price_search(self.problem, self._start_prices())
        for number in range(most):
            if number and self.search.seconds_left < self._reserve + _SHORTEST_LIMIT:
                break
            try:
                self._submission(prices, most - number)
            except RemoteSolverError as failure:
                if self.search.best is None:
                    raise
                self.search.notes.append(f"a further submission failed: {failure}")
                break
        self._tell()

    @property
    def _reserve(self) -> float:
        asked = self.options.reserve
        return max(_SHORTEST_RESERVE, _RESERVE_SHARE * self.search.limits.seconds) if asked is None else asked

    def _submission(self, prices: PriceSearch, left: int) -> None:
        search, options = self.search, self.options
        with search.stage("build"):
            task, decode = self._native() if self.budgets else self._encoded(prices.prices)
        named = isinstance(options.client, str)
        task |= {
            "seconds": max(_SHORTEST_LIMIT, search.seconds_left / left - self._reserve),
            "parameters": dict(options.parameters),
            "dry_run": options.dry_run,
        }
        if named:
            task |= {"client": options.client, "connection": options.connection()}
        with search.stage("submit"):
            answer = submitted(task, None if named else options.client, search.deadline, self.where, options.secrets)
        if options.dry_run:
            raise self._dry_run(task, answer)
        search.work += 1
        self.bits_sent = answer["bits_sent"]
        for stage in ("execution", "response"):
            search.spend(stage, answer[stage])
        rows = np.array(answer["samples"], dtype=np.int8).reshape(-1, task["bits"])
        with search.stage("fill"):
            self._take(decode(rows), prices)

    def _native(self) -> tuple[dict[str, Any], Callable[[npt.NDArray[np.int8]], Decoded]]:
        """One bit per choice, an equality per group and an inequality per budget."""
        problem = self.problem
        _refuse_bits(problem.num_choices)
        refuse_too_many(problem)
        upper = sparse.triu(sparse.coo_array(pair_energies(problem)), k=1).tocoo()
        weights = self.options.penalty * worst_case_penalties(problem, OneHot())
        offsets = problem.group_offsets.tolist()
        task = {
            **_couplings(problem.num_choices, problem.linear, upper.row, upper.col, upper.data),
            "constant": 0.0,
            "groups": list(zip(offsets[:-1], offsets[1:], weights.tolist(), strict=True)),
            "costs": problem.costs.tolist(),
            "limits": (problem.limits - problem.fixed_costs).tolist(),
        }
        return task, Decoder(problem, OneHot(), problem.num_choices)

    def _encoded(self, prices: FloatArray) -> tuple[dict[str, Any], Callable[[npt.NDArray[np.int8]], Decoded]]:
        """A binary model without constraints, at these prices of the budgets."""
        _refuse_bits(self.problem.num_choices - self.problem.num_groups)
        bqm, decode = to_bqm(self.problem, self.options.encoding, "multiplier", multipliers=prices)
        vectors: Any = bqm.change_vartype(dimod.BINARY, inplace=False).to_numpy_vectors(range(bqm.num_variables))
        linear, (rows, columns, values), offset = vectors
        task = {
            **_couplings(bqm.num_variables, linear, rows, columns, values),
            "constant": float(offset),
            "groups": [],
            "costs": [],
            "limits": [],
        }
        return task, decode

    def _dry_run(self, task: dict[str, Any], answer: dict[str, Any]) -> DryRun:
        preview = AmplifyPreview(
            client=self.options.label,
            bits=task["bits"],
            bits_sent=answer["bits_sent"],
            couplings=len(task["values"]),
            constraints=len(task["groups"]) + len(task["costs"]),
            priced=not self.budgets,
        )
        return DryRun(f"{preview}; nothing was submitted, for dry_run=True", preview)

    def _take(self, decoded: Decoded, prices: PriceSearch) -> None:
        """Keep the samples that fit; fill those at prices, and repair if none fits."""
        problem, assignments = self.problem, np.atleast_2d(decoded.assignments)
        if not len(assignments):
            return
        totals = np.array([problem.totals(row) for row in assignments]).reshape(len(assignments), -1)
        fits, valid = (totals <= problem.limits).all(axis=1), np.atleast_1d(decoded.invalid) == 0
        energies = problem.energies(assignments)
        self.samples += len(assignments)
        self.feasible += int((fits & valid).sum())
        self.invalid += int((~valid).sum())
        self.search.pool.size += len(assignments)
        for i in np.flatnonzero(fits):
            self.search.keep(assignments[i], float(energies[i]))
        if not self.budgets or not fits.any():
            charged = energies + (totals - problem.limits) @ prices.prices
            order = np.argsort(charged, kind="stable")
            for row in np.unique(assignments[order[:_MOST_FILLED]], axis=0):
                self._fill(row)
            prices.update(totals[order[0]] - problem.limits)

    def _fill(self, assignment: IntArray) -> None:
        """Repair, spend the rest of the budget by single changes, and keep the result."""
        local = self._local_search()
        local.place(assignment)
        if local.repair():
            local.descend(self.search.deadline, pairs=False)
            self.filled += 1
            self.search.keep(local.assignment)

    def _local_search(self) -> LocalSearch:
        if self._local is None:
            with self.search.compiling():
                warm_up()
            self._local = LocalSearch(self.problem, self.search.rng)
        return self._local

    def _start_prices(self) -> FloatArray:
        if self.budgets or not self.problem.num_budgets:
            return np.zeros(self.problem.num_budgets)
        return starting_prices(self.problem, self._local_search(), self.search.deadline)

    def _tell(self) -> None:
        search = self.search
        search.notes.append(f"{self.samples} samples came back, {self.feasible} of them within every budget")
        if self.filled:
            search.notes.append(f"{self.filled} samples were repaired and filled on this machine")
        search.details |= {
            "client": self.options.label,
            "priced": not self.budgets,
            "samples": self.samples,
            "feasible_share": self.feasible / self.samples if self.samples else 0.0,
            "invalid_samples": self.invalid,
            "filled_samples": self.filled,
            "bits_sent": self.bits_sent,
        }


def _refuse_bits(bits: int) -> None:
    if bits > _MOST_BITS:
        raise ProblemTooLarge(
            f"amplify takes at most {_MOST_BITS:,} bits and this problem has {bits:,}; use 'decomposition' "
            "or 'annealer'"
        )


def _couplings(bits: int, linear: Any, rows: Any, columns: Any, values: Any) -> dict[str, Any]:
    """The energies of a task."""
    if len(values) > _MOST_COUPLINGS:
        raise ProblemTooLarge(
            f"amplify is sent at most {_MOST_COUPLINGS:,} couplings and this problem has {len(values):,}; use "
            "'annealer'"
        )
    named = {"linear": linear, "rows": rows, "columns": columns, "values": values}
    return {"bits": bits, **{name: np.asarray(array).tolist() for name, array in named.items()}}
