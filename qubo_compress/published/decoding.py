"""From bits of the published objective to plans and their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import dimod
import numpy as np

from qubo_compress.encodings.published import FiltersAndBits, bits_of_counts, to_sorted_problem
from qubo_compress.errors import InvalidAssignment
from qubo_compress.network.groups import Layout
from qubo_compress.plan import Plan
from qubo_compress.problem.choice_problem import ChoiceProblem, IntArray
from qubo_compress.published.network_layers import NetworkLayer

ZERO = "zero"


@dataclass(frozen=True, eq=False)
class PublishedPlans:
    """Makes plans of samples of the published objective; call it with a sample, or a dimod sample set.

    Attributes:
        objective: H, with its numbers from the network.
        layers: the network's, in the order of the objective's.
        layout: all groups, one per filter.
        others: choices of the groups that have no bits: vectors, and layers that were left out.
        menu_names: the choices that a plan's file can name.
        fixed_bytes: of a file, without the layers.
        weights: signature of the network's weights.
    """

    objective: FiltersAndBits
    layers: tuple[NetworkLayer, ...]
    layout: Layout
    others: Mapping[str, str]
    menu_names: tuple[str, ...]
    fixed_bytes: int
    weights: str

    def with_gamma(self, gamma: float) -> PublishedPlans:
        """The same network at another price of size."""
        return replace(self, objective=self.objective.with_gamma(gamma))

    def __call__(self, sample: Any) -> Plan:
        """The plan of a sample: a mapping from 0, 1, ... to bits, a row of bits, or of a sample set the best sample.

        Raises:
            InvalidAssignment: for another number of bits, or an empty sample set.
        """
        bits = self.bits(sample)
        return Plan(
            choices=self.choices(bits),
            bytes=self.bytes(bits),
            original_bytes=self.layout.original_bytes,
            parameters=self.layout.parameters,
            predicted_loss=float("nan"),
            menu_names=self.menu_names,
            rule=self.layout.rule,
            weights=self.weights,
        )

    def bits(self, sample: Any) -> IntArray:
        """(n,) bits of a sample, or of the sample of least energy of a sample set.

        Raises:
            InvalidAssignment: see :meth:`__call__`.
        """
        if isinstance(sample, dimod.SampleSet):
            if not len(sample):
                raise InvalidAssignment("the sample set is empty; ask for at least one read")
            sample = dict(sample.first.sample)
        return self.objective.checked(sample).astype(np.int64)

    def choices(self, sample: Any) -> dict[str, str]:
        """Group name -> choice name of a sample, in the network's order."""
        bits = self.bits(sample)
        found = dict(self.others)
        for layer, pruned, width in zip(
            self.layers, self.objective.pruned(bits), self.objective.widths(bits), strict=True
        ):
            gone = pruned if layer.prunable else np.zeros(1, dtype=bool)
            for group, out in zip(layer.groups, gone, strict=True):
                found[group.name] = ZERO if out else f"quantize(bits={width})"
        return {group.name: found[group.name] for group in self.layout.groups}

    def bytes(self, sample: Any) -> int:
        """Size of the file of a sample's plan, header included."""
        bits = self.bits(sample)
        gone = [int(pruned.sum()) for pruned in self.objective.pruned(bits)]
        removed = self.objective.most_bits - self.objective.widths(bits)
        sizes = zip(self.layers, gone, removed, strict=True)
        return self.fixed_bytes + sum(int(layer.bytes[r]) * (len(layer.groups) - k) for layer, k, r in sizes)

    @property
    def smallest_bytes(self) -> int:
        """Size of the file with everything pruned, at the smallest width."""
        return self.bytes(np.ones(self.objective.num_bits, dtype=np.int64))

    def sorted_problem(self, limit: int) -> ChoiceProblem:
        """H over one group per layer, whose choices are (number pruned, bits), under a budget of real bytes.

        See :func:`qubo_compress.encodings.published.to_sorted_problem`. With gamma = 0 it asks for the least
        L_p + beta L_q within the budget: what the search over gamma approximates.

        Raises:
            UnsupportedProblem: if feeds couple the layers.
        """
        costs = [
            (len(layer.groups) - np.arange(layer.numbers.filters + 1))[:, None] * layer.bytes[None]
            for layer in self.layers
        ]
        return to_sorted_problem(self.objective, costs, limit, self.fixed_bytes)

    def sorted_bits(self, assignment: Any) -> IntArray:
        """(n,) bits of an assignment of :meth:`sorted_problem`."""
        counts, removed = np.divmod(np.asarray(assignment), 2**self.objective.code_bits)
        return bits_of_counts(self.objective, counts.tolist(), removed.tolist()).astype(np.int64)
