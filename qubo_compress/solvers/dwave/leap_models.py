"""For each hybrid solver of Leap: the model to send, its limits, and how to read its answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qubo_compress.encodings import Decoded, to_bqm, to_cqm, to_dqm, to_nonlinear
from qubo_compress.errors import ProblemTooLarge
from qubo_compress.problem.choice_problem import ChoiceProblem, FloatArray


@dataclass(frozen=True, eq=False)
class HybridModel:
    """A problem in the form that one hybrid solver reads.

    Attributes:
        model: the dimod or dwave-optimization model.
        variables: binary, discrete or integer variables.
        interactions: pairs of bits or cases with an energy; for a nonlinear model, which has none, its symbols.
        sizes: (what is counted, the solver's property that limits it, how many), in the order of the checks.
        minimum: least seconds that the sampler's solver needs.
        open_file: the bytes to upload.
        read: assignments from a resolved future.
    """

    model: Any
    variables: int
    interactions: int
    sizes: tuple[tuple[str, str, int], ...]
    minimum: Callable[[Any], float]
    open_file: Callable[[], Any]
    read: Callable[[Any], Decoded]

    def check(self, properties: Mapping[str, Any], name: str, where: str) -> None:
        """Compare every size with the solver's limits.

        Raises:
            ProblemTooLarge: when one is exceeded; the message names both numbers.
        """
        for what, limit_name, size in self.sizes:
            limit = properties.get(limit_name)
            if limit is not None and size > limit:
                raise ProblemTooLarge(
                    f"{name}: the model has {size:,} {what}, and {where} takes at most {limit:,}; use 'annealer', "
                    "which reads the problem as it is, coarser groups, or fewer choices"
                )


def constrained(problem: ChoiceProblem) -> HybridModel:
    """The constrained quadratic model."""
    cqm, decode = to_cqm(problem)
    interactions = cqm.objective.num_interactions
    return HybridModel(
        model=cqm,
        variables=len(cqm.variables),
        interactions=interactions,
        sizes=(
            ("variables", "maximum_number_of_variables", len(cqm.variables)),
            ("constraints", "maximum_number_of_constraints", len(cqm.constraints)),
            ("biases", "maximum_number_of_biases", int(cqm.num_biases())),
            (
                "variables in quadratic constraints",
                "maximum_number_of_quadratic_variables",
                int(cqm.num_quadratic_variables(include_objective=False)),  # type: ignore[no-untyped-call]
            ),
        ),
        minimum=lambda sampler: float(sampler.min_time_limit(cqm)),
        open_file=cqm.to_file,
        read=lambda job: decode(_rows(job).astype(np.int8)),
    )


def binary(problem: ChoiceProblem, encoding: str, prices: FloatArray) -> HybridModel:
    """The binary quadratic model at these prices of the budgets."""
    bqm, decode = to_bqm(problem, encoding, "multiplier", multipliers=prices)
    return HybridModel(
        model=bqm,
        variables=bqm.num_variables,
        interactions=bqm.num_interactions,
        sizes=(
            ("variables", "maximum_number_of_variables", bqm.num_variables),
            ("biases", "maximum_number_of_biases", bqm.num_variables + bqm.num_interactions),
        ),
        minimum=lambda sampler: float(sampler.min_time_limit(bqm)),
        open_file=lambda: bqm.to_file(version=2, ignore_labels=True),
        read=lambda job: decode(_rows(job).astype(np.int8)),
    )


def discrete(problem: ChoiceProblem, prices: FloatArray) -> HybridModel:
    """The discrete quadratic model at these prices of the budgets."""
    dqm: Any
    dqm, decode = to_dqm(problem, budget="multiplier", multipliers=prices)
    interactions = dqm.num_case_interactions()
    return HybridModel(
        model=dqm,
        variables=dqm.num_variables(),
        interactions=interactions,
        sizes=(
            ("variables", "maximum_number_of_variables", dqm.num_variables()),
            ("cases", "maximum_number_of_cases", dqm.num_cases()),
            ("biases", "maximum_number_of_biases", dqm.num_cases() + interactions),
        ),
        minimum=lambda sampler: float(sampler.min_time_limit(dqm)),
        open_file=lambda: dqm.to_file(compress=False, ignore_labels=True),
        read=lambda job: decode(_rows(job)),
    )


def nonlinear(problem: ChoiceProblem) -> HybridModel:
    """The nonlinear model."""
    model, decode = to_nonlinear(problem)

    def read(job: Any) -> Decoded:
        model.states.from_file(job.answer_data, check_header=False)
        return decode(model)

    return HybridModel(
        model=model,
        variables=problem.num_groups,
        interactions=model.num_symbols(),
        sizes=(
            ("symbols", "maximum_number_of_nodes", model.num_nodes()),
            ("bytes of decisions", "maximum_decision_state_size", model.decision_state_size()),
            ("bytes of state", "maximum_state_size", model.state_size()),
        ),
        minimum=lambda sampler: float(sampler.estimated_min_time_limit(model)),
        open_file=model.to_file,
        read=read,
    )


def _rows(job: Any) -> npt.NDArray[Any]:
    """(N, n) values of the variables 0, 1, ..., whatever their order in the answer."""
    samples = job.wait_sampleset()
    order = np.argsort(np.array(list(samples.variables), dtype=np.int64))
    return np.asarray(samples.record.sample)[:, order]


def size_of(handle: Any) -> int:
    """The size of an open file in bytes; rewinds the file."""
    handle.seek(0, os.SEEK_END)
    size = int(handle.tell())
    handle.seek(0)
    return size
