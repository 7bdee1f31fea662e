"""From a network's return value to rows of scores: which output counts, and which axis holds the classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qubo_compress.errors import InvalidModel

OutputLike = str | int | Callable[[Any], Tensor] | None
"""A key, an index or a function of the return value of ``forward``; None: the obvious output."""

LOGITS = "logits"
"""The name under which transformers and many other libraries return class scores."""

SUM_TOLERANCE = 1e-3
"""Tolerance of the sum of a row's probabilities."""


@dataclass(frozen=True)
class OutputReading:
    """How a network's outputs are read as (M, C) rows, one per example or position.

    Rows of one example are consecutive. One output per example, (N,), is read as (N, 1).

    Args:
        output: which part of what forward returns: a key or attribute, an index, or a function. None: a tensor itself;
            ``logits`` of a dict or object that has them; the first element of a tuple that begins with a
            floating-point tensor of two or more axes.
        class_axis: of that tensor. None: found by :meth:`settled_on`.
        settled: both are known and fit.

    Example:
        >>> reading = OutputReading(class_axis=-1).settled_on({"logits": torch.zeros(2, 5, 3)}, 2)
        >>> reading.output, reading.class_axis, reading.rows({"logits": torch.zeros(4, 5, 3)}).shape
        ('logits', 2, torch.Size([20, 3]))
    """

    output: OutputLike = None
    class_axis: int | None = None
    settled: bool = False

    def tensor(self, answer: Any) -> Tensor:
        """The output that counts.

        Raises:
            InvalidModel: when there is no such output, or it is not a floating-point tensor.
        """
        chosen = answer
        output = self.output if self.output is not None else _obvious(answer)
        if output is not None:
            try:
                chosen = _picked(answer, output)
            except (KeyError, IndexError, AttributeError, TypeError) as cause:
                raise InvalidModel(
                    f"output={output!r} is not in what the model returned: {_described(answer)}"
                ) from cause
        if not isinstance(chosen, Tensor):
            raise InvalidModel(
                f"the model returned {_described(answer)}"
                + ("" if output is None else f", and output={output!r} of it is {_described(chosen)}")
                + "; say which tensor holds the outputs (examples, classes): output=, a key, an index or a function"
            )
        if chosen.ndim < 1 or not chosen.is_floating_point():
            raise InvalidModel(
                f"outputs must be floating-point of shape (N,), (N, C) or (N, C, ...); got {_described(chosen)}"
                + ("" if output is None else f" as output={output!r}")
            )
        return chosen

    def rows(self, answer: Any) -> Tensor:
        """(M, C) float32 outputs with all axes but that of the classes joined.

        Raises:
            InvalidModel: see :meth:`tensor`; also when the axis is unknown and cannot be guessed.
        """
        found = self.tensor(answer)
        if found.ndim == 1:
            return found.unsqueeze(-1).float()
        axis = self.class_axis if self.class_axis is not None else _usual_axis(found)
        axis = _checked_axis(axis, found)
        return found.movedim(axis, -1).reshape(-1, found.shape[axis]).float()

    def settled_on(
        self, answer: Any, examples: int, inputs: tuple[Tensor, ...] = (), targets: Tensor | None = None
    ) -> OutputReading:
        """The same reading with its output and its class axis determined.

        With two axes the classes are the last. With more, integer targets show it: the axis whose removal leaves the
        targets' shape. Targets of the outputs' own shape are class probabilities, which sum to one along the axis;
        otherwise it is axis 1, as in torch. Without targets: axis 1 of four or more axes; of three, the one that is not
        as long as integer inputs (N, T).

        Args:
            answer: the network's return value.
            examples: number of examples.
            inputs: the network's inputs.
            targets: of these examples.

        Raises:
            InvalidModel: when that does not determine the axis, or the first axis does not count the examples.
        """
        if self.settled:
            return self
        output = self.output if self.output is not None else _obvious(answer)
        found = self.tensor(answer)
        if found.shape[0] == 0 or found.shape[0] % examples:
            raise InvalidModel(
                f"the first axis of the outputs must count the examples; {examples} examples gave outputs of shape "
                f"{tuple(found.shape)}: put the examples first, if need be by output=, a function"
            )
        axis = self.class_axis
        if axis is None:
            axis = 1 if found.ndim <= 2 else _class_axis(found, inputs, targets)
        elif found.ndim > 1:
            axis = _checked_axis(axis, found)
        return replace(self, output=output, class_axis=axis, settled=True)


