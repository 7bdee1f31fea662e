"""One search on a hybrid solver of Leap: connect, check, submit, wait, read, and spend the rest of the budgets."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import numpy as np

from qubo_compress._internal.optional import require
from qubo_compress.encodings import Decoded
from qubo_compress.errors import DryRun, NoFeasibleFound, RemoteSolverError
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.solvers.dwave import connection as connections
from qubo_compress.solvers.dwave.leap_models import HybridModel, size_of
from qubo_compress.solvers.dwave.leap_options import LeapOptions, Preview, SubmissionTimes, quota_seconds, service_limit
from qubo_compress.solvers.dwave.leap_prices import price_search, starting_prices
from qubo_compress.solvers.local_search.descent import LocalSearch, warm_up
from qubo_compress.solvers.samplers.prices import PriceSearch
from qubo_compress.solvers.search import Search

_PREVIEW_SECONDS = 30.0
_FEW_GROUPS = 60
"""With up to this many, filling also tries double changes."""

_MOST_FILLED = 64
"""Samples to repair and fill, best first; hybrid solvers return far fewer."""


class LeapSearch:
    """Problems submitted for one search; its attributes are valid at any moment, so that Ctrl-C yields an answer."""

    def __init__(self, options: LeapOptions, search: Search) -> None:
        self.options, self.search, self.problem = options, search, search.problem
        self.most = search.most_work(options.most_submissions)
        self.jobs: list[dict[str, Any]] = []
        self.samples = self.feasible = self.invalid = self.filled = 0
        self.best_sample = np.inf
        self.local: LocalSearch | None = None
        self.service: Any = None
        self.secrets = connections.Secrets()
        self.where = ""

    def run(self) -> None:
        """Submit until the submissions or the time are used up.

        Raises:
            DryRun: for ``dry_run=True``, instead of submitting.
            RemoteSolverError, ProblemTooLarge, TimeLimitTooShort: see the solver.
        """
        if (self.problem.group_sizes == 1).all():
            self.search.keep(np.zeros(self.problem.num_groups, dtype=np.int64))
            self.search.notes.append("every group has one choice only; nothing was sent")
            return
        try:
            self._connected()
        except KeyboardInterrupt:
            if self.search.best is None:
                raise NoFeasibleFound(
                    f"{self.options.name} was interrupted before the service had answered; if a problem was submitted, "
                    "the service was asked to cancel it"
                ) from None
            self.search.interrupted = True
        except RemoteSolverError as failure:
            if self.search.best is None:
                raise
            self.search.notes.append(f"a further submission failed: {failure}")
        self._tell()

    def _clock(self, minimum: float, submissions: int) -> SubmissionTimes:
        limit = self.search.limits.seconds
        return SubmissionTimes(limit, self.search.seconds_left, minimum, self.options.reserved(limit), submissions)

    def _connected(self) -> None:
        kind = self._sampler_class()
        begin = time.perf_counter()
        with connections.opened(kind, self.options.way(), self._connected_until()) as sampler:
            self.search.spend("connect", time.perf_counter() - begin)
            self.service, self.secrets = sampler.solver, sampler.client.secrets
            self.where = f"{self.options.name} ({self._service_name} at {self.options.way().place})"
            if connections.is_simulated(self.service):
                self.search.notes.append(connections.SIMULATED_NOTE)
            prices = price_search(self.problem, self._start_prices())
            for number in range(self.most):
                if not self._submission(sampler, prices, number):
                    break

    def _connected_until(self) -> float:
        """The deadline for connecting: a preview may take longer than a short time limit."""
        longest = self.search.start + _PREVIEW_SECONDS
        return max(self.search.deadline, longest) if self.options.dry_run else self.search.deadline

    def _sampler_class(self) -> Any:
        """Import the sampler's class; importing Ocean takes a second, once, which does not count as search time."""
        with self.search.compiling():
            return getattr(require("dwave.system"), self.options.sampler)

    def _submission(self, sampler: Any, prices: PriceSearch, number: int) -> bool:
        """One problem, from building to reading; False if there is no time left for it."""
        with self.search.stage("build"):
            model = self.options.build(self.problem, prices.prices)
        with connections.described(self.where, self.secrets):
            asked = self._seconds_to_ask(sampler, model, number)
        if asked is None:
            return False
        decoded = self._ask(sampler, model, asked, prices.prices)
        with self.search.stage("fill"):
            self._take(decoded, prices)
        return True

    def _seconds_to_ask(self, sampler: Any, model: HybridModel, number: int) -> float | None:
        """The service's time limit for a submission, after the size check; None if there is no time for it."""
        model.check(sampler.properties, self.options.name, self._service_name)
        minimum = model.minimum(sampler)
        if self.options.dry_run:
            preview = self._preview(sampler, model, minimum)
            raise DryRun(f"{preview}; nothing was submitted, for dry_run=True", preview)
        clock = self._clock(minimum, self.most - number)
        if number and clock.left < clock.wanted(self.options, sampler.properties) + clock.reserve:
            return None
        return service_limit(self.options, clock, sampler.properties, self.where)

    @property
    def _service_name(self) -> str:
        return self.secrets.mask(self.service.name)

    def _ask(self, sampler: Any, model: HybridModel, asked: float, prices: FloatArray) -> Decoded:
        with self.search.stage("upload"), closing(model.open_file()) as handle:
            size = size_of(handle)
            identifier = connections.uploaded(sampler, handle, self.search.deadline, self.where)
        begin = time.perf_counter()
        with connections.translated(self.where, self.secrets):
            labelled = {} if self.options.label is None else {"label": self.options.label}
            job = self.service.sample_problem(identifier, time_limit=asked, **labelled)
        job = connections.resolve(job, self.search.deadline, self.where, self.secrets)
        wall = time.perf_counter() - begin
        with self.search.stage("decode"):
            with connections.translated(self.where, self.secrets):
                decoded = model.read(job)
            self._record(job, wall, asked, size, prices)
        return decoded

    def _record(self, job: Any, wall: float, asked: float, size: int, prices: FloatArray) -> None:
        """Record every timing field of an answered problem, in seconds."""
        information = dict(job.timing)
        if "sampleset" in job.result():
            information = {**job.result()["sampleset"].info, **information}
        fields = connections.seconds(information)
        for name, value in {**connections.stages(job, wall, fields), **fields}.items():
            self.search.spend(name, value)
        self.search.work += 1
        self.jobs.append(
            {
                "problem_id": self.secrets.mask(str(job.id)),
                "seconds_asked": asked,
                "bytes_uploaded": size,
                "prices": prices.tolist(),
                "timing": fields,
                "warnings": [self.secrets.mask(str(text)) for text in information.get("warnings", ())],
            }
        )

    def _take(self, decoded: Decoded, prices: PriceSearch) -> None:
        """Keep the samples that fit; fill those of a priced model, and repair if none fits."""
        problem = self.problem
        assignments = np.atleast_2d(decoded.assignments)
        totals = np.array([problem.totals(row) for row in assignments]).reshape(len(assignments), -1)
        fits = (totals <= problem.limits).all(axis=1)
        valid = np.atleast_1d(decoded.invalid) == 0
        energies = problem.energies(assignments) if len(assignments) else np.zeros(0)
        self.samples += len(assignments)
        self.feasible += int((fits & valid).sum())
        self.invalid += int((~valid).sum())
        self.search.pool.size += len(assignments)  # all of them are handed over
        for i in np.flatnonzero(fits):
            self.search.keep(assignments[i], float(energies[i]))
        self.best_sample = min(self.best_sample, float(energies[fits].min(initial=np.inf)))
        if len(assignments) and (self.options.priced or not fits.any()):
            charged = energies + (totals - problem.limits) @ prices.prices
            order = np.argsort(charged, kind="stable")[:_MOST_FILLED]
            for row in np.unique(assignments[order], axis=0):
                self._fill(row)
            prices.update(totals[order[0]] - problem.limits)

    def _fill(self, assignment: IntArray) -> None:
        """Repair, spend the rest of the budget by single changes, and keep the result."""
        local = self._prepare_local_search()
        local.place(assignment)
        if not local.repair():
            return
        if self.options.priced:
            local.descend(self.search.deadline, pairs=self.problem.num_groups <= _FEW_GROUPS)
        self.filled += 1
        self.search.keep(local.assignment)

    def _prepare_local_search(self) -> LocalSearch:
        if self.local is None:
            with self.search.compiling():
                warm_up()
            self.local = LocalSearch(self.problem, self.search.rng)
        return self.local

    def _start_prices(self) -> FloatArray:
        if not self.options.priced:
            return np.zeros(self.problem.num_budgets)
        return starting_prices(self.problem, self._prepare_local_search(), self.search.deadline)

    def _preview(self, sampler: Any, model: HybridModel, minimum: float) -> Preview:
        with closing(model.open_file()) as handle:
            size = size_of(handle)
        count = self.most
        clock = self._clock(minimum, count)
        charged = max(minimum, clock.wanted(self.options, sampler.properties)) * count
        return Preview(
            solver=self.options.name,
            service_solver=self._service_name,
            variables=model.variables,
            interactions=model.interactions,
            bytes_to_upload=size,
            minimum_seconds=minimum,
            shortest_time_limit=clock.shortest,
            charged_seconds=charged,
            quota_seconds=quota_seconds(sampler.properties, charged),
            simulated=connections.is_simulated(self.service),
        )

    def _tell(self) -> None:
        """Report what came back, as text and figures."""
        search, best = self.search, self.best_sample
        search.notes.append(f"{self.samples} samples came back, {self.feasible} of them within every budget")
        if self.samples and not self.feasible and search.best is not None and not self.options.priced:
            search.notes.append("no sample was within the budgets: the answer was repaired on this machine")
        charged = search.timing.get("charge_time")
        search.details |= {
            "service_solver": self._service_name,
            "simulated": connections.is_simulated(self.service),
            "label": self.options.label,
            "submissions": tuple(self.jobs),
            "problem_ids": tuple(job["problem_id"] for job in self.jobs),
            "samples": self.samples,
            "feasible_share": self.feasible / self.samples if self.samples else 0.0,
            "invalid_samples": self.invalid,
            "filled_samples": self.filled,
            "best_sample_energy": best if np.isfinite(best) else None,
            "charged_seconds": charged,
            "quota_seconds": None if charged is None else quota_seconds(self.service.properties, charged),
        }
