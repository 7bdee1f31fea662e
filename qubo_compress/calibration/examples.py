"""Batches of examples, read once into memory and served in slices, the inputs of one network call."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qubo_compress._internal.checks import whole
from qubo_compress.errors import InvalidBatches, InvalidModel
from qubo_compress.network.inputs import IGNORED, Inputs, map_tensors, tensors_of
from qubo_compress.network.scores import OutputReading

MOST_JOINED = 250
"""Examples in a slice, unless the caller's own batches cannot be split."""

HELD_OUT_SHARE = 0.2
"""Share of the calibration examples that ``compress`` holds out without validation batches."""

HELD_OUT_EXAMPLES = 64
"""At least this many are held out, or half of all examples: fewer cannot tell plans apart."""


@dataclass(frozen=True)
class Slice:
    """Some consecutive examples.

    Attributes:
        inputs: a Tensor, tuple or dict, passed as ``model(x)``, ``model(*x)`` or ``model(**x)``.
        targets: labels, or None.
        weights: (n,) example weights that sum to one over all examples.
    """

    inputs: Inputs
    targets: Tensor | None
    weights: Tensor

    def __len__(self) -> int:
        return self.weights.shape[0]

    def to(self, device: torch.device) -> Slice:
        """The examples with all their tensors on another device."""
        targets = None if self.targets is None else self.targets.to(device)
        return Slice(map_tensors(self.inputs, lambda t: t.to(device)), targets, self.weights.to(device))

    def rows(self, rows: slice) -> Slice:
        """Some of the examples, with unchanged weights."""
        return _rows(self, rows)

    @property
    def form(self) -> str:
        """Shapes and types of one example: slices of equal form can be joined."""
        every = (*tensors_of(self.inputs), *(() if self.targets is None else (self.targets,)))
        return str([(tuple(t.shape[1:]), t.dtype) for t in every])