def sums_to_one(shares: Tensor, axis: int) -> bool:
    """Whether no share is negative and all sums along an axis are one."""
    close = (shares.sum(axis) - 1.0).abs() <= SUM_TOLERANCE
    return bool((shares >= 0).all()) and bool(close.all())


def _obvious(answer: Any) -> OutputLike:
    if isinstance(answer, Tensor):
        return None
    if (isinstance(answer, Mapping) and LOGITS in answer) or isinstance(getattr(answer, LOGITS, None), Tensor):
        return LOGITS
    first = answer[0] if isinstance(answer, (tuple, list)) and len(answer) else None
    if isinstance(first, Tensor) and first.is_floating_point() and first.ndim >= 2:
        return 0
    return None


def _picked(answer: Any, output: OutputLike) -> Any:
    if isinstance(output, str):
        return answer[output] if isinstance(answer, Mapping) else getattr(answer, output)
    if callable(output):
        return output(answer)
    return answer[output]


def _described(answer: Any) -> str:
    """A short description of the return value."""
    if isinstance(answer, Tensor):
        return f"a tensor of shape {tuple(answer.shape)} {answer.dtype}"
    kind = type(answer).__name__
    if isinstance(answer, Mapping):
        return f"{kind} with the keys {', '.join(map(repr, answer))}"
    if isinstance(answer, (tuple, list)):
        return f"{kind} of {len(answer)}: {', '.join(_described(item) for item in answer[:4])}"
    if dataclasses.is_dataclass(answer):
        return f"{kind} with the fields {', '.join(item.name for item in dataclasses.fields(answer))}"
    return kind


def _usual_axis(found: Tensor) -> int:
    """Axis 1, except that there is no convention for three axes."""
    if found.ndim == 3:
        raise InvalidModel(_unknown_axis(found, "nothing shows which"))
    return 1


def _checked_axis(axis: int, found: Tensor) -> int:
    placed = axis + found.ndim if axis < 0 else axis
    if not 1 <= placed < found.ndim:
        raise InvalidModel(
            f"class_axis={axis} is not an axis of the outputs, {tuple(found.shape)}, behind the first, which counts "
            f"the examples; give 1 to {found.ndim - 1}, or -1 for the last"
        )
    return placed


def _class_axis(found: Tensor, inputs: tuple[Tensor, ...], targets: Tensor | None) -> int:
    shape = tuple(found.shape)
    if targets is None:
        return _axis_by_inputs(found, inputs)
    if tuple(targets.shape) == shape:
        summing = [axis for axis in range(1, found.ndim) if sums_to_one(targets.double(), axis)]
        return summing[0] if len(summing) == 1 else 1
    fitting = [axis for axis in range(1, found.ndim) if shape[:axis] + shape[axis + 1 :] == tuple(targets.shape)]
    if len(fitting) == 1:
        return fitting[0]
    # For images the classes come first, whatever their number.
    if found.ndim > 3 and (1 in fitting or targets.numel() == math.prod(shape) // shape[1]):
        return 1
    how = "more than one leaves that shape" if fitting else "none leaves that shape"
    raise InvalidModel(_unknown_axis(found, f"targets have shape {tuple(targets.shape)}, and {how}"))


def _axis_by_inputs(found: Tensor, inputs: tuple[Tensor, ...]) -> int:
    if found.ndim > 3:
        return 1
    lengths = {t.shape[1] for t in inputs if t.ndim == 2 and not t.is_floating_point()}
    if len(lengths) == 1 and found.shape[1] != found.shape[2]:
        length = lengths.pop()
        if length in found.shape[1:]:
            return 2 if found.shape[1] == length else 1
    raise InvalidModel(_unknown_axis(found, "there are no targets to show which"))


def _unknown_axis(found: Tensor, why: str) -> str:
    return (
        f"outputs have shape {tuple(found.shape)}, and one axis holds the classes: {why}; give class_axis=, such "
        "as 1 for (N, C, T) or -1 for the (N, T, C) of language models"
    )


def two_columns(rows: Tensor) -> Tensor:
    """(M, C) logits unchanged; the single logit of a binary network as (M, 2), with 0 for the other class.

    Example:
        >>> two_columns(torch.tensor([[1.5]])).tolist()
        [[0.0, 1.5]]
    """
    return rows if rows.shape[-1] > 1 else torch.cat([torch.zeros_like(rows), rows], dim=-1)


def predicted(rows: Tensor) -> Tensor:
    """(..., M) class of the largest output; for a single logit, 1 above zero and 0 otherwise."""
    return rows.argmax(-1) if rows.shape[-1] > 1 else (rows[..., 0] > 0).long()
