"""The measure that chooses between plans, example by example, of any assignment of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from qubo_compress.calibration.evaluation import outputs_of
from qubo_compress.calibration.examples import Examples
from qubo_compress.network.private import private_copy
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.problem.network_loss import ExampleLoss
from qubo_compress.selection.comparison import HeldOut, measures
from qubo_compress.sensitivity.sample import Sample
from qubo_compress.sensitivity.stitched_choices import StitchedChoices
from qubo_compress.sensitivity.table import SensitivityTable


class HeldOutLoss(ExampleLoss):
    """:attr:`~qubo_compress.selection.comparison.Comparison.measure` of assignments, stitched into the network.

    Args:
        held_out: the original network with examples and its outputs on them, which are not counted again.
        table: whose assignments are measured.
        advance: called with the number of examples forwarded.

    Example:
        >>> import qubo_compress as qc
        >>> from torch import nn
        >>> from qubo_compress.calibration.evaluation import settle
        >>> from qubo_compress.calibration.examples import read_examples
        >>> net, data = nn.Linear(4, 3), [(torch.randn(32, 4), torch.arange(32) % 3)]
        >>> table = qc.measure(net, data, menu=qc.Menu(bits=(2,), vector_bits=()), progress=False)
        >>> loss = HeldOutLoss(HeldOut.of(net, *settle(net, read_examples(data))), table)
        >>> float(loss([0, 0])), loss.evaluations
        (0.0, 32)
    """

    def __init__(
        self, held_out: HeldOut, table: SensitivityTable, advance: Callable[[float], None] | None = None
    ) -> None:
        self.held_out, self.evaluations = held_out, 0
        self.model = private_copy(held_out.model)
        self._all = Sample(held_out.examples, held_out.reference)
        self._advance = advance
        self._order = np.arange(held_out.examples.count)
        self._choices = StitchedChoices(NetworkTensors(self.model), table)

    @property
    def weights(self) -> FloatArray:
        """(N,) weights of the examples in the order of :meth:`values`; they sum to one."""
        every = np.concatenate([part.weights.double().cpu().numpy() for part in self._all.examples.slices])
        found: FloatArray = every[self._order]
        return found

    def redraw(self, seed: int) -> None:
        """Put the examples in another random order."""
        self._order = np.random.default_rng(seed).permutation(self._order.size)

    def values(self, assignment: IntArray, start: int, stop: int) -> FloatArray:
        """(stop - start,) measures of the examples from number ``start`` up to ``stop`` of the present order."""
        numbers = self._order[start:stop]
        ranks = np.argsort(numbers, kind="stable")
        sample = self._all.select(numbers[ranks])
        assert sample.reference is not None  # noqa: S101 - held-out examples come with it
        with self._choices.stitched(assignment):
            outputs = outputs_of(self.model, sample.examples)
        self.evaluations += numbers.size
        if self._advance is not None:
            self._advance(numbers.size)
        parts = zip(sample.examples.slices, sample.reference, outputs, strict=True)
        found = np.empty(numbers.size)
        found[ranks] = torch.cat([measures(*part, self.held_out.loss) for part in parts]).numpy()
        return found

    def whole(self, count: int) -> int:
        """This many examples, or all if the network takes its batches as they are."""
        return self._order.size if self._all.examples.whole else min(count, self._order.size)

    def __call__(self, assignment: IntArray, examples: int | None = None) -> float:
        """The weighted mean over the first examples, or all."""
        count = self.whole(self._order.size if examples is None else examples)
        weights = self.weights[:count]
        return float((self.values(assignment, 0, count) * weights).sum() / weights.sum())


def joined(first: Examples, second: Examples) -> Examples:
    """All examples of two sets of one network's, every set weighted by its number of examples."""
    parts = [replace(p, weights=p.weights * e.count) for e in (first, second) for p in e.slices]
    return first.with_slices(parts, count=first.count + second.count, labelled=first.labelled and second.labelled)
