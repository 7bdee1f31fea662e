"""Products: all rows of the Gauss-Newton model from backward passes, without running any choice.

With probes q_ns = B_n e_ns, e of random signs and B_n a root of the output Hessian H_n, E[q q^T] = H_n, so

    A[v]_ns = < d(v), G_ns > sqrt(weight_n / S),    G_ns the gradient of q_ns . z_n by the changed weights

has inner products whose mean over the signs is the Gauss-Newton pair energy sum_n weight_n dz_n(v)^T H_n dz_n(w), to
first order in the displacements. A backward pass per probe gives the gradient delta of every layer's output; in that
pass, layer by layer, G is formed per example and multiplied with the displacements of all choices, or the layer is
called with the displacements as its weight, whichever takes fewer multiplications. The cost is 1 + S passes plus the
layers' gradients, whatever the depth and the number of groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from qubo_compress.calibration.examples import Slice
from qubo_compress.errors import InvalidMenu
from qubo_compress.problem.choice_problem import FloatArray
from qubo_compress.sensitivity.cache import Unit
from qubo_compress.sensitivity.forward_sweep import forward_sweep
from qubo_compress.sensitivity.metric import Metric, MetricResult, metrics
from qubo_compress.sensitivity.metrics.products.displacements import Block, ColumnBlock, Displacements, RowBlock
from qubo_compress.sensitivity.metrics.products.inspection import inspect
from qubo_compress.sensitivity.metrics.products.slices import Structure, slice_products
from qubo_compress.sensitivity.ranks import Arrays
from qubo_compress.sensitivity.subject import Subject

SLICE_BYTES, JOINED_BYTES = 400_000_000, 200_000_000
"""Most bytes of layer inputs and outputs in one pass: of one of the caller's batches, and of several joined.

With a quarter as much, a ResNet-110 sees five examples at a time, and the overhead per layer exceeds its gradients;
with twice as much, passes spend more time on fresh pages from the operating system.
"""

ROWS_WANTED, MOST_PROBES = 512, 16
"""With fewer rows the pair energies drown in the signs' noise: 32 images of a ResNet-20 with one probe were useless."""

CLOSE = "close"
MEASURED_LINEAR = (False, True, CLOSE)


@metrics.register
@dataclass(frozen=True)
class Products(Metric):
    """Probes through the network's output Hessian, and products of displacements with gradients per example.

    Linear terms are half the squared row plus, with ``first_order`` and a loss that has a slope, the mean slope of the
    loss along the displacement. The cost grows with the network, the examples and the choices, not with depth.

    Args:
        probes: S, backward passes per example. More examples help more than more probes; None: one, and with few
            examples as many as give 512 rows, up to 16.
        measured_linear: True: linear terms by one run of the network per choice, as ``gauss-newton`` measures them;
            ``"close"``: in :func:`qubo_compress.compress`, for the choices that the first solve or its pool uses.
        first_order: whether the linear terms of cross-entropy, and of other losses with a slope at the network's own
            outputs, include that slope. Without it they are divergences from the given network. None: if the
            measurement's ``shrinkage`` leaves a share for it.

    Raises:
        InvalidMenu: for settings out of range.
    """

    metric_name: ClassVar[str] = "products"
    sees_inputs: ClassVar[bool] = True
    probes: int | None = None
    measured_linear: bool | str = False
    first_order: bool | None = None

    def __post_init__(self) -> None:
        if self.probes is not None and not (isinstance(self.probes, int) and self.probes >= 1):
            raise InvalidMenu(f"probes must be a whole number of at least 1, or None; got {self.probes!r}")
        if self.measured_linear not in MEASURED_LINEAR:
            raise InvalidMenu(f"measured_linear must be False, True or 'close'; got {self.measured_linear!r}")

    @property
    def counts_flips(self) -> bool:
        """True if every choice is run, as ``measured_linear=True`` asks."""
        return self.measured_linear is True

    @property
    def knows_halves(self) -> bool:
        """Whether linear terms are measured on two halves of the examples: only if every choice is run."""
        return self.measured_linear is True

    def probes_of(self, subject: Subject) -> int:
        """S, the number of probes, for the examples of a subject."""
        if self.probes is not None:
            return self.probes
        return max(1, min(MOST_PROBES, round(ROWS_WANTED / max(1, subject.examples.count))))

    def has_slope(self, subject: Subject) -> bool:
        """Whether the linear terms include slopes of the loss."""
        return subject.first_order if self.first_order is None else self.first_order

    def evaluations(self, subject: Subject) -> float:
        """A forward pass, and about two more for each backward pass."""
        passes = self.probes_of(subject) + int(self.has_slope(subject))
        return 1.0 + 2.0 * passes + (float(subject.offsets[-1]) if self.measured_linear is True else 0.0)

    def measure(self, subject: Subject) -> MetricResult:
        """Rows and slopes from one slice of examples after another; each slice is a unit of the cache."""
        collection = _Collection(subject, self)
        rows, slope = collection.gathered()
        half_squares = 0.5 * np.einsum("vc,vc->v", rows, rows, dtype=np.float64)
        linear, divergence, halves, flips = half_squares + slope, half_squares, None, None
        if self.measured_linear is True:
            found = forward_sweep(subject, "linear", with_features=False)
            linear, divergence, halves, flips = found.linear, found.divergence, found.halves, found.flips
        features, runs = rows if subject.interactions else None, int(np.ceil(self.evaluations(subject)))
        second_half = np.repeat(np.arange(subject.examples.count) % 2 == 1, self.probes_of(subject))
        return MetricResult(linear, features, None, runs, divergence, halves, flips, second_half)