@dataclass(frozen=True)
class Examples:
    """Examples read from batches.

    Attributes:
        slices: examples in the order given: the caller's batches, or as :mod:`qubo_compress.calibration.passes` sliced
            them.
        count: number of examples.
        labelled: whether every batch had targets.
        reading: how a network's outputs on them are read as rows.
        batch_size: examples per slice that the caller asked for.
        whole: why slices are never split or joined: how the network's outputs changed. Empty if they did not change;
            None before the check.
        together: most examples in a run, limited by memory; 0 before that is known.
        cut: examples of the caller's last batch if reading stopped inside it, otherwise 0.
        shown: examples that the network was run on for these checks, every run counted.
        largest: examples in the largest batch that was read.
    """

    slices: tuple[Slice, ...]
    count: int
    labelled: bool
    reading: OutputReading = field(default_factory=OutputReading)
    batch_size: int | None = None
    whole: str | None = None
    together: int = 0
    cut: int = 0
    shown: int = 0
    largest: int = 0

    def most(self) -> int:
        """The number of examples in the largest slice."""
        return min(self.together or MOST_JOINED, MOST_JOINED)

    @property
    def unit(self) -> int:
        """Examples in the largest of the caller's batches, or ``batch_size`` if given."""
        return self.batch_size or self.largest or max(len(part) for part in self.slices)

    def with_slices(self, slices: Sequence[Slice], **changes: Any) -> Examples:
        """The same settings with other slices, whose weights are scaled to sum to one."""
        return _normalised(list(slices), replace(self, **changes))

    def first(self, count: int) -> Slice:
        """The first examples of the first slice: all of them if slices must not be split."""
        return self.slices[0] if self.whole else self.slices[0].rows(slice(0, count))

    def spread(self, count: int) -> Examples:
        """About this many examples, evenly spread; whole slices if they must not be split, at least one."""
        if self.whole:
            numbers = np.arange(len(self.slices))
            ends = np.cumsum([len(part) for part in self.slices])
            wanted = max(1, int(np.searchsorted(ends, count, side="right")))
            picked = np.unique(np.linspace(0, numbers[-1], wanted).astype(np.int64))
            return self.with_slices([self.slices[number] for number in picked.tolist()])
        return self.select(np.unique(np.linspace(0, self.count - 1, count).astype(np.int64)))

    def leading(self, count: int) -> Examples:
        """The first this many examples, or the whole slices among them, at least one."""
        if self.whole:
            ends = np.cumsum([len(part) for part in self.slices])
            return self.with_slices(self.slices[: max(1, int(np.searchsorted(ends, count, side="right")))])
        return self.select(np.arange(count))

    def refuse_parts(self, what: str) -> None:
        """Raise :class:`InvalidModel` if slices must not be split, because ``what`` needs parts of them."""
        if self.whole:
            raise InvalidModel(
                f"{what} runs the network on single examples or other parts of a batch, and this network takes its "
                f"batches of {len(self.slices[0])} as they are: {self.whole}"
            )

    def to(self, device: torch.device) -> Examples:
        """The examples with all their tensors on another device."""
        return replace(self, slices=tuple(part.to(device) for part in self.slices))

    @cached_property
    def _labelled_rows(self) -> float | None:
        """Weighted number of labels per example, if some are ignored or examples have different numbers of labels."""
        known = [_known_labels(part) for part in self.slices]
        if any(labels is None for labels in known) or (
            len({labels.shape[1] for labels in known if labels is not None}) == 1
            and all(bool(labels.all()) for labels in known if labels is not None)
        ):
            return None
        counts = [
            labels.sum(1).to(part.weights)
            for part, labels in zip(self.slices, known, strict=True)
            if labels is not None
        ]
        return float(sum(float((part.weights * n).sum()) for part, n in zip(self.slices, counts, strict=True)))

    def mean(self, values: Iterable[Tensor]) -> float:
        """The weighted mean of one value per output row, slice by slice."""
        pairs = zip(self.slices, values, strict=True)
        return sum(
            float((rows.double() * self.row_weights(part, len(rows)).to(rows.device)).sum()) for part, rows in pairs
        )

    def row_shares(self, part: Slice, rows: int) -> Tensor:
        """(n, rows / n) the weight of each output row of some of these examples, in units of its example's weight.

        Rows of one example share its weight. If class labels are ignored (-100), or examples have different numbers of
        labels, all rows with a label count equally, as in torch's ``CrossEntropyLoss``, and the others count zero.

        Raises:
            InvalidBatches: when every label is ignored.
        """
        repeats = rows // len(part)
        known = _known_labels(part)
        if known is None or known.shape[1] != repeats or self._labelled_rows is None:
            return torch.full((len(part), repeats), 1.0 / repeats, dtype=torch.float64, device=part.weights.device)
        if self._labelled_rows == 0:
            raise InvalidBatches(
                f"every label of the {self.count} examples is {IGNORED}, which means ignored; give examples with "
                "labels, or batches without targets and loss='kl'"
            )
        return known.to(part.weights) / self._labelled_rows

    def row_weights(self, part: Slice, rows: int) -> Tensor:
        """(rows,) float64 weights of the output rows of some of these examples; over all examples they sum to one."""
        return (part.weights[:, None] * self.row_shares(part, rows)).reshape(-1)

    def split(self, share: float) -> tuple[Examples, Examples]:
        """The first examples, and the last ``share`` of them, each with weights that sum to one.

        Raises:
            InvalidBatches: for too few examples, or a single batch that must not be split.
        """
        if self.whole:
            return self._split_between(share)
        cut = self.count - max(1, round(share * self.count))
        if cut < 1:
            raise InvalidBatches(f"{self.count} examples are too few to hold out {share:.0%} of them; give more")
        first, last, seen = [], [], 0
        for part in self.slices:
            inside = min(max(cut - seen, 0), len(part))
            seen += len(part)
            if inside:
                first.append(_rows(part, slice(0, inside)))
            if inside < len(part):
                last.append(_rows(part, slice(inside, None)))
        return _normalised(first, self), _normalised(last, self)

    def _split_between(self, share: float) -> tuple[Examples, Examples]:
        """Split the examples between two slices."""
        if len(self.slices) < 2:
            raise InvalidBatches(
                f"one batch of {self.count} examples cannot be split to hold out {share:.0%} of it, since this network "
                f"takes its batches as they are ({self.whole}); give at least two batches, or validation batches"
            )
        ends = np.cumsum([len(part) for part in self.slices])[:-1]
        number = int(np.argmin(np.abs(ends - (1.0 - share) * self.count))) + 1
        return self.with_slices(self.slices[:number]), self.with_slices(self.slices[number:])

    def select(self, index: npt.NDArray[np.int64]) -> Examples:
        """The examples with these rising numbers, in even slices, with weights that sum to one.

        Raises:
            InvalidModel: if slices must not be split.
        """
        if index.size < self.count:
            self.refuse_parts("a choice of examples")
        parts, start = [], 0
        for part in self.slices:
            inside = index[(index >= start) & (index < start + len(part))] - start
            start += len(part)
            if inside.size:
                parts.append(_rows(part, torch.from_numpy(inside)))
        size = max(len(part) for part in self.slices)
        return _normalised(parts if self.whole else even_slices(parts, size), self)

    def pick(self, numbers: Tensor) -> Slice:
        """The examples with these numbers, all of one form, as one slice in the order of slices; weights stay."""
        parts, start = [], 0
        for part in self.slices:
            inside = numbers[(numbers >= start) & (numbers < start + len(part))] - start
            start += len(part)
            if inside.numel():
                parts.append(_rows(part, inside.to(part.weights.device)))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def signature(self) -> str:
        """A digest of all examples, targets and weights, in order."""
        digest = hashlib.sha256()
        for part in self.slices:
            for tensor in (*tensors_of(part.inputs), part.targets, part.weights):
                if tensor is not None:
                    digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
                    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]


