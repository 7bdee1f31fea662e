"""The choice problem: pick one choice per group at the least energy within the budgets.

This is the mathematical core of the library. It uses only numpy and scipy, and knows nothing of networks or annealers.

The energy of an assignment that selects the choices S (one per group) is

    energy(S) = constant + sum_{v in S} linear[v] + 1/2 sum_{v, w in S, different groups} Q[v, w]

with Q = factor @ factor.T or Q = pairs. With a factor Q is never formed:

    energy(S) = constant + sum_{v in S} (linear[v] - 1/2 |factor[v]|^2) + 1/2 |sum_{v in S} factor[v]|^2

A budget b limits the total

    total_b(S) = fixed_costs[b] + sum_{v in S} costs[b, v] + 1/2 sum_{v, w in S} pair_costs[b][v, w] <= limits[b]
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from qubo_compress._internal.checks import refuse_unknown
from qubo_compress._internal.reader import refused_as
from qubo_compress.errors import InvalidAssignment, InvalidProblem
from qubo_compress.problem.checks import (
    check_budgets,
    check_factor,
    check_offsets,
    check_sums,
    check_totals,
    check_unique,
    read_names,
    read_vector,
)
from qubo_compress.problem.file import WHAT, read_problem, write_problem
from qubo_compress.problem.notebook import problem_html
from qubo_compress.problem.pair_costs import PairCosts, checked_pair_costs, linear_costs, pair_totals, tangent_costs
from qubo_compress.problem.pairs import checked_pairs
from qubo_compress.problem.random_values import RandomOptions, random_values

if TYPE_CHECKING:
    from collections.abc import Callable

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
FactorArray = npt.NDArray[np.float32]

_CHUNK_NUMBERS = 2**21
"""Values in the largest array that :meth:`ChoiceProblem.energies` allocates for one chunk of assignments."""

_FEW_ROWS = 4
"""Up to this many assignments, building a dense table costs more than it saves."""

_LARGEST_DENSE = 2048
"""Most choices for which :meth:`ChoiceProblem.energies` builds a dense table of pair energies."""


@dataclass(frozen=True, eq=False)
class ChoiceProblem:
    """One choice per group, pairwise energies, budgets of costs and of pair costs.

    Args:
        linear: (V,) energy of each choice alone, in units of the loss.
        group_offsets: (G + 1,) first choice of each group, ending with V; groups are contiguous.
        costs: (B, V) non-negative integer cost of each choice under each budget.
        limits: (B,) largest allowed total of each budget.
        fixed_costs: (B,) cost that no choice changes; default: zero.
        factor: (V, r) rows whose inner products are the pair energies, or None.
        pairs: (V, V) scipy sparse symmetric pair energies, both triangles stored, empty within
            groups, or None. At most one of ``factor`` and ``pairs``.
        group_names: G names; default: ``group0`` ...
        choice_names: V names, unique within each group; default: ``choice0`` ...
        budget_names: B names; default: ``budget0`` ...
        constant: added to every energy.
        pair_costs: for each budget (V, V) scipy sparse symmetric integers of either sign, both triangles stored, empty
            within groups, or None: what two choices of different groups cost together beyond the sum of each alone.
            An assignment costs ``costs @ x + 1/2 x @ pair_costs @ x``. None: no budget has any.
        size_note: what the refusal of a budget for bytes that is out of reach adds, as text.

    Attributes:
        diagonal: (V,) energy of each choice apart from pairs: linear terms less half the squared rows of the factor.

    Raises:
        InvalidProblem: when shapes disagree, values are not finite, costs are negative or sum to more than 2**53,
            or ``pairs`` or ``pair_costs`` is not symmetric or couples choices of one group.

    Example:
        >>> problem = ChoiceProblem(
        ...     linear=[0.0, 1.0, 0.0, 2.0], group_offsets=[0, 2, 4],
        ...     costs=[[8, 2, 8, 2]], limits=[10], factor=[[0.0], [1.0], [0.0], [-1.0]])
        >>> problem.energy([1, 1]), problem.is_feasible([1, 1])
        (2.0, True)
        >>> problem.deltas([1, 1], 0).tolist()
        [0.0, 0.0]
        >>> problem
        ChoiceProblem(2 groups, 4 choices, a factor of rank 1, budget0 <= 10)
    """

    linear: FloatArray
    group_offsets: IntArray
    costs: IntArray
    limits: IntArray
    fixed_costs: IntArray = None  # type: ignore[assignment]
    factor: FactorArray | None = None
    pairs: sparse.csr_array | None = None
    group_names: tuple[str, ...] = None  # type: ignore[assignment]
    choice_names: tuple[str, ...] = None  # type: ignore[assignment]
    budget_names: tuple[str, ...] = None  # type: ignore[assignment]
    constant: float = 0.0
    pair_costs: PairCosts | None = None
    size_note: str = field(default="", repr=False)
    diagonal: FloatArray = field(init=False, repr=False)
    """(V,) ``linear - 1/2 |factor|^2``: what a choice adds to half the squared norm of the sum."""

    def __post_init__(self) -> None:
        linear = read_vector("linear", self.linear, np.float64)
        offsets = read_vector("group_offsets", self.group_offsets, np.int64)
        check_offsets(offsets, linear.size)
        costs, limits, fixed = check_budgets(self.costs, self.limits, self.fixed_costs, linear.size)
        pair_costs = checked_pair_costs(self.pair_costs, limits.size, offsets)
        check_totals(costs, limits, fixed, offsets, pair_costs)
        if self.factor is not None and self.pairs is not None:
            raise InvalidProblem("both factor and pairs were given; give one of them or neither")
        if not np.isfinite(linear).all():
            raise InvalidProblem(f"linear[{int(np.flatnonzero(~np.isfinite(linear))[0])}] is not finite")
        if not np.isfinite(self.constant):
            raise InvalidProblem(f"constant is {self.constant}; it must be finite")
        factor = None if self.factor is None else check_factor(self.factor, linear.size)
        pairs = None if self.pairs is None else checked_pairs(self.pairs, offsets)
        diagonal = linear.copy()
        if factor is not None:
            diagonal -= 0.5 * np.einsum("vr,vr->v", factor, factor, dtype=np.float64)
        check_sums(diagonal, offsets, pairs)
        groups, total, count = offsets.size - 1, linear.size, limits.size
        choice_names = self.choice_names
        if choice_names is None:
            choice_names = [f"choice{v - offsets[g]}" for g in range(groups) for v in range(offsets[g], offsets[g + 1])]
        values: dict[str, Any] = {
            "linear": linear,
            "group_offsets": offsets,
            "costs": costs,
            "limits": limits,
            "fixed_costs": fixed,
            "pair_costs": pair_costs,
            "factor": factor,
            "pairs": pairs,
            "diagonal": diagonal,
            "constant": float(self.constant),
            "group_names": read_names("group_names", self.group_names, "group", groups),
            "choice_names": read_names("choice_names", choice_names, "choice", total),
            "budget_names": read_names("budget_names", self.budget_names, "budget", count),
        }
        for array in values.values():
            if isinstance(array, np.ndarray):
                array.setflags(write=False)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check_unique(self)

    def __repr__(self) -> str:
        """Its sizes, energies and limits: the arrays of a large problem would fill a notebook."""
        energies = "no pair energies"
        if self.factor is not None:
            energies = f"a factor of rank {self.factor.shape[1]}"
        elif self.pairs is not None:
            energies = f"{self.pairs.nnz // 2:,} pair energies"
        limits = ", ".join(f"{name} <= {limit:,}" for name, limit in zip(self.budget_names, self.limits, strict=True))
        return (
            f"ChoiceProblem({self.num_groups:,} groups, {self.num_choices:,} choices, {energies}, "
            f"{limits or 'no budget'}{', pair costs' if self.pair_costs is not None else ''})"
        )

    def _repr_html_(self) -> str:
        return problem_html(self)

    @property
    def num_groups(self) -> int:
        """G, the number of groups, each with one choice."""
        return self.group_offsets.size - 1

    @property
    def num_choices(self) -> int:
        """Number of choices V over all groups."""
        return self.linear.size

    @property
    def num_budgets(self) -> int:
        """B, the number of linear budgets; zero without any."""
        return self.limits.size

    @property
    def group_sizes(self) -> IntArray:
        """(G,) number of choices in each group."""
        return np.diff(self.group_offsets)

    @property
    def structure(self) -> str:
        """``"factor"``, ``"pairs"`` or ``"separable"``: how the pair energies are given."""
        if self.factor is not None:
            return "factor"
        return "pairs" if self.pairs is not None and self.pairs.nnz else "separable"

    def selected(self, assignment: npt.ArrayLike) -> IntArray:
        """(G,) global choice numbers of an assignment of local ones.

        Raises:
            InvalidAssignment: when its length is not G or an entry is out of range.
        """
        local = np.asarray(assignment)
        if local.shape != (self.num_groups,) or not np.issubdtype(local.dtype, np.integer):
            raise InvalidAssignment(
                f"an assignment has shape ({self.num_groups},) and integer type; got {local.shape} {local.dtype}"
            )
        local = local.astype(np.int64)
        outside = np.flatnonzero((local < 0) | (local >= self.group_sizes))
        if outside.size:
            group = int(outside[0])
            raise InvalidAssignment(
                f"group {self.group_names[group]!r} has {self.group_sizes[group]} choices; got index {local[group]}"
            )
        chosen: IntArray = self.group_offsets[:-1] + local
        return chosen

    def energy(self, assignment: npt.ArrayLike) -> float:
        """Energy of an assignment, in units of the loss, computed in float64."""
        chosen = self.selected(assignment)
        value = self.constant + float(self.diagonal[chosen].sum())
        if self.factor is not None:
            total = self.factor[chosen].sum(axis=0, dtype=np.float64)
            value += 0.5 * float(total @ total)
        elif self.pairs is not None:
            value += 0.5 * float(self.pairs[chosen][:, chosen].sum())
        return value

    def energies(self, assignments: npt.ArrayLike) -> FloatArray:
        """(N,) energies of (N, G) assignments, computed in float64 in chunks.

        Raises:
            InvalidAssignment: when the shape is not (N, G) or an entry is out of range.

        Example:
            >>> problem = ChoiceProblem.random(kind="dense", groups=3, choices=4, seed=0)
            >>> rows = [[0, 0, 0], [1, 2, 3]]
            >>> bool(np.allclose(problem.energies(rows), [problem.energy(row) for row in rows]))
            True
        """
        chosen = self._selected_rows(assignments)
        if len(chosen) <= _FEW_ROWS:
            return np.array([self.energy(row) for row in chosen - self.group_offsets[:-1]], dtype=np.float64)
        values = self.constant + self.diagonal[chosen].sum(axis=1)
        if self.structure == "separable":
            return np.asarray(values, dtype=np.float64)
        interactions = self._factor_energies if self.factor is not None else self._pair_energies()
        wide = self.num_groups**2 if self.factor is None else self.factor.shape[1]
        step = max(1, _CHUNK_NUMBERS // max(1, wide))
        for start in range(0, len(chosen), step):
            values[start : start + step] += interactions(chosen[start : start + step])
        return np.asarray(values, dtype=np.float64)

    def _selected_rows(self, assignments: npt.ArrayLike) -> IntArray:
        """(N, G) global choice numbers of many assignments."""
        local = np.asarray(assignments)
        if local.size == 0:
            return np.zeros((0, self.num_groups), dtype=np.int64)
        if local.ndim != 2 or local.shape[1] != self.num_groups or not np.issubdtype(local.dtype, np.integer):
            raise InvalidAssignment(
                f"assignments have shape (N, {self.num_groups}) and integer type; got {local.shape} {local.dtype}"
            )
        wrong = ((local < 0) | (local >= self.group_sizes)).any(axis=1)
        if wrong.any():
            self.selected(local[np.argmax(wrong)])  # raises and names the group
        return np.asarray(self.group_offsets[:-1] + local, dtype=np.int64)

    def _factor_energies(self, chosen: IntArray) -> FloatArray:
        """(N,) half squared norms of the summed factor rows."""
        assert self.factor is not None  # noqa: S101 - the caller checked
        sums = np.zeros((len(chosen), self.factor.shape[1]))
        for column in chosen.T:
            sums += self.factor[column]
        return np.asarray(0.5 * np.einsum("nr,nr->n", sums, sums), dtype=np.float64)

    def _pair_energies(self) -> Callable[[IntArray], FloatArray]:
        """A function that sums the pairs of a chunk of assignments: by a dense table or, if faster, sparse products."""
        assert self.pairs is not None  # noqa: S101 - the caller checked
        pairs, total = self.pairs, self.num_choices
        if total <= _LARGEST_DENSE and pairs.nnz >= self.num_groups * total:
            dense = pairs.toarray()
            return lambda chosen: 0.5 * dense[chosen[:, :, None], chosen[:, None, :]].sum(axis=(1, 2))

        def products(chosen: IntArray) -> FloatArray:
            starts = np.arange(0, chosen.size + 1, self.num_groups)
            picks = sparse.csr_array((np.ones(chosen.size), chosen.ravel(), starts), shape=(len(chosen), total))
            return np.asarray(0.5 * (picks @ pairs).multiply(picks).sum(axis=1), dtype=np.float64).ravel()

        return products

    def deltas(self, assignment: npt.ArrayLike, group: int) -> FloatArray:
        """(K,) energy(with group set to k) - energy(assignment), for every choice k of the group."""
        chosen = self.selected(assignment)
        start, stop = self.group_offsets[group], self.group_offsets[group + 1]
        values = self.diagonal[start:stop].copy()
        if self.factor is not None:
            total = self.factor[chosen].sum(axis=0, dtype=np.float64) - self.factor[chosen[group]]
            rows = self.factor[start:stop].astype(np.float64)
            values += rows @ total + 0.5 * np.einsum("kr,kr->k", rows, rows)
        elif self.pairs is not None:
            # Pairs within a group are never stored, so the group's own choice adds zero here.
            values += np.asarray(self.pairs[start:stop][:, chosen].sum(axis=1)).ravel()
        return np.asarray(values - values[chosen[group] - start], dtype=np.float64)

    def totals(self, assignment: npt.ArrayLike) -> IntArray:
        """(B,) cost of an assignment under each budget, fixed costs and pair costs included."""
        chosen = self.selected(assignment)
        totals = self.fixed_costs + self.costs[:, chosen].sum(axis=1)
        if self.pair_costs is not None:
            totals = totals + pair_totals(self.pair_costs, chosen)
        return np.asarray(totals, dtype=np.int64)

    def is_feasible(self, assignment: npt.ArrayLike) -> bool:
        """Whether an assignment's totals are within every limit."""
        return bool((self.totals(assignment) <= self.limits).all())

    def smallest_totals(self) -> IntArray:
        """(B,) the smallest reachable total of each budget alone; with pair costs, a number that is not above it."""
        if self.num_budgets == 0:
            return np.zeros(0, dtype=np.int64)
        costs, fixed = (self.costs, self.fixed_costs) if self.pair_costs is None else linear_costs(self)
        least = np.minimum.reduceat(costs, self.group_offsets[:-1], axis=1).sum(axis=1)
        return np.asarray(fixed + least, dtype=np.int64)

    def names_of(self, assignment: npt.ArrayLike) -> dict[str, str]:
        """Group name -> choice name of an assignment."""
        chosen = self.selected(assignment)
        return {group: self.choice_names[v] for group, v in zip(self.group_names, chosen, strict=True)}

    def with_limits(self, limits: npt.ArrayLike) -> ChoiceProblem:
        """The same problem under other limits; all arrays are shared."""
        return self._replace(limits=limits)

    def without_interactions(self) -> ChoiceProblem:
        """The same problem without pair energies: a separable one."""
        return self._replace(factor=None, pairs=None)

    def without_pair_costs(self, totals: str = "least") -> ChoiceProblem:
        """The same energies under budgets without pair costs; the problem itself if it has none.

        Args:
            totals: ``"least"`` are never above the true ones, so that its bounds hold for this problem; ``"most"`` are
                never below, so that what it allows is feasible here; ``"typical"`` are those beside average choices.

        Example:
            >>> problem = ChoiceProblem.random(kind="channels", groups=6, choices=3, seed=0)
            >>> relaxed, plan = problem.without_pair_costs(), [2, 0, 1, 0, 2, 1]
            >>> bool((relaxed.totals(plan) <= problem.totals(plan)).all())
            True
        """
        if self.pair_costs is None:
            return self
        costs, fixed = tangent_costs(self) if totals == "typical" else linear_costs(self, totals == "most")
        return self._replace(costs=costs, fixed_costs=fixed, pair_costs=None)

    def without_constant(self) -> ChoiceProblem:
        """The same problem with a constant of zero; all arrays are shared."""
        return self if self.constant == 0.0 else self._with_checked(constant=0.0)

    def scaled(self, share: float, least: FloatArray) -> ChoiceProblem:
        """The same choices with other energies: ``share`` times the energies less ``least``.

        Args:
            share: a power of four, so that scaling a factor by its square root is exact.
            least: (G,) energy subtracted from every choice of a group before scaling; the constant is dropped.
        """
        taken = np.repeat(least, self.group_sizes)
        changes: dict[str, Any] = {"constant": 0.0, "linear": share * (self.linear - taken)}
        changes["diagonal"] = share * (self.diagonal - taken)
        if share != 1.0 and self.factor is not None:
            changes["factor"] = self.factor * np.float32(share**0.5)
        if share != 1.0 and self.pairs is not None:
            data = share * self.pairs.data
            data.setflags(write=False)  # read-only, as before: kernels are compiled for one kind of array
            changes["pairs"] = sparse.csr_array((data, self.pairs.indices, self.pairs.indptr), shape=self.pairs.shape)
        return self._with_checked(**changes)

    def _with_checked(self, **changes: Any) -> ChoiceProblem:
        """The same problem with some values replaced by ones that need no check; nothing is copied."""
        problem = object.__new__(ChoiceProblem)
        problem.__dict__.update(self.__dict__)
        for name, value in changes.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            problem.__dict__[name] = value
        return problem

    def _replace(self, **changes: Any) -> ChoiceProblem:
        names = [name for name in self.__dataclass_fields__ if name != "diagonal"]
        return ChoiceProblem(**{name: changes.get(name, getattr(self, name)) for name in names})

    def save(self, path: str | Path) -> None:
        """Write the problem to a ``.npz`` file, atomically and without pickle.

        Raises:
            StorageError: when the file cannot be written.
        """
        write_problem(path, {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "diagonal"})

    @classmethod
    def load(cls, path: str | Path) -> ChoiceProblem:
        """Read a problem written by :meth:`save`.

        Raises:
            CorruptArtifact: when the file is not a complete problem, or was altered.
            StorageError: when it cannot be read.
            FileNotFoundError: when there is no file.
        """
        values = read_problem(path)
        with refused_as(path, WHAT, "write it again"):
            return cls(**values)

    @staticmethod
    def random(
        kind: str = "dense", groups: int = 20, choices: int = 16, seed: int = 0, **options: Any
    ) -> ChoiceProblem:
        """A random problem of a given structure: see :func:`qubo_compress.problem.generators.random_problem`."""
        refuse_unknown(ChoiceProblem.random, options, (field.name for field in fields(RandomOptions)))
        return ChoiceProblem(**random_values(kind, groups, choices, seed, RandomOptions(**options)))

    def to_bqm(
        self, encoding: str = "domain-wall", budget: str = "multiplier", **options: Any
    ) -> tuple[Any, Callable[..., Any]]:
        """A dimod binary quadratic model and its inverse: see :func:`qubo_compress.encodings.to_bqm`."""
        from qubo_compress.encodings import to_bqm

        return to_bqm(self, encoding=encoding, budget=budget, **options)

    def to_cqm(self) -> tuple[Any, Callable[..., Any]]:
        """A dimod constrained quadratic model and its inverse: see :func:`qubo_compress.encodings.to_cqm`."""
        from qubo_compress.encodings import to_cqm

        return to_cqm(self)

    def to_dqm(self, budget: str = "multiplier", **options: Any) -> tuple[Any, Callable[..., Any]]:
        """A dimod discrete quadratic model and its inverse: see :func:`qubo_compress.encodings.to_dqm`."""
        from qubo_compress.encodings import to_dqm

        return to_dqm(self, budget=budget, **options)

    def to_nonlinear(self) -> tuple[Any, Callable[..., Any]]:
        """A dwave-optimization model and its inverse: see :func:`qubo_compress.encodings.to_nonlinear`."""
        from qubo_compress.encodings import to_nonlinear

        return to_nonlinear(self)

    @staticmethod
    def from_cqm(cqm: Any) -> tuple[ChoiceProblem, Any]:
        """The problem of a dimod constrained model, and its inverse: see :func:`qubo_compress.encodings.from_cqm`."""
        from qubo_compress.encodings import from_cqm

        return from_cqm(cqm)

    @staticmethod
    def from_dqm(dqm: Any) -> tuple[ChoiceProblem, Any]:
        """The problem of a dimod discrete model, and its inverse: see :func:`qubo_compress.encodings.from_dqm`."""
        from qubo_compress.encodings import from_dqm

        return from_dqm(dqm)

    def to_lp(self, path: str | Path) -> Any:
        """Write an LP file and return its inverse: see :func:`qubo_compress.encodings.to_lp`."""
        from qubo_compress.encodings import to_lp

        return to_lp(self, path)

    @staticmethod
    def from_lp(path: str | Path) -> tuple[ChoiceProblem, Any]:
        """The problem of an LP file, and its inverse: see :func:`qubo_compress.encodings.from_lp`."""
        from qubo_compress.encodings import from_lp

        return from_lp(path)
