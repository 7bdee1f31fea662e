"""The real loss of a network with any choices stitched in, for searches on the network itself.

Every compressed tensor of every choice is decoded once. To score an assignment, references to them are swapped into a
private copy of the model and back: only groups that share a tensor are copied, and the model itself is never touched.
The weights equal those of :meth:`qubo_compress.Plan.apply`, bit for bit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
from torch import nn

from qubo_compress._internal.checks import refuse_unknown
from qubo_compress.calibration.evaluation import OutputOptions, outputs_of, score_examples, settle
from qubo_compress.calibration.examples import read_examples
from qubo_compress.errors import InvalidBatches, WrongModel
from qubo_compress.network.losses.classification import AUTO, LossLike, make_loss
from qubo_compress.network.private import private_copy
from qubo_compress.network.scores import OutputReading
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.problem.choice_problem import FloatArray, IntArray
from qubo_compress.problem.network_loss import ExampleLoss
from qubo_compress.sensitivity.sample import Sample
from qubo_compress.sensitivity.stitched_choices import MEMORY_LIMIT, StitchedChoices

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable

logger = logging.getLogger(__name__)


class StitchedLoss(ExampleLoss):
    """Mean loss of the network with an assignment's choices stitched in, on calibration examples.

    Calling it with an assignment, and optionally a number of examples, returns the loss, or infinity if it is not
    finite. Pass it to ``surrogate``, ``evopress``, ``spdy`` or ``reinforcement`` as ``loss=``. Assignments are those of
    ``table.problem(...)`` with the pins in force when this object was made.

    Args:
        model: the network that the table was measured for, on the CPU or a GPU.
        table: its groups and choices; its measured values are not used.
        batches: calibration batches; see :func:`qubo_compress.calibration.examples.read_examples`.
        loss: see :func:`qubo_compress.measure`; ``"kl"`` is that from the uncompressed network's outputs.
        max_examples: reading the batches stops there.
        slice_size: examples forwarded at once; a CPU is often faster with few. None: see ``batch_size`` of
            :func:`qubo_compress.measure`.
        memory_limit: bytes of compressed tensors kept; see :mod:`qubo_compress.sensitivity.stitched_choices`.
        reading: ``output`` and ``class_axis``, how what the network returns is read; see :func:`qubo_compress.measure`.

    Raises:
        WrongModel: when the table was measured for other weights.
        InvalidBatches: for a loss that needs targets, without targets.

    Example:
        >>> import torch, qubo_compress as qc
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> data = [(torch.randn(16, 4), torch.randint(3, (16,)))]
        >>> table = qc.measure(model, data, menu=qc.Menu(bits=(2, 8), sparsity=(0.0,)), progress=False)
        >>> loss = StitchedLoss(model, table, data, loss="kl")
        >>> loss([0, 0, 0, 0]), loss.evaluations
        (0.0, 50)
        >>> bool(loss([1, 1, 1, 1], 4) > 0), loss.evaluations
        (True, 54)
    """

    def __init__(
        self,
        model: nn.Module,
        table: SensitivityTable,
        batches: Iterable[Any],
        loss: LossLike = AUTO,
        max_examples: int = 2048,
        slice_size: int | None = None,
        memory_limit: int = MEMORY_LIMIT,
        **reading: Unpack[OutputOptions],
    ) -> None:
        refuse_unknown(StitchedLoss, reading, OutputOptions.__annotations__)
        model = unwrapped(model)
        if NetworkTensors(model).signature() != table.provenance.weights:
            raise WrongModel("the table was measured for other weights; measure this network, or give the one measured")
        model = private_copy(model)
        tensors = NetworkTensors(model)
        examples = read_examples(batches, max_examples, slice_size, OutputReading(**reading)).to(tensors.device)
        examples, loss = settle(model, examples, loss)
        self.model, self.loss = model, loss
        checked = make_loss(loss)
        if checked.needs_targets and not examples.labelled:
            raise InvalidBatches("the loss needs targets; give (inputs, targets) batches or loss='kl'")
        #: Examples forwarded through the network so far; those for the uncompressed outputs count too, and the first
        #: ones, which show how outputs are read.
        self.evaluations = examples.shown
        reference = None
        if not checked.needs_targets and (loss == "kl" or not examples.labelled):
            reference = outputs_of(model, examples)
            self.evaluations += examples.count
        self._all = Sample(examples, reference)
        self._order: npt.NDArray[np.int64] = np.arange(examples.count)
        self._samples: dict[int, Sample] = {}
        self._choices = StitchedChoices(tensors, table, memory_limit)

    @property
    def examples(self) -> int:
        """The number of calibration examples that it has."""
        return self._all.examples.count

    def redraw(self, seed: int) -> None:
        """Draw a new random sample for calls with fewer than all examples; initially these use the first ones."""
        self._order = np.random.default_rng(seed).permutation(self.examples)
        self._samples.clear()

    def __call__(self, assignment: npt.ArrayLike, examples: int | None = None) -> float:
        """Mean loss on a sample of this many examples, the same for every assignment until :meth:`redraw`.

        Args:
            assignment: (G,) local index of the choice of each group.
            examples: how many; None, or as many as there are: all.

        Raises:
            InvalidAssignment: when the assignment is not one of the table's.
            InvalidBatches: when ``examples`` is below 1.
        """
        sample = self._sample(examples)
        with self._choices.stitched(assignment):
            self.evaluations += sample.examples.count
            value = score_examples(self.model, sample.examples, self.loss, sample.reference).loss
        return value if math.isfinite(value) else math.inf

    @property
    def weights(self) -> FloatArray:
        """(N,) weights of the examples in the order of :meth:`values`; they sum to one."""
        every = np.concatenate([part.weights.double().cpu().numpy() for part in self._all.examples.slices])
        found: FloatArray = every[self._order]
        return found

    def values(self, assignment: IntArray, start: int, stop: int) -> FloatArray:
        """(stop - start,) losses of the examples from number ``start`` up to ``stop`` of the present order.

        Raises:
            InvalidAssignment: when the assignment is not one of the table's.
            InvalidModel: for a part of batches that must not be split.
        """
        numbers = self._order[start:stop]
        ranks = np.argsort(numbers, kind="stable")
        sample = self._all.select(numbers[ranks])
        with self._choices.stitched(assignment):
            self.evaluations += sample.examples.count
            values = self._per_example(sample)
        found = np.empty(numbers.size)
        found[ranks] = values
        return found

    def whole(self, count: int) -> int:
        """This many examples, or all if the network takes its batches as they are."""
        return self.examples if self._all.examples.whole else min(count, self.examples)

    def _per_example(self, sample: Sample) -> FloatArray:
        """(n,) losses; an example's rows count as they do in the mean over all examples."""
        checked, found = make_loss(self.loss), []
        for number, (part, rows) in enumerate(
            zip(sample.examples.slices, outputs_of(self.model, sample.examples), strict=True)
        ):
            targets = None if part.targets is None else part.targets.to(rows.device)
            values = checked.values(rows, targets, rows if sample.reference is None else sample.reference[number])
            shares = self._all.examples.row_shares(part, len(rows)).to(rows.device)
            found.append((values.double().reshape(shares.shape) * shares).sum(1).cpu().numpy())
        return np.concatenate(found)

    def _sample(self, count: int | None) -> Sample:
        if count is None or count >= self.examples:
            return self._all
        if count < 1:
            raise InvalidBatches(f"examples must be at least 1 or None; got {count}")
        if count not in self._samples:
            self._samples[count] = self._all.select(np.sort(self._order[:count]))
        return self._samples[count]