def read_examples(
    batches: Iterable[Any] | Examples,
    max_examples: int = 2048,
    batch_size: int | None = None,
    reading: OutputReading | None = None,
    whose: str = "",
) -> Examples:
    """Read batches into memory, once.

    Args:
        batches: re-iterable of ``inputs``, ``(inputs, targets)`` or ``(inputs, targets, weights)``; a
            DataLoader is one. Inputs are a Tensor, a tuple or a dict of Tensors with examples along the
            first axis. A two-element *tuple* whose first element is a Tensor counts as (inputs, targets).
            Examples already read are returned unchanged, or only the first ``max_examples``.
        max_examples: reading stops there.
        batch_size: examples per slice, joined and split if shapes allow; None: the batches as given.
        reading: how a network's outputs are read.
        whose: the name of the batches in errors, such as ``"validation"``, if the caller got several.

    Raises:
        InvalidBatches: for one-shot iterators, no examples, values that are not finite, or batches of
            an unknown form.

    Example:
        >>> data = [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))]
        >>> read_examples(data, max_examples=3).count
        3
    """
    max_examples = whole("max_examples", max_examples, 1, InvalidBatches)
    if isinstance(batches, Examples):
        return batches if batches.count <= max_examples else batches.leading(max_examples)
    given = f"{whose} batches".strip()
    if isinstance(batches, Iterator):
        raise InvalidBatches(
            f"{given} is a one-shot {type(batches).__name__}; give something that can be iterated again, "
            "such as a DataLoader or list(batches)"
        )
    if isinstance(batches, (Tensor, dict)) or not isinstance(batches, Iterable):
        raise InvalidBatches(
            f"{given} must be an iterable of batches, such as a DataLoader or [(inputs, targets)]; "
            f"got {type(batches).__name__}"
        )
    if isinstance(batches, tuple) and _is_one_batch(batches):
        raise InvalidBatches(
            f"{given} is a tuple (inputs, targets), which is one batch; put it into a list: [(inputs, targets)]"
        )
    batch_size = None if batch_size is None else whole("batch_size", batch_size, 1)
    parts: list[Slice] = []
    count = cut = 0
    for number, batch in enumerate(batches):
        part = _slice_of(batch, f"{whose} batch {number}".strip())
        if len(part) > max_examples - count:
            cut, part = len(part), _rows(part, slice(0, max_examples - count))
        if len(part):
            parts.append(part)
        count += len(part)
        if count >= max_examples:
            break
    if count == 0:
        raise InvalidBatches(f"{given} holds no examples; give at least one batch")
    with_targets = [part.targets is not None for part in parts]
    if any(with_targets) != all(with_targets):
        raise InvalidBatches(f"some {given} have targets and some have none; give targets with all or with none")
    read = Examples(
        (), 0, all(with_targets), reading or OutputReading(), batch_size, cut=cut, largest=max(map(len, parts))
    )
    return _normalised(parts if batch_size is None else even_slices(parts, batch_size), read)


