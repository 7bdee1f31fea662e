"""The real loss of a network with any choices stitched in, for searches on the network itself.

Every compressed tensor of every choice is decoded once. To score an assignment, references to them are swapped into a
private copy of the model and back: only groups that share a tensor are copied, and the model itself is never touched.
The weights equal those of :meth:`qubo_compress.Plan.apply`, bit for bit.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qubo_compress._internal.checks import refuse_unknown
from qubo_compress.calibration.evaluation import OutputOptions, outputs_of, score_examples, settle
from qubo_compress.calibration.examples import Examples, read_examples
from qubo_compress.errors import InvalidAssignment, InvalidBatches, WrongModel
from qubo_compress.menu.operator import stored_as
from qubo_compress.network.groups import Group
from qubo_compress.network.losses.classification import AUTO, LossLike, make_loss
from qubo_compress.network.private import private_copy
from qubo_compress.network.scores import OutputReading
from qubo_compress.network.tensors import NetworkTensors
from qubo_compress.network.wrappers import unwrapped
from qubo_compress.problem.network_loss import NetworkLoss

if TYPE_CHECKING:
    from qubo_compress.sensitivity.table import SensitivityTable

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 2_000_000_000
"""Bytes of compressed tensors that are kept in memory; choices beyond are made again whenever they are needed."""


@dataclass(frozen=True)
class _Sample:
    """Some of the calibration examples, and the uncompressed network's output rows on them, if needed."""

    examples: Examples
    reference: list[Tensor] | None


