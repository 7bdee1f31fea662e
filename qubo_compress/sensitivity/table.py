"""The sensitivity table: the costs of every choice and every pair, measured once and solved repeatedly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from torch import nn

from qubo_compress._internal.reader import refused_as
from qubo_compress.budget import Budget, refuse_other_than_a_budget
from qubo_compress.errors import InvalidBudget, InvalidMenu, InvalidOption, TablesDiffer, unknown_name
from qubo_compress.menu.operator import parse
from qubo_compress.menu.storage.many import Fits
from qubo_compress.network.groups import Layout
from qubo_compress.network.losses.classification import AUTO, LossLike
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import ChoiceProblem, FactorArray, FloatArray, IntArray
from qubo_compress.sensitivity.coupled.choices import RemovalChoices
from qubo_compress.sensitivity.coupled.mixed_problem import mixed_problem
from qubo_compress.sensitivity.coupled.plans import plan_of_channels
from qubo_compress.sensitivity.coupled.remainder import Remainder
from qubo_compress.sensitivity.fewer_choices import fewer_choices
from qubo_compress.sensitivity.infeasible import size_note
from qubo_compress.sensitivity.latency_costs import with_latency
from qubo_compress.sensitivity.merge import merged_fields, refuse_different, shares_of, tables_of_ranks
from qubo_compress.sensitivity.notebook import table_html
from qubo_compress.sensitivity.provenance import Provenance
from qubo_compress.sensitivity.ranks import ranks_of
from qubo_compress.sensitivity.stitched_loss import StitchedLoss
from qubo_compress.sensitivity.table_file import WHAT, read_table, write_table

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from qubo_compress.solvers.solution import Solution


@dataclass(eq=False)
class SensitivityTable:
    """Linear terms, a factor or pairs, and costs of every choice of every group.

    Attributes:
        layout: groups, and what is kept with reasons.
        menu_names: all choices of the menu.
        choices: for every group, the names of its choices, ``keep`` first.
        linear: (V,) loss change of each choice alone, relative to ``constant``.
        costs: budget name -> (V,) cost.
        fixed_costs: budget name -> cost that no choice changes.
        factor: (V, r) rows, or None.
        pairs: sparse (V, V), or None.
        constant: loss change of the point of measurement: zero, except for refined tables.
        divergence: (V,) divergence of each choice alone from the original, less that of the base model, or None.
        provenance: how the table came about.
        allowed: (V,) choices that pins leave open.
        payloads: (group name, choice name) -> stored bytes of choices made from data.
        fits: the results of encoding's searches for every choice, or None.
        kept_because: group name -> why it has only ``keep``, if the menu is not the reason.
        pair_costs: budget name -> sparse symmetric (V, V) cost of two choices together, for decisions about channels.
        removals: what the decisions about channels need, or None.
        optimism: (V,) by how much choices made from the examples were corrected, see
            :mod:`qubo_compress.sensitivity.optimism`; None for a table that was read.
        remainder: for a table of a network that lacks channels of another one: that network, whose plans are made.
    """

    layout: Layout
    menu_names: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    linear: FloatArray
    costs: Mapping[str, IntArray]
    fixed_costs: Mapping[str, int]
    provenance: Provenance
    factor: FactorArray | None = None
    pairs: sparse.csr_array | None = None
    constant: float = 0.0
    divergence: FloatArray | None = None
    allowed: np.ndarray = None  # type: ignore[assignment]
    payloads: Mapping[tuple[str, str], bytes] = field(default_factory=dict, repr=False)
    fits: Fits | None = field(default=None, repr=False)
    kept_because: Mapping[str, str] = field(default_factory=dict)
    pair_costs: Mapping[str, sparse.csr_array] = field(default_factory=dict, repr=False)
    removals: RemovalChoices | None = field(default=None, repr=False)
    remainder: Remainder | None = field(default=None, repr=False)
    optimism: FloatArray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.allowed is None:
            self.allowed = np.ones(self.linear.size, dtype=bool)

    def __repr__(self) -> str:
        """Its sizes and how it was measured: the arrays would fill a notebook."""
        pairs = "no pairs"
        if self.factor is not None:
            pairs = f"a factor of rank {self.factor.shape[1]}"
        elif self.pairs is not None:
            pairs = f"{self.pairs.nnz // 2:,} pairs"
        return (
            f"SensitivityTable({len(self.choices):,} groups, {self.linear.size:,} choices, {pairs}, "
            f"{self.provenance.metric} on {self.provenance.examples:,} examples)"
        )

    def _repr_html_(self) -> str:
        return table_html(self)

    def save(self, path: str | Path) -> None:
        """Write the table to one ``.npz`` file, atomically and without pickle, so that it is solved elsewhere or later.

        Raises:
            InvalidOption: for a table about channels (``groups="channel"``), which holds the network itself.
            StorageError: when the file cannot be written.
        """
        write_table(path, self)

    @classmethod
    def load(cls, path: str | Path) -> SensitivityTable:
        """Read a table written by :meth:`save`; neither the network nor its examples are needed.

        Raises:
            CorruptArtifact: when the file is not a complete table, or was altered.
            StorageError: when it cannot be read.
            FileNotFoundError: when there is no file.
        """
        values = read_table(path)
        with refused_as(path, WHAT, "measure again"):
            return cls(**values)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The names of all groups, in order."""
        return tuple(group.name for group in self.layout.groups)

    @property
    def offsets(self) -> IntArray:
        """(G + 1,) first choice of each group."""
        return np.concatenate([[0], np.cumsum([len(names) for names in self.choices])]).astype(np.int64)

    def pin(self, group: str, choice: str) -> SensitivityTable:
        """Allow only one choice for a group, instead of an earlier pin's; changes this table and returns it.

        Raises:
            UnknownName: when the group or the choice does not exist.
            InvalidMenu: when :meth:`minimum_bits` forbids the choice; :meth:`unpin` allows all again.
        """
        return self._restrict(group, lambda name: name == choice, choice)

    def leave_alone(self, group: str) -> SensitivityTable:
        """Pin a group to ``keep``, so that it stays uncompressed."""
        return self.pin(group, "keep")

    def minimum_bits(self, group: str, bits: int) -> SensitivityTable:
        """Forbid the choices of a group that quantize to fewer bits.

        Args:
            group: its name, or a regular expression: all groups with bits whose whole names it matches, biases too.
            bits: fewest bits allowed.

        Raises:
            UnknownName: when it matches no group.
            InvalidMenu: when nothing would be left, or the groups are decisions about channels.
        """
        matching = [name for name in self.group_names if name == group or re.fullmatch(group, name)]
        if not matching:
            raise unknown_name("group", group, self.group_names)
        if self.removals is not None:
            matching = [name for name in matching if name in self.removals.layers]
        if not matching:
            raise InvalidMenu(f"{group!r} names only decisions about channels, which have no bits; name a layer")
        for name in matching:
            self._restrict(name, lambda choice: (parse(choice).code_bits or bits) >= bits, None)
        return self

    def narrowed(self, names: Iterable[str]) -> SensitivityTable:
        """A table of fewer choices, as if the menu had only these: nothing is measured again.

        A file lists the menu in its header, so a shorter menu also leaves more bytes for the weights.

        Args:
            names: choices to offer; ``keep`` stays on every menu. Pins stay in force.

        Raises:
            UnknownName: when a name is not on this table's menu.
            InvalidMenu: when a pinned group would lose its last open choice.
        """
        return replace(self, **fewer_choices(self, names))

    @classmethod
    def merge(
        cls,
        tables: Sequence[SensitivityTable],
        weights: Sequence[float] | None = None,
        max_rank: int | None = 1024,
        seed: int = 0,
    ) -> SensitivityTable:
        """Merge tables that were measured on different examples into one, as if measured on all of them.

        With s_k the share of table k in the examples, linear terms, divergences, pairs and harmful flips are
        ``sum_k s_k`` of the tables'; the factor's rows are the tables' rows, concatenated, times ``sqrt(s_k)``, reduced
        to ``max_rank`` columns. The shrinkage of the tables' pair energies is undone first, and the trust of the joined
        rows is computed from how well the tables agree with each other; see
        :func:`qubo_compress.sensitivity.shrinkage.agreement_of_parts`. Tables that all kept the same share, such as
        those of ``interactions=1.0``, keep it. A table with zero trust has lost its rows, and its pairs count as zero.

        The result differs from a single measurement if rows were limited to their divergence, or slopes of the loss to
        the whole loss: that was done to each table separately.

        Args:
            tables: of the same network, menu, groups, metric and loss; at least one.
            weights: of the tables; default: the numbers of examples. Give the sums of the example weights, or the
                numbers of labels that are not ignored, if these differ.
            max_rank: largest number of columns of the factor.
            seed: of all random draws.

        Returns:
            A table with the pins that all tables have in common. ``provenance.seconds`` is the sum.

        Raises:
            TablesDiffer: naming the difference; also for tables measured around a plan, and for one table given twice.
            InvalidBatches: when the weights are not positive numbers, one per table.

        Example:
            >>> import torch, qubo_compress as qc
            >>> model, data = nn.Sequential(nn.Linear(4, 3)), [torch.randn(16, 4) for _ in range(2)]
            >>> menu = qc.Menu(bits=(2, 8), sparsity=(0.0,))
            >>> shards = [qc.measure(model, [batch], menu=menu, progress=False) for batch in data]
            >>> SensitivityTable.merge(shards).provenance.examples
            32
        """
        shares = shares_of(tables, weights)
        if any(table.removals is not None for table in tables):
            raise TablesDiffer(
                "tables about channels cannot be merged: each has its own moments; measure one on all examples"
            )
        refuse_different(tables)
        return replace(tables[0], **merged_fields(tables, shares, max_rank, seed))

    def merge_ranks(
        self,
        process_group: ProcessGroup | bool = True,
        weight: float | None = None,
        max_rank: int | None = 1024,
        seed: int = 0,
    ) -> SensitivityTable:
        """The tables of all ranks of ``torch.distributed``, merged on every rank; all ranks must call.

        For use with a DistributedSampler, where every rank has its own examples: each rank measures its table with
        ``qc.measure(..., process_group=False)`` and calls this.

        Args:
            process_group: see :func:`qubo_compress.measure`; if nothing is initialised, only this table is merged.
            weight: of this rank's table; default: the number of its examples.
            max_rank: largest number of columns of the factor.
            seed: of all random draws.

        Raises:
            RanksDisagree: naming the difference, when the tables are not of the same choices of the same network.
            RankFailed: when another rank raised an error or stopped answering.
            TablesDiffer, InvalidBatches: see :meth:`merge`.
        """
        ranks = ranks_of(process_group)
        with ranks.together():
            tables, weights = tables_of_ranks(self, ranks, weight)
            return self.merge(tables, weights, max_rank, seed)

    def unpin(self, group: str) -> SensitivityTable:
        """Allow every choice of a group again."""
        self.allowed[self._range(group)] = True
        return self

    def _range(self, group: str) -> slice:
        if group not in self.group_names:
            raise unknown_name("group", group, self.group_names)
        index = self.group_names.index(group)
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def _restrict(self, group: str, keeps: object, wanted: str | None) -> SensitivityTable:
        where = self._range(group)
        names = self.choices[self.group_names.index(group)]
        if wanted is not None and wanted not in names:
            raise unknown_name(f"choice of group {group!r}:", wanted, names)
        left = [name for name, allowed in zip(names, self.allowed[where], strict=True) if allowed]
        if wanted is not None and wanted not in left and len(left) > 1:
            forbidden = f"{wanted!r} is forbidden for {group!r} by minimum_bits, which leaves {', '.join(left)}"
            raise InvalidMenu(f"{forbidden}; pin one of these, or call unpin({group!r}) first")
        open_choices = np.array([bool(keeps(name)) for name in names])  # type: ignore[operator]
        if wanted is None:
            open_choices &= self.allowed[where]
        if not open_choices.any():
            raise InvalidMenu(f"no choice would be left for {group!r}; its choices are {', '.join(names)}")
        self.allowed[where] = open_choices
        return self

    def problem(
        self, budget: Budget, interactions: bool = True, around: Solution | Mapping[str, str] | None = None
    ) -> ChoiceProblem:
        """The choice problem under a budget; measures nothing.

        Args:
            budget: the limits.
            interactions: False: only linear terms.
            around: for a table with choices of layers beside decisions about channels, whose prices are products of
                three choices: a plan around which they are expanded, and where they are exact. Default: the network as
                it is, around which no price is too low. Costs then count
                ``1/256`` of a byte or a multiplication; see :mod:`qubo_compress.sensitivity.coupled.layer_prices`.

        Raises:
            InvalidBudget: when it limits harmful flips, which this table did not count, or milliseconds of choices that
                its latency table does not know.
            InvalidOption: when ``around`` is given for a table whose prices do not depend on it.
            UnknownName: when it names a group or a choice that does not exist.
        """
        refuse_other_than_a_budget(budget)
        limits = budget.limits(self.layout.original_bytes, self.layout.parameters)
        if "harmful_flips" in limits and "harmful_flips" not in self.costs:
            raise InvalidBudget(
                "this table does not know the harmful flips of its choices: it was measured by "
                f"{self.provenance.metric!r}. They need class labels and a metric that runs every choice: "
                "'gauss-newton', 'pairwise', or 'jacobian' and 'fisher' with measured_linear=True. "
                "Measure again, or leave harmful_flips out"
            )
        costs, fixed_costs = self.costs_under(budget)
        if self.removals is not None and self.removals.prices is not None:
            choices = self.assignment({} if around is None else self.chosen(around))
            return mixed_problem(self, self.removals.prices, limits, choices, interactions)
        if around is not None:
            raise InvalidOption(
                "around was given, and the prices of this table do not depend on a plan: leave it out. It is for "
                "tables measured with groups='channel' and a menu"
            )
        index = np.flatnonzero(self.allowed)
        group_of = np.repeat(np.arange(len(self.choices)), np.diff(self.offsets))[index]
        counts = np.bincount(group_of, minlength=len(self.choices))
        names = [name for group in self.choices for name in group]
        return ChoiceProblem(
            linear=self.linear[index],
            group_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            costs=np.stack([costs[name][index] for name in limits]),
            limits=np.array(list(limits.values()), dtype=np.int64),
            fixed_costs=np.array([fixed_costs.get(name, 0) for name in limits], dtype=np.int64),
            factor=self.factor[index] if interactions and self.factor is not None else None,
            pairs=self.pairs[index][:, index] if interactions and self.pairs is not None else None,
            group_names=self.group_names,
            choice_names=tuple(names[i] for i in index),
            budget_names=tuple(limits),
            pair_costs=tuple(self.pair_costs[name][index][:, index] for name in limits) if self.pair_costs else None,
            constant=self.constant,
            size_note=size_note(self, costs["bytes"], fixed_costs["bytes"], limits["bytes"]),
        )

    def costs_under(self, budget: Budget) -> tuple[Mapping[str, IntArray], Mapping[str, int]]:
        """Costs and fixed costs by budget name, with those of the budget's own latency table.

        Raises:
            InvalidBudget: when that table is of another network, or lacks a choice.
        """
        if budget.latency is None:
            return self.costs, self.fixed_costs
        if self.removals is not None:
            raise InvalidBudget(
                "milliseconds were limited, and a latency table knows whole layers, not channels: limit macs, and "
                "measure the smaller network"
            )
        return with_latency(budget.latency, self.layout, self.choices, self.costs, self.fixed_costs)

    def plan(self, solution: Solution | Mapping[str, str]) -> Plan:
        """The plan of a solution, or of group name -> choice name (missing groups are kept).

        Raises:
            UnknownName: when a group or a choice does not exist.
        """
        chosen = self.chosen(solution)
        if self.removals is not None:
            return plan_of_channels(self, self.removals, chosen)
        local = self.assignment(chosen)
        plan = Plan(
            choices=chosen,
            bytes=int(self.fixed_costs["bytes"] + self.costs["bytes"][self.offsets[:-1] + local].sum()),
            original_bytes=self.layout.original_bytes,
            parameters=self.layout.parameters,
            predicted_loss=self.predict(chosen),
            menu_names=self.menu_names,
            rule=self.layout.rule,
            weights=self.provenance.weights,
            payloads={g: self.payloads[g, name] for g, name in chosen.items() if (g, name) in self.payloads},
            fits=self._fits_of(self.offsets[:-1] + local),
        )
        return plan if self.remainder is None else self.remainder.on_whole(plan)

    def chosen(self, solution: Solution | Mapping[str, str]) -> dict[str, str]:
        """Group -> choice of all groups; those that are missing are kept.

        Raises:
            UnknownName: when a group or a choice does not exist.
        """
        named = dict(solution if isinstance(solution, Mapping) else solution.choices)
        unknown = sorted(set(named) - set(self.group_names))
        if unknown:
            raise unknown_name("group", unknown[0], self.group_names)
        chosen = {}
        for group, names in zip(self.group_names, self.choices, strict=True):
            chosen[group] = named.get(group, "keep")
            if chosen[group] not in names:
                raise unknown_name(f"choice of group {group!r}:", chosen[group], names)
        return chosen

    def _fits_of(self, chosen: IntArray) -> dict[str, bytes]:
        """The results of encoding's searches for one choice per group."""
        if self.fits is None:
            return {}
        return {group: self.fits.of(int(v)) for group, v in zip(self.group_names, chosen, strict=True)}

    def assignment(self, choices: Mapping[str, str]) -> IntArray:
        """(G,) local indices, among all choices of this table, of group name -> choice name."""
        pairs = zip(self.group_names, self.choices, strict=True)
        return np.array([names.index(choices.get(group, "keep")) for group, names in pairs], dtype=np.int64)

    def predict(self, choices: Mapping[str, str], interactions: bool = True) -> float:
        """Predicted loss change of group name -> choice name."""
        local = self.assignment(choices)
        chosen = self.offsets[:-1] + local
        left = np.ones(len(chosen))
        if self.removals is not None and self.removals.prices is not None:
            left = self.removals.prices.weights_left(local)
        value = self.constant + float(self.linear[chosen] @ left)
        if interactions and self.factor is not None:
            rows = self.factor[chosen].astype(np.float64) * np.sqrt(left)[:, None]
            value += 0.5 * (float((rows.sum(0) ** 2).sum()) - float((rows**2).sum()))
        elif interactions and self.pairs is not None:
            value += 0.5 * float(self.pairs[chosen][:, chosen].sum())
        return value

    def stitched_loss(
        self, model: nn.Module, batches: Iterable[Any], loss: LossLike = AUTO, **options: Any
    ) -> StitchedLoss:
        """The real loss of the network with any assignment of :meth:`problem` stitched in.

        See :class:`qubo_compress.StitchedLoss` for its other options.

        Raises:
            InvalidOption: for a table with decisions about channels, whose plans change the shapes of layers.
        """
        if self.removals is not None:
            raise InvalidOption(
                "plans of this table remove channels, and layers of other shapes cannot be stitched in: apply the "
                "plans with table.plan(...).apply(model), or measure with groups='layer'"
            )
        return StitchedLoss(model, self, batches, loss, **options)

    def with_linear(self, linear: FloatArray) -> SensitivityTable:
        """The same table with other linear terms, for studies."""
        return replace(self, linear=linear, allowed=self.allowed.copy())