def set_aside(examples: Examples) -> tuple[Examples, Examples]:
    """The examples to measure on, and those held out to judge plans; a single example is both.

    Example:
        >>> [part.count for part in set_aside(read_examples([torch.ones(100, 3)]))]
        [50, 50]
        >>> [part.count for part in set_aside(read_examples([torch.ones(1000, 3)]))]
        [800, 200]
    """
    count = examples.count
    if count < 2:
        return examples, examples
    wanted = max(round(HELD_OUT_SHARE * count), min(HELD_OUT_EXAMPLES, count // 2))
    return examples.split(wanted / count)


def _is_one_batch(batches: tuple[Any, ...]) -> bool:
    """Whether a tuple holds inputs and one whole number for each, and not two batches of inputs."""
    if len(batches) != 2 or not all(isinstance(part, Tensor) and part.ndim for part in batches):
        return False
    inputs, targets = batches
    return inputs.ndim > 1 and targets.ndim == 1 and not targets.is_floating_point() and len(inputs) == len(targets)


def _slice_of(batch: Any, name: str) -> Slice:
    try:
        return _checked_slice(batch)
    except InvalidBatches as cause:
        raise InvalidBatches(f"{name}: {cause}") from cause.__cause__


def _checked_slice(batch: Any) -> Slice:
    inputs, targets, weights = batch, None, None
    if isinstance(batch, (tuple, list)):
        if not 1 <= len(batch) <= 3:
            raise InvalidBatches(
                f"a batch is inputs, (inputs, targets) or (inputs, targets, weights); got {len(batch)} parts"
            )
        inputs, targets, weights = (*batch, None, None)[:3]
    if isinstance(inputs, list):
        inputs = tuple(inputs)
    tensors = tensors_of(inputs) if isinstance(inputs, (Tensor, tuple, Mapping)) else ()
    if not tensors or (not isinstance(inputs, Tensor) and len(tensors) != len(inputs)):
        raise InvalidBatches(f"inputs must be a Tensor, or a tuple or dict of Tensors; got {type(inputs).__name__}")
    targets, weights = (None if given is None else _as_tensor(given) for given in (targets, weights))
    sizes = {t.shape[0] if t.ndim else None for t in (*tensors, *(x for x in (targets, weights) if x is not None))}
    if len(sizes) != 1 or None in sizes:
        raise InvalidBatches(
            f"inputs, targets and weights must agree in their first axis; got {sorted(map(str, sizes))}"
        )
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidBatches("the inputs hold NaN or infinity; leave such examples out")
    count = tensors[0].shape[0]
    if weights is None:
        weights = torch.ones(count, dtype=torch.float64)
    weights = weights.detach().double().cpu()
    if weights.shape != (count,) or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise InvalidBatches("example weights must be a vector of finite, non-negative numbers, one per example")
    return Slice(map_tensors(inputs, _readable), None if targets is None else _readable(targets), weights)


def _readable(tensor: Tensor) -> Tensor:
    """The values without a gradient; copied if they were made in inference mode, which blocks gradients."""
    found = tensor.detach()
    return found.clone() if found.is_inference() else found


def _as_tensor(values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as cause:
        given = type(values).__name__
        raise InvalidBatches(f"targets and weights must be tensors or lists of numbers; got {given}") from cause


def _rows(part: Slice, rows: slice | Tensor) -> Slice:
    return Slice(
        map_tensors(part.inputs, lambda t: t[rows]),
        None if part.targets is None else part.targets[rows],
        part.weights[rows],
    )


def even_slices(parts: Sequence[Slice], size: int) -> list[Slice]:
    """The examples in slices of equal size if all have one form; otherwise unchanged."""
    sliced = all(len(part) == size for part in parts[:-1]) and len(parts[-1]) <= size
    if sliced or len({part.form for part in parts}) != 1:
        return list(parts)
    joined = _joined(parts)
    starts = np.arange(0, len(joined), size)
    return [_rows(joined, slice(int(start), int(start) + size)) for start in starts]


def _joined(parts: Sequence[Slice]) -> Slice:
    """Join slices of one form into one."""
    targets = [part.targets for part in parts if part.targets is not None]
    return Slice(
        _concatenate([part.inputs for part in parts]),
        torch.cat(targets) if targets else None,
        torch.cat([part.weights for part in parts]),
    )


def _concatenate(inputs: list[Any]) -> Any:
    first = inputs[0]
    if isinstance(first, Tensor):
        return torch.cat(inputs)
    if isinstance(first, Mapping):
        return {name: torch.cat([part[name] for part in inputs]) for name in first}
    return tuple(torch.cat([part[i] for part in inputs]) for i in range(len(first)))


def _known_labels(part: Slice) -> Tensor | None:
    """(n, labels per example) which labels count, if targets are integers."""
    targets = part.targets
    if targets is None or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        return None
    return targets.reshape(len(part), -1) != IGNORED


def _normalised(parts: list[Slice], like: Examples) -> Examples:
    total = float(sum(float(part.weights.sum()) for part in parts))
    if not total > 0:
        raise InvalidBatches("the example weights sum to zero; give at least one positive weight")
    slices = tuple(Slice(p.inputs, p.targets, p.weights / total) for p in parts)
    return replace(like, slices=slices, count=sum(len(p) for p in slices))