class StitchedLoss(NetworkLoss):
    """Mean loss of the network with an assignment's choices stitched in, on calibration examples.

    Calling it with an assignment, and optionally a number of examples, returns the loss, or infinity if it is not
    finite. Pass it to ``evopress``, ``spdy`` and ``reinforcement`` as ``loss=``. Assignments are those of
    ``table.problem(...)`` with the pins in force when this object was made.

    Args:
        model: the network that the table was measured for, on the CPU or a GPU.
        table: its groups and choices; its measured values are not used.
        batches: calibration batches; see :func:`qubo_compress.calibration.examples.read_examples`.
        loss: see :func:`qubo_compress.measure`; ``"kl"`` is that from the uncompressed network's outputs.
        max_examples: reading the batches stops there.
        slice_size: examples forwarded at once; a CPU is often faster with few. None: see ``batch_size`` of
            :func:`qubo_compress.measure`.
        memory_limit: bytes of compressed tensors kept; see :data:`MEMORY_LIMIT`.
        reading: ``output`` and ``class_axis``, how what the network returns is read; see :func:`qubo_compress.measure`.

    Raises:
        WrongModel: when the table was measured for other weights.
        InvalidBatches: for a loss that needs targets, without targets.

    Example:
        >>> import qubo_compress as qc
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
        self._all = _Sample(examples, reference)
        self._order: npt.NDArray[np.int64] = np.arange(examples.count)
        self._samples: dict[int, _Sample] = {}
        self._choices = _Choices(tensors, table, memory_limit)

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

    def _sample(self, count: int | None) -> _Sample:
        if count is None or count >= self.examples:
            return self._all
        if count < 1:
            raise InvalidBatches(f"examples must be at least 1 or None; got {count}")
        if count not in self._samples:
            self._samples[count] = _selected(self._all, np.sort(self._order[:count]))
        return self._samples[count]


def _selected(sample: _Sample, index: npt.NDArray[np.int64]) -> _Sample:
    """The examples of these rising numbers, with their share of the reference outputs."""
    chosen = sample.examples.select(index)
    if sample.reference is None:
        return _Sample(chosen, None)
    rows, start = [], 0
    for part, outputs in zip(sample.examples.slices, sample.reference, strict=True):
        inside = index[(index >= start) & (index < start + len(part))] - start
        start += len(part)
        if inside.size:
            by_example = outputs.reshape(len(part), -1, outputs.shape[-1])
            rows += list(by_example[torch.from_numpy(inside).to(outputs.device)])
    counts = np.cumsum([0, *(len(part) for part in chosen.slices)])
    return _Sample(chosen, [torch.cat(rows[a:b]) for a, b in itertools.pairwise(counts)])


class _Choices:
    """The tensors of every choice, put into a model together."""

    def __init__(self, held: NetworkTensors, table: SensitivityTable, memory_limit: int) -> None:
        self.groups, self.payloads = table.layout.groups, table.payloads
        self.held = held
        allowed = np.split(table.allowed, table.offsets[1:-1])
        self.names = [
            [name for name, is_open in zip(names, open_ones, strict=True) if is_open]
            for names, open_ones in zip(table.choices, allowed, strict=True)
        ]
        self.fits, self.numbers = (
            table.fits,
            np.split(np.flatnonzero(table.allowed), np.cumsum([*map(len, self.names)])[:-1]),
        )
        self.kept: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self.whole: dict[str, Tensor] = {}
        self.present: dict[int, int] = {}
        used = 0
        sizes = [
            sum(member.nbytes for member in group.members) * len(names)
            for group, names in zip(self.groups, self.names, strict=True)
        ]
        for number in np.argsort(sizes, kind="stable"):
            if used + sizes[number] > memory_limit:
                logger.info(
                    "the tensors of all choices take %d bytes and %d are allowed; some choices are made again each "
                    "time they are needed", sum(sizes), memory_limit,
                )  # fmt: skip
                break
            used += sizes[number]
            for choice in range(len(self.names[number])):
                self.kept[int(number), choice] = self._made(int(number), choice)

    def stitched(self, assignment: npt.ArrayLike) -> contextlib.AbstractContextManager[None]:
        """The model with the choices of an assignment in it."""
        with torch.no_grad():
            tensors = self._tensors(self._checked(assignment))
        for name, tensor in tensors.items():
            # A product takes another kernel for a weight that needs no gradient, which rounds otherwise.
            tensor.requires_grad_(self.held[name].requires_grad)
        return self.held.swapped(tensors)

    def _checked(self, assignment: npt.ArrayLike) -> list[int]:
        local = np.asarray(assignment)
        if local.shape != (len(self.groups),) or not np.issubdtype(local.dtype, np.integer):
            raise InvalidAssignment(
                f"an assignment has shape ({len(self.groups)},) and integer type; got {local.shape} {local.dtype}"
            )
        for group, names, index in zip(self.groups, self.names, local, strict=True):
            if not 0 <= index < len(names):
                raise InvalidAssignment(f"group {group.name!r} has {len(names)} open choices; got index {index}")
        return [int(index) for index in local]

    def _tensors(self, assignment: list[int]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for number, choice in enumerate(assignment):
            group = self.groups[number]
            values: tuple[Tensor, ...] | None = None
            for position, member in enumerate(group.members):
                if member.rows is not None and self.present.get(number) == choice:
                    tensors[member.name] = self.whole[member.name]
                    continue
                if values is None:
                    values = self._values(number, choice)
                tensors[member.name] = self._joined(group, position, values[position])
            self.present[number] = choice
        return tensors

    def _joined(self, group: Group, position: int, value: Tensor) -> Tensor:
        """A whole tensor; groups that own some of its rows share one, rewritten only where their choices changed."""
        member = group.members[position]
        if member.rows is None:
            return value
        if member.name not in self.whole:
            self.whole[member.name] = self.held[member.name].detach().clone()
        whole = self.whole[member.name]
        member.write(whole, value)
        return whole

    def _values(self, number: int, choice: int) -> tuple[Tensor, ...]:
        found = self.kept.get((number, choice))
        return self._made(number, choice) if found is None else found

    def _made(self, number: int, choice: int) -> tuple[Tensor, ...]:
        """The stored values of one choice, laid out in memory as the model's own tensors are."""
        group, name = self.groups[number], self.names[number][choice]
        fit = None if self.fits is None else self.fits.of(int(self.numbers[number][choice]))
        stored = stored_as(name, group, self.held.parts(group), self.payloads.get((group.name, name)), fit).tensors()
        made = []
        for member, value in zip(group.members, stored, strict=True):
            whole, tensor = member.rows is None, self.held[member.name].detach()
            home = torch.empty_like(tensor if whole else member.part(tensor))
            made.append(home.copy_(member.in_network_order(value) if whole else value))
        return tuple(made)