@dataclass(frozen=True, eq=False)
class AddedChoices:
    """Choices that are not those of a subject's groups, numbered behind them.

    Attributes:
        count: how many.
        blocks: parameter -> their displacements of it.
    """

    count: int = 0
    blocks: Mapping[str, Sequence[Block | ColumnBlock]] = field(default_factory=dict)


def rows_with(subject: Subject, settings: Products, added: AddedChoices) -> tuple[np.ndarray, FloatArray]:
    """Rows and slopes of a subject's choices and of added ones, from the same probes; see :class:`Products`."""
    return _Collection(subject, settings, added).gathered()


class _Collection:
    """Rows of all choices over all examples.

    Args:
        subject: the measurement.
        settings: of the metric.
        added: choices that are not those of the subject's groups.
    """

    def __init__(self, subject: Subject, settings: Products, added: AddedChoices | None = None) -> None:
        self.subject, self.settings = subject, settings
        self.added = added or AddedChoices()
        self.total = int(subject.offsets[-1]) + self.added.count
        self._structure: Structure | None = None
        self._displacements: Displacements | None = None

    def gathered(self) -> tuple[np.ndarray, FloatArray]:
        """(V, columns) float32 rows, S columns an example, and (V,) slopes of the loss."""
        subject = self.subject
        slope = np.zeros(self.total)
        units, blocks = [], []
        share = (
            self.settings.evaluations(subject) - (float(subject.offsets[-1]) if self.settings.counts_flips else 0.0)
        ) / max(1, subject.examples.count)
        # A folder may hold slices with and without slopes.
        kind = "products_slope" if self.settings.has_slope(subject) else "products"
        start = 0
        for number, part in subject.slices():
            compute = partial(self._slice, number, part, start)
            units.append(Unit(f"{kind}_{number:05d}", compute, share * len(part)))
            start += len(part)
        for made in subject.gather(units):
            blocks.append(made["features"].astype(np.float32, copy=False))
            slope += made["slope"].astype(np.float64)
        return np.concatenate(blocks, axis=1), slope

    def _slice(self, number: int, part: Slice, first: int) -> Arrays:
        """The rows of one slice of examples, in as many passes as memory requires."""
        subject = self.subject
        structure, displacements = self._prepared()
        repeats = subject.outputs[number].shape[0] // len(part)
        size = self._examples_at_once(structure.bytes_per_example)
        total = self.total
        rows = torch.zeros(total, len(part), self.settings.probes_of(self.subject))
        slope = torch.zeros(total, dtype=torch.float64)
        for start in range(0, len(part), size):
            some = part.rows(slice(start, start + size))
            of_rows = slice(start * repeats, (start + len(some)) * repeats)
            cotangents = self._cotangents(number, part, of_rows, first + start, repeats)
            products = slice_products(subject.tensors, structure, some, cotangents, self._blocks, total).cpu()
            products = displacements.with_twins(products)
            rows[:, start : start + len(some)] = products[:, : self.settings.probes_of(self.subject)].transpose(1, 2)
            if self.settings.has_slope(subject):
                slope += products[:, -1].double().sum(1)
        return {"features": rows.flatten(1).numpy(), "slope": slope.numpy()}

    def _examples_at_once(self, each: int) -> int:
        """As many as fit into ``JOINED_BYTES``, or of one of the caller's batches into ``SLICE_BYTES``."""
        unit = self.subject.examples.unit
        return max(1, JOINED_BYTES // each, min(unit, SLICE_BYTES // each))

    def _blocks(self, name: str) -> Sequence[Block | RowBlock | ColumnBlock]:
        """The displacements of a parameter by all choices, those of the subject first."""
        return (*self._prepared()[1].of(name), *self.added.blocks.get(name, ()))

    def _prepared(self) -> tuple[Structure, Displacements]:
        """Structure and displacements, prepared for the first slice that is not in the cache."""
        if self._structure is None or self._displacements is None:
            self._structure = inspect(self.subject)
            self._displacements = Displacements(self.subject, self._structure.captured | self._structure.single)
        return self._structure, self._displacements

    def _cotangents(self, number: int, part: Slice, rows: slice, first: int, repeats: int) -> list[Tensor]:
        """S probes of some output rows and, if wanted, the gradient of the mean loss with respect to them."""
        subject = self.subject
        outputs, reference = subject.outputs[number][rows], subject.reference[number][rows]
        examples = slice(rows.start // repeats, rows.stop // repeats)
        targets = None if part.targets is None else part.targets[examples]
        weights = subject.row_weights(number)[rows].float()[:, None]
        found = []
        signs = _signs(
            subject.seed,
            first,
            outputs.shape[0] // repeats,
            self.settings.probes_of(self.subject),
            repeats * outputs.shape[1],
        )
        for probe in signs:
            drawn = torch.from_numpy(probe).to(outputs.device).reshape(outputs.shape)
            found.append(
                subject.loss.probe(outputs, targets, drawn) * (weights / self.settings.probes_of(self.subject)).sqrt()
            )
        if self.settings.has_slope(subject):
            found.append(subject.loss.gradient(outputs, targets, reference) * weights)
        return found


def _signs(seed: int, first: int, examples: int, probes: int, count: int) -> np.ndarray:
    """(probes, examples, count) float32 random signs that depend only on the seed and the example's number.

    So any part of the examples can be measured anywhere, and gives the same rows as in a whole measurement.
    """
    drawn = np.empty((examples, probes, count), dtype=np.float32)
    for example in range(examples):
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, first + example]))
        drawn[example] = generator.integers(0, 2, (probes, count), dtype=np.int8)
    return np.ascontiguousarray((2.0 * drawn - 1.0).transpose(1, 0, 2))
