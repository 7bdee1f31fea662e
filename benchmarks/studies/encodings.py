"""How long models of a problem take to build, and how large they are.

    python -m benchmarks.studies.encodings [--quick]

A dense problem of 200 groups x 16 choices, given by its pair energies and by a factor of rank 64, and a sparse one of
2000 x 16, in every encoding and budget treatment that fits. The table is printed and written to
``results/encodings.md``; seconds are the least of three runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.records import environment, markdown, write
from benchmarks.study import Option, command_line
from qubo_compress import ChoiceProblem

TREATMENTS = ("multiplier", "slack", "unbalanced")


def builders(problem: ChoiceProblem, squares: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and call of every model; without ``squares`` only those that couple no more than the problem does."""
    for encoding in ("domain-wall", "one-hot"):
        for budget in TREATMENTS if squares else TREATMENTS[:1]:
            yield f"BQM, {encoding}, {budget}", lambda e=encoding, b=budget: problem.to_bqm(e, b)[0]  # type: ignore[misc]
    yield "CQM", lambda: problem.to_cqm()[0]
    yield "DQM, multiplier", lambda: problem.to_dqm()[0]
    yield "nonlinear", lambda: problem.to_nonlinear()[0]


def size_of(model: Any) -> tuple[int, int | None]:
    """Variables and couplings, or nodes of a nonlinear model."""
    if hasattr(model, "objective") and hasattr(model, "variables"):
        return len(model.variables), model.objective.num_interactions
    if hasattr(model, "num_case_interactions"):
        return model.num_variables(), model.num_case_interactions()
    if hasattr(model, "num_interactions"):
        return model.num_variables, model.num_interactions
    return model.num_nodes(), None


def main() -> None:
    """Run from the command line."""
    options = command_line(__doc__, quick=Option(False, "40 groups instead of 200, one run each"))
    groups, wide, runs = (40, 200, 1) if options.quick else (200, 2000, 3)
    problems = {
        f"dense pairs {groups} x 16": (ChoiceProblem.random("dense", groups, 16, seed=0), True),
        f"factor of rank 64, {groups} x 16": (ChoiceProblem.random("low-rank", groups, 16, seed=0, rank=64), True),
        f"sparse {wide} x 16": (ChoiceProblem.random("sparse", wide, 16, seed=0), False),
    }
    rows = []
    for name, (problem, squares) in problems.items():
        for model_name, build in builders(problem, squares):
            seconds = []
            for _ in range(runs):
                start = time.perf_counter()
                model = build()
                seconds.append(time.perf_counter() - start)
            variables, couplings = size_of(model)
            rows.append([name, model_name, f"{variables:,}", "-" if couplings is None else f"{couplings:,}",
                         f"{min(seconds):.2f}"])  # fmt: skip
            print(rows[-1], flush=True)
    text = markdown(["problem", "model", "variables (nodes)", "couplings", "seconds"], rows)
    write("encodings_quick.md" if options.quick else "encodings.md", text)
    print(environment())


if __name__ == "__main__":
    main()
