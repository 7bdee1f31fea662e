"""The layer calls of one forward pass: which parameters were used, on which inputs, by which formula.

A network's real calls are visible at torch's functions, not at its modules: a convolution that pads in its own
``forward``, a packed attention projection and a tied output layer all call a function with a parameter, or a view of
one, as its weight. Parameters are recognised by their storage. Unrecognised uses are never guessed: see
:mod:`qubo_compress.sensitivity.metrics.products.inspection`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from qubo_compress.network.rounding import InputRange

Bound = tuple[str, tuple[str, ...]]
"""The kind of a layer, and the names of the function's arguments in order."""

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")

FUNCTIONS: dict[Callable[..., Any], Bound] = {
    functional.linear: ("linear", ("input", "weight", "bias")),
    torch.conv1d: ("convolution", _CONVOLUTION),
    torch.conv2d: ("convolution", _CONVOLUTION),
    torch.conv3d: ("convolution", _CONVOLUTION),
    torch.conv_transpose1d: ("transposed", _TRANSPOSED),
    torch.conv_transpose2d: ("transposed", _TRANSPOSED),
    torch.conv_transpose3d: ("transposed", _TRANSPOSED),
    functional.embedding: (
        "embedding",
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    ),
    functional.batch_norm: (
        "batch-norm",
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    functional.layer_norm: ("layer-norm", ("input", "normalized_shape", "weight", "bias", "eps")),
    functional.rms_norm: ("rms-norm", ("input", "normalized_shape", "weight", "eps")),
    functional.group_norm: ("group-norm", ("input", "num_groups", "weight", "bias", "eps")),
    torch.matmul: ("product", ("input", "weight")),
    Tensor.matmul: ("product", ("input", "weight")),
    Tensor.__matmul__: ("product", ("input", "weight")),
    torch.mm: ("product", ("input", "weight")),
    Tensor.mm: ("product", ("input", "weight")),
    torch.addmm: ("product", ("bias", "input", "weight")),
    Tensor.addmm: ("product", ("bias", "input", "weight")),
}
"""Functions whose output is linear in their weight and bias, and the names of their arguments."""


@dataclass(frozen=True)
class View:
    """A parameter as an argument of a function: all of it, or a strided view.

    Attributes:
        name: of the parameter.
        shape, stride, offset: of the view, in the parameter's own memory; None for the whole.
    """

    name: str
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0


@dataclass(eq=False)
class Call:
    """One call of a layer function.

    Attributes:
        number: position among the calls of the pass.
        kind: of the layer.
        views: role (``"weight"``, ``"bias"``) -> the parameter in that role.
        settings: the function's other arguments.
        inputs: of the layer.
        version: of the inputs at the call, to notice changes in place.
        weight_shape: shape of the weight as the function saw it.
        output_shape: shape of the output.
        unrounded: the inputs before they were rounded; None if they were not.
    """

    number: int
    kind: str
    views: Mapping[str, View]
    settings: Mapping[str, Any]
    inputs: Tensor
    version: int
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    unrounded: Tensor | None = None

    @property
    def signature(self) -> tuple[str, tuple[View, ...]]:
        """Everything that must be the same in every pass."""
        return self.kind, tuple(self.views.values())


@dataclass(eq=False)
class Recorder(TorchFunctionMode):
    """Records the calls inside a ``with`` block that use one of the given parameters.

    Args:
        parameters: name -> tensor that the network has now; none of them requires a gradient.
        watch: called with a call and the gradient of its output when a backward pass reaches it; None to record
            nothing.
        copied: numbers of the calls whose inputs are changed in place later, so a copy must be kept.
        ranges: weight's name -> range to which the inputs of its calls are rounded here, so that they are seen before
            and after; the network's own hooks must not round them.
    """

    parameters: Mapping[str, Tensor]
    watch: Callable[[Call, Tensor], None] | None
    copied: frozenset[int] = frozenset()
    ranges: Mapping[str, InputRange] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    roots: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._homes: dict[int, list[str]] = {}
        for name, tensor in self.parameters.items():
            self._homes.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)

    def __torch_function__(
        self, func: Any, types_: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and record what its parameters' gradients need."""
        kwargs = dict(kwargs or {})
        if func is functional.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        bound = FUNCTIONS.get(func)
        if bound is None:
            return func(*args, **kwargs)
        kind, names = bound
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if kind == "embedding" and given.get("max_norm") is None:
            # torch omits the gradient of a padding row, but the network does use its values.
            args, kwargs = (), {**given, "padding_idx": None}
        views = None if self.watch is None or not isinstance(given.get("input"), Tensor) else self._views(kind, given)
        wanted = self.ranges.get(views["weight"].name) if views is not None and "weight" in views else None
        before = None
        if wanted is not None:
            before, given["input"] = given["input"], wanted.rounded(given["input"])
            args, kwargs = (), given
        output = func(*args, **kwargs)
        return output if views is None else self._record(kind, views, given, output, before)

    def _views(self, kind: str, given: Mapping[str, Any]) -> dict[str, View] | None:
        """The parameters in the roles of weight and bias; None if there are none, or the use is unknown."""
        views = {role: self._view(given[role]) for role in ("weight", "bias") if isinstance(given.get(role), Tensor)}
        found = {role: view for role, view in views.items() if view is not None}
        plain = set(given) <= set(next(names for k, names in FUNCTIONS.values() if k == kind)) | {"bias", "input"}
        if not found or not plain or self._view(given["input"]) is not None:
            return None
        if kind == "product" and given["weight"].ndim != 2:
            return None
        if kind == "embedding" and (given.get("max_norm") is not None or given.get("scale_grad_by_freq")):
            return None
        return None if kind == "batch-norm" and given.get("training") else found

    def _view(self, tensor: Tensor) -> View | None:
        names = self._homes.get(tensor.untyped_storage().data_ptr(), [])
        for name in names:
            whole = self.parameters[name]
            same = tensor.shape == whole.shape and tensor.stride() == whole.stride()
            if same and tensor.storage_offset() == whole.storage_offset():
                return View(name)
        # A view has the strides of the dense layout; if parameters share memory, it may be a part of any of them.
        if len(names) != 1 or not self.parameters[names[0]].is_contiguous() or 0 in tensor.stride():
            return None
        offset = int(tensor.storage_offset()) - int(self.parameters[names[0]].storage_offset())
        return View(names[0], tuple(tensor.shape), tensor.stride(), offset)

    def _record(
        self,
        kind: str,
        views: dict[str, View],
        settings: dict[str, Any],
        output: Tensor,
        before: Tensor | None,
    ) -> Tensor:
        watch = self.watch
        assert watch is not None  # noqa: S101 - nothing is recorded without a watch
        number = len(self.calls)
        inputs = settings.pop("input").detach()
        weight = settings.pop("weight", None)
        settings.pop("bias", None)
        call = Call(
            number, kind, views, settings, inputs.clone() if number in self.copied else inputs, inputs._version,
            () if weight is None else tuple(weight.shape), tuple(output.shape),
            None if before is None else before.detach().clone(),
        )  # fmt: skip
        self.calls.append(call)
        first = not output.requires_grad
        if first:
            self.roots.append(output.requires_grad_())
        output.register_hook(lambda gradient: watch(call, gradient.detach()))  # type: ignore[no-untyped-call]
        # A leaf cannot be changed in place, as an activation after the first layer may try to do.
        return output.clone() if first else output


def _without_overrides(function: Any) -> Any:
    """Torch's own Python code of a composite function, whose inner calls the active mode sees.

    Called directly, it would first pass itself to that mode again.
    """
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_attention = _without_overrides(functional.multi_head_attention_forward)
