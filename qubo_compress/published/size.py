"""The published objective at a given size: a search over gamma."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, Unpack

import dimod
import numpy as np
from torch import nn

from qubo_compress._internal.checks import refuse_unknown, whole
from qubo_compress.budget import Budget, refuse_other_than_a_budget
from qubo_compress.encodings.published import FiltersAndBits, bits_of_assignment, minimum, to_problem
from qubo_compress.errors import InfeasibleBudget, InvalidBudget, InvalidOption, NoFeasibleFound
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import IntArray
from qubo_compress.published.decoding import PublishedPlans
from qubo_compress.published.formulation import Formulation
from qubo_compress.published.model import published_plans
from qubo_compress.solvers.solver import Solver, make_solver
from qubo_compress.solvers.verification import solve

SORTING = "sorting"
"""The exact minimum, by :func:`qubo_compress.encodings.published.minimum`."""

STEPS = 16
"""Bisections of gamma, which halve the ratio of its two bounds on a logarithmic scale."""

_FIRST_STRIDE = 1.5
_MOST_STRIDES = 12
_ENDLESS = 1e6
"""Seconds: a limit on work repeats the answer only if the clock does not end the search first."""

Sampling = Callable[[dimod.BinaryQuadraticModel], dimod.SampleSet]
"""Any dimod sampler as a function of the model, such as ``lambda bqm: sampler.sample(bqm, num_reads=10, seed=0)``."""


class SolveOptions(TypedDict, total=False):
    """Limits of every solve of the search, and the seed."""

    seed: int
    time_limit: float
    work_limit: int


@dataclass(frozen=True, eq=False)
class SizedPlan:
    """A plan of the published objective that fits a budget.

    Attributes:
        plan: the plan.
        bits: (n,) of the objective.
        gamma: at which they were found.
        energy: H at that gamma.
        loss: L_p + beta L_q.
        reduction: R, the share of the weights' bits that is saved; the file saves another share.
        limit: bytes allowed.
        gammas: (gamma, bytes) of every solve, in order.
        plans: makes plans of other bits; its objective has this gamma.
    """

    plan: Plan
    bits: IntArray
    gamma: float
    energy: float
    loss: float
    reduction: float
    limit: int
    gammas: tuple[tuple[float, int], ...]
    plans: PublishedPlans

    @property
    def filled(self) -> float:
        """Bytes of the file over bytes allowed, at most 1."""
        return self.plan.bytes / self.limit


def plan_of_size(
    model: nn.Module,
    budget: Budget,
    solver: str | Solver | Sampling = SORTING,
    formulation: Formulation | None = None,
    *,
    start: float | None = None,
    steps: int = STEPS,
    **options: Unpack[SolveOptions],
) -> SizedPlan:
    """The published objective at the least gamma whose plan fits a budget of stored bytes.

    Gamma is bracketed in growing strides and then bisected. For an exact solver, R never falls when gamma rises; the
    real bytes nearly never do, because they are not quite proportional to 1 - R. Of all plans met that fit, the one of
    least L_p + beta L_q is returned, so that its file is never over the budget, whatever the solver does.

    Sizes that no gamma reaches are left out: the plans of all gammas are only those on the convex hull of loss and
    size. ``filled`` says how much of the budget was used.

    Args:
        model: trained; unchanged.
        budget: its bytes.
        solver: ``"sorting"``, the exact minimum; a solver of this library, by name or as an object, on the objective
            with one group per filter and one per layer; or a function from a dimod model to a sample set, which covers
            samplers of Ocean and Leap, and chips with an embedding.
        formulation: the settings of the objective.
        start: gamma where the search begins; None: the loss of the smallest network.
        steps: bisections; every one takes a solve.
        options: ``seed``, ``time_limit`` and ``work_limit`` of every solve by a solver of this library; see
            :func:`qubo_compress.solve`. A limit on work without one on time repeats the answer.

    Returns:
        The plan with its figures; the same for the same arguments, if the solver repeats.

    Raises:
        InfeasibleBudget: if the smallest plan does not fit.
        InvalidBudget: for a budget with other limits than bytes.
        InvalidOption: for a start or steps out of range.
        UnsupportedProblem: for ``"sorting"`` with feeds.
        NoFeasibleFound: if the solver's answers did not fit at any gamma.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3)).eval()
        >>> found = plan_of_size(net, Budget(ratio=6))
        >>> found.plan.ratio >= 6, found.plan.bytes == found.plans.bytes(found.bits)
        (True, True)
    """
    refuse_other_than_a_budget(budget)
    if budget.names != ("bytes",):
        raise InvalidBudget(f"the published objective knows bytes only; got limits on {', '.join(budget.names)}")
    steps = whole("steps", steps, 1)
    if start is not None and not (isinstance(start, (int, float)) and 0 < start < math.inf):
        raise InvalidOption(f"start must be a positive number or None; got {start!r}")
    refuse_unknown(plan_of_size, options, SolveOptions.__annotations__)
    solving = _solving(solver, options)
    plans = published_plans(model, 0.0, formulation or Formulation())
    limit = budget.limits(plans.layout.original_bytes, plans.layout.parameters)["bytes"]
    if plans.smallest_bytes > limit:
        raise InfeasibleBudget(
            f"{limit:,} bytes are allowed and the smallest plan of this formulation takes {plans.smallest_bytes:,}: "
            "everything pruned, and what has no bits of its own; give a larger budget"
        )
    return _Bracket(plans, limit, solving).search(start, steps)


def _solving(solver: str | Solver | Sampling, options: SolveOptions) -> Callable[[FiltersAndBits], IntArray]:
    """The solver as a function from the objective to bits."""
    if solver == SORTING:
        return lambda objective: minimum(objective).astype(np.int64)
    if isinstance(solver, (str, Solver)):
        chosen = make_solver(solver)
        limits = {"time_limit": _ENDLESS, **options} if "work_limit" in options else {**options}

        def solved(objective: FiltersAndBits) -> IntArray:
            found = solve(to_problem(objective), chosen, **limits)  # type: ignore[arg-type]
            return bits_of_assignment(objective, found.assignment).astype(np.int64)

        return solved
    if not callable(solver):
        raise InvalidOption(f"solver must be {SORTING!r}, a solver, or a function of a dimod model; got {solver!r}")
    sampling = solver

    def sampled(objective: FiltersAndBits) -> IntArray:
        found = sampling(objective.to_bqm())
        return objective.checked(dict(found.first.sample)).astype(np.int64)

    return sampled


class _Bracket:
    """Two gammas, the plan of one fits, and the best plan so far."""

    def __init__(self, plans: PublishedPlans, limit: int, solving: Callable[[FiltersAndBits], IntArray]) -> None:
        self._plans, self._limit, self._solving = plans, limit, solving
        self._tried: list[tuple[float, int]] = []
        self._best: tuple[float, float, IntArray] | None = None

    def search(self, start: float | None, steps: int) -> SizedPlan:
        if not self._fits(0.0):
            low, high = self._bracketed(start or self._scale())
            for _ in range(steps):
                middle = math.sqrt(low * high)
                low, high = (low, middle) if self._fits(middle) else (middle, high)
        if self._best is None:
            raise NoFeasibleFound(
                f"no answer of the solver fits {self._limit:,} bytes up to gamma={self._tried[-1][0]:.3g}; "
                "give it more work, or another solver"
            )
        return self._result(*self._best)

    def _scale(self) -> float:
        """The loss of the smallest network: about where gamma decides."""
        objective = self._plans.objective
        return objective.loss(np.ones(objective.num_bits, dtype=np.int64)) or 1.0

    def _bracketed(self, start: float) -> tuple[float, float]:
        """A gamma whose plan is too large, and a higher one whose plan fits."""
        stride, gamma, fits = _FIRST_STRIDE, start, self._fits(start)
        for _ in range(_MOST_STRIDES):
            other = gamma / stride if fits else gamma * stride
            if self._fits(other) != fits:
                return min(gamma, other), max(gamma, other)
            gamma, stride = other, min(stride**2, 1e6)
        return gamma, gamma * stride if not fits else gamma

    def _fits(self, gamma: float) -> bool:
        objective = self._plans.objective.with_gamma(gamma)
        bits = self._solving(objective)
        size = self._plans.bytes(bits)
        self._tried.append((gamma, size))
        if size > self._limit:
            return False
        loss = objective.loss(bits)
        if self._best is None or loss < self._best[0]:
            self._best = (loss, gamma, bits)
        return True

    def _result(self, loss: float, gamma: float, bits: IntArray) -> SizedPlan:
        plans = self._plans.with_gamma(gamma)
        objective = plans.objective
        return SizedPlan(
            plan=plans(bits),
            bits=bits,
            gamma=gamma,
            energy=objective.energy(bits),
            loss=loss,
            reduction=objective.terms(bits).reduction,
            limit=self._limit,
            gammas=tuple(self._tried),
            plans=plans,
        )
