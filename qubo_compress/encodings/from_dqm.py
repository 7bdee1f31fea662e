"""A dimod discrete quadratic model as a choice problem: one group per variable."""

from __future__ import annotations

import dimod
import numpy as np
from scipy import sparse

from qubo_compress.encodings.model_samples import ModelSamples, unique_names
from qubo_compress.errors import InvalidProblem
from qubo_compress.problem.choice_problem import ChoiceProblem


def from_dqm(dqm: dimod.DiscreteQuadraticModel) -> tuple[ChoiceProblem, ModelSamples]:
    """A choice problem of the same energies, without budgets, and its inverse.

    Groups are the model's variables in its order, named by their labels; choices are the cases.

    Raises:
        InvalidProblem: for anything but a discrete quadratic model, for one without variables, and for biases that
            are not finite.

    Example:
        >>> dqm = dimod.DiscreteQuadraticModel()
        >>> first, second = dqm.add_variable(2, label="a"), dqm.add_variable(3, label="b")
        >>> dqm.set_quadratic_case("a", 1, "b", 2, -4.0)
        >>> problem, samples = from_dqm(dqm)
        >>> problem.energy([1, 2]), samples([1, 2])
        (-4.0, {'a': 1, 'b': 2})
    """
    if not isinstance(dqm, dimod.DiscreteQuadraticModel):
        raise InvalidProblem(
            f"from_dqm takes a dimod.DiscreteQuadraticModel; got {type(dqm).__name__}. There is from_cqm for "
            "constrained models"
        )
    if not dqm.num_variables():  # type: ignore[no-untyped-call]
        raise InvalidProblem("the model has no variables, so there is nothing to choose")
    vectors = dqm.to_numpy_vectors(return_offset=True)  # type: ignore[no-untyped-call]
    total = len(vectors.linear_biases)
    offsets = np.append(np.asarray(vectors.case_starts, dtype=np.int64), total)
    sizes = np.diff(offsets)
    ends = [np.asarray(end, dtype=np.int64) for end in vectors.quadratic[:2]]
    half = sparse.coo_array((np.asarray(vectors.quadratic.biases, dtype=np.float64), ends), shape=(total, total))
    cases = np.arange(total) - np.repeat(offsets[:-1], sizes)
    labels = tuple(vectors.labels)
    problem = ChoiceProblem(
        linear=np.asarray(vectors.linear_biases, dtype=np.float64),
        group_offsets=offsets,
        costs=np.zeros((0, total), dtype=np.int64),
        limits=np.zeros(0, dtype=np.int64),
        pairs=sparse.csr_array(half + half.T) if half.nnz else None,
        group_names=unique_names(labels),
        choice_names=tuple(map(str, cases.tolist())),
        constant=float(vectors.offset),
    )
    columns = np.repeat(np.arange(sizes.size), sizes)
    later = np.flatnonzero(cases)
    values = sparse.csr_array((cases[later], (later, columns[later])), shape=(total, sizes.size))
    return problem, ModelSamples(problem, labels, values, np.arange(sizes.size))
