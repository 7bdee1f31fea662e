"""Submitted problems: queue, workers, cancellation, and waiting for completion."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from qubo_compress.testing.loopback_leap.faults import Faults
from qubo_compress.testing.loopback_leap.solvers import Offered
from qubo_compress.testing.loopback_leap.tasks import Answer, ProblemRejected, ServerSettings, Task

logger = logging.getLogger(__name__)

PENDING, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = "PENDING", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"
DEFAULT_LABEL = "loopback, classical"
"""Label of problems that have none, so that sample sets say where they come from."""


@dataclass
class LeapJob:
    """One submitted problem; only :class:`Jobs` changes its state, under its lock."""

    solver: Offered
    task: Task
    label: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = PENDING
    submitted_on: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    solved_on: str | None = None
    error_message: str | None = None
    answer: Answer | None = None

    @property
    def ended(self) -> bool:
        """Whether the problem has reached a final status."""
        return self.status in (COMPLETED, FAILED, CANCELLED)

    def message(self, with_answer: bool = False) -> dict[str, Any]:
        """Status as it goes over the wire."""
        message: dict[str, Any] = {
            "id": self.id,
            "type": self.task.type,
            "solver": self.solver.record["identity"],
            "label": self.label,
            "status": self.status,
            "submitted_on": self.submitted_on,
        }
        if self.solved_on is not None:
            message["solved_on"] = self.solved_on
        if self.error_message is not None:
            message["error_message"] = self.error_message
        if with_answer and self.answer is not None:
            message["answer"] = dict(self.answer.message)
            if self.answer.data is not None:
                message["answer"]["url"] = f"problems/{self.id}/answer/data"
        return message


class Jobs:
    """All problems of a server, and the threads that work on them.

    Args:
        workers: problems solved at a time.
        faults: those of ``kind="solve"`` are met here.
        settings: of the solvers.
        seed: problem number n is solved with the generator of seed (seed, n).
    """

    def __init__(self, workers: int, faults: Faults, settings: ServerSettings, seed: int) -> None:
        self._faults, self._settings, self._seed = faults, settings, seed
        self._jobs: dict[str, LeapJob] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="loopback-leap-worker")

    def submit(self, solver: Offered, kind: str, data: Any, params: dict[str, Any], label: str | None) -> LeapJob:
        """Add a problem to the queue and return its job."""
        with self._changed:
            task = Task(
                type=kind, data=data, params=params, properties=solver.record["properties"],
                rng=np.random.default_rng((self._seed, len(self._jobs))), settings=self._settings,
            )  # fmt: skip
            job = LeapJob(solver, task, label or DEFAULT_LABEL)
            self._jobs[job.id] = job
        self._workers.submit(self._work, job)
        return job

    def get(self, identifier: str) -> LeapJob | None:
        """The problem of an identifier, if there is one."""
        with self._changed:
            return self._jobs.get(identifier)

    def all(self) -> list[LeapJob]:
        """All problems, in the order in which they were submitted."""
        with self._changed:
            return list(self._jobs.values())

    def cancel(self, job: LeapJob) -> None:
        """Cancel a problem; one that has ended is unchanged."""
        job.task.stopped.set()
        self._change(job, CANCELLED)

    def wait_for_any(self, jobs: Sequence[LeapJob], timeout: float) -> None:
        """Wait until one of the problems has ended, the time is over or the server closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or any(job.ended for job in jobs), timeout)

    def close(self) -> None:
        """Cancel unfinished problems, release waiting threads, and join the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for job in self.all():
            self.cancel(job)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _change(self, job: LeapJob, status: str, message: str | None = None, answer: Answer | None = None) -> None:
        with self._changed:
            if job.ended:
                return
            job.error_message, job.answer = message, answer
            job.status = status
            if job.ended:
                job.solved_on = datetime.now(UTC).isoformat()
            self._changed.notify_all()

    def _work(self, job: LeapJob) -> None:
        fault = self._faults.take("solve")
        if fault is not None and fault.delay:
            job.task.stopped.wait(fault.delay)
        if job.ended:
            return
        self._change(job, IN_PROGRESS)
        if fault is not None and fault.message is not None:
            self._change(job, FAILED, fault.message)
            return
        try:
            answer = job.solver.solve(job.task)
        except ProblemRejected as cause:
            self._change(job, FAILED, str(cause))
        except Exception as cause:  # the client must be told: without an answer it would poll forever
            logger.exception("problem %s failed", job.id)
            self._change(job, FAILED, f"internal error of the loopback server: {cause!r}")
        else:
            self._change(job, COMPLETED, answer=answer)
