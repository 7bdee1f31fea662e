"""Who finds, who proves, and where does the annealer lose? Problems of others, against the exact solvers of others.

    python -m benchmarks.studies.solvers_public [--seconds 3 10] [--seeds 1] [--contenders annealer cfn ...]

Every contender has one process, one thread and the same processor, one works at a time, and all solve an instance one
after another, so that a change in the machine's load hits all alike. The limit is wall clock and covers building;
importing and compiling are shown apart. A contender that is late is killed, and its answer lost. CPU seconds are
recorded, too: on a machine with other work they say what a contender really had. Every energy is recomputed. Where all
energies are whole numbers, everybody's bound is rounded up to one.

Records go to ``benchmarks/results/solvers_public.jsonl`` one by one; what is there is not run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from benchmarks.records import Record
from benchmarks.solvers.contenders import CONTENDERS, missing
from benchmarks.solvers.contest import Contest
from benchmarks.solvers.public import INSTANCES
from benchmarks.solvers.public_tables import report
from benchmarks.study import Option, Study, grid

STUDY = Study(
    __doc__, "solvers_public", seconds=[3.0, 10.0], seeds=1,
    contenders=Option(list(CONTENDERS), choices=list(CONTENDERS)),
    instances=Option(list(INSTANCES), choices=list(INSTANCES)),
)  # fmt: skip

_CONTEST: list[Contest] = []


def _cells(options: Any) -> Iterable[Record]:
    """All solves, the contenders innermost; a contender whose package is missing is left out, with a message."""
    present = []
    for name in options.contenders:
        lacking = missing(name)
        if lacking:
            print(f"{name}: skipped, {', '.join(lacking)} is not installed", flush=True)
        else:
            present.append(name)
    return grid(seconds=options.seconds, seed=range(options.seeds), instance=options.instances, contender=present)


@STUDY.step(_cells)
def solves(options: Any, seconds: float, seed: int, instance: str, contender: str) -> Record:
    """One solve."""
    contest = _CONTEST[0]
    record = contest.solve(contender, instance, seconds, seed)
    return record | {"started": contest.started.get(contender), "load": round(os.getloadavg()[0], 2)}


@STUDY.table
def tables(options: Any) -> str:
    """All tables."""
    return report(STUDY.records())


def main() -> None:
    """Run from the command line."""
    with Contest(max(os.sched_getaffinity(0))) as contest:
        _CONTEST[:] = [contest]
        STUDY.main()


if __name__ == "__main__":
    main()
