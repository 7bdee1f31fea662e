"""Private copies of a network: the caller's weights in modules that nobody else runs, and what a forward may not do.

Everything that swaps tensors, sets modes or hooks into layers does so in a private copy. The caller's network is never
touched, so another thread may run or measure it meanwhile. The copy shares the parameters, which are only read, and has
its own buffers, because a forward may write to them.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.errors import ForwardFailed, InvalidModel
from qubo_compress.network.calls import GivenTensors

logger = logging.getLogger(__name__)

CARRIED = "qubo_compress.compression"
"""The attribute that holds a compressed network's plan: the dot rules out a clash with a user's names."""

PRIVATE = "qubo_compress.private"
"""Attribute that marks a private copy."""

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
"""Layers that cuDNN runs; not their subclasses, whose forward may do something else in train mode."""

STEADY = 1e-3
"""Two runs on the same examples may differ by this share of the largest output: some kernels sum in varying order."""


def private_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode with its own modules and buffers, and the very parameters of ``model``.

    A private copy is returned unchanged. Modules compiled in place run uncompiled: they would be recompiled for every
    choice.

    Raises:
        InvalidModel: when something in the network cannot be copied.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> own = private_copy(net)
        >>> own[0].weight is net[0].weight, own[1].running_mean is net[1].running_mean, own.training, net.training
        (True, False, False, True)
    """
    if PRIVATE in vars(model):
        return model
    shared = {id(parameter): _readable(parameter) for parameter in model.parameters()}
    made = differentiable(_copied(model, shared))
    vars(made)[PRIVATE] = True
    return made


def differentiable(model: nn.Module) -> nn.Module:
    """The network with recurrent layers in train mode without dropout, which computes the same.

    On a GPU this is the only mode with gradients: cuDNN keeps what it needs for them only in train mode.
    """
    for module in model.modules():
        if type(module) in RECURRENT:
            module.training, module.dropout = True, 0.0  # type: ignore[assignment]
    return model


def independent_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares nothing with ``model``.

    Raises:
        InvalidModel: when something in the network cannot be copied.
    """
    made = _copied(model, {})
    vars(made).pop(PRIVATE, None)
    return made


@dataclass(eq=False)
class Joined:
    """A second run on the same examples together with others, to see whether they influence each other.

    Args:
        watch: active in the first run.
        more: watch -> inputs of more examples, beginning with the same ones, or None if there are none.
        same: (answer, answer for more) -> whether the first ones have the same answer.
    """

    watch: Any
    more: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]
    reason: str = ""
    """Why the network must get its batches unchanged; empty if examples are independent."""

    def agrees(self, model: nn.Module, answer: Any, run: Callable[[nn.Module, Any], Any]) -> bool:
        """Whether the run with more examples gave the same answer."""
        inputs = self.more(self.watch)
        if inputs is None:
            return False
        try:
            with torch.no_grad():
                agrees = self.same(answer, run(model, inputs))
        except (ForwardFailed, InvalidModel) as cause:
            self.reason = f"with examples of several batches at once it failed: {cause}"
            return False
        if not agrees:
            self.reason = "what it returns for an example depends on the other examples of its batch"
        return agrees


def steady_answer(
    model: nn.Module, inputs: Any, run: Callable[[nn.Module, Any], Any], joined: Joined | None = None
) -> Any:
    """The network's answer to some examples, provided that it depends only on them and on the network's tensors.

    A forward may write to buffers, such as a counter, as long as its outputs do not depend on that.

    Args:
        model: unchanged: a copy is run.
        inputs: of a few examples.
        run: calls a network.
        joined: the second run with more examples; it records whether they influence each other.

    Raises:
        InvalidModel: when the forward writes to parameters, when its outputs change from one run to the next, or when
            it uses weights of ``model`` although a copy of it was called.
    """
    trial = _copied(model, {})
    before = _versions(trial)
    with contextlib.nullcontext() if joined is None else joined.watch, GivenTensors() as given, torch.no_grad():
        answer = run(trial, inputs)
    captured = [name for name, tensor in _tensors(model) if id(tensor) in given.seen]
    if captured:
        raise InvalidModel(
            f"the forward of a copy of this {type(model).__name__} still uses {_listed(captured)} of the network "
            "that was copied: a function stored in it has captured a module; store bound methods instead"
        )
    changed = [name for name, version in _versions(trial).items() if version != before.get(name)]
    written = [name for name in changed if name in dict(trial.named_parameters())]
    if written:
        raise InvalidModel(
            f"the forward of this {type(model).__name__} writes to its parameter {_listed(written)}, so no choice "
            "of it would stay as it is; write to a copy there (an embedding: normalise it once, then set max_norm=None)"
        )
    again = answer
    if joined is None or not joined.agrees(trial, answer, run):
        with torch.no_grad():
            again = run(trial, inputs)
    if not _alike(answer, again):
        cause = f"it writes to {_listed(changed)}" if changed else "it draws random numbers, or counts its calls"
        raise InvalidModel(
            f"two runs of this {type(model).__name__} on the same examples differ: in eval mode {cause}; "
            "its outputs must depend on its inputs and weights alone"
        )
    if changed:
        logger.info("forward writes to %s; the outputs do not follow from that", _listed(changed))
    return answer


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy in eval mode."""
    for module in model.modules():
        for name, value in vars(module).items():
            if name == CARRIED:
                memo[id(value)] = value  # never changed, and as large as the network: shared
            elif isinstance(value, Tensor) and not value.is_leaf:
                # Some modules hold computed tensors with a gradient, which torch refuses to copy.
                memo[id(value)] = value.detach().clone()
    try:
        made = copy.deepcopy(model, memo)
    except Exception as cause:
        raise InvalidModel(
            f"this {type(model).__name__} cannot be copied: {type(cause).__name__}: {cause}; measuring and compressing "
            "work on copies, so take out what copy.deepcopy refuses, such as locks and open files"
        ) from cause
    if CARRIED in vars(model):
        vars(made)[CARRIED] = vars(model)[CARRIED]  # a torch.fx.GraphModule copies only what it knows
    for module in made.modules():
        # Not by eval(), which some modules override.
        module.training = False
        if "_compiled_call_impl" in vars(module):
            vars(module)["_compiled_call_impl"] = None
    return made


def _readable(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or a copy if it was made in inference mode, which allows no gradients."""
    if not parameter.is_inference():
        return parameter
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> identity and version (number of writes) of every parameter and buffer."""
    return {name: (id(tensor), tensor._version) for name, tensor in _tensors(model) if not tensor.is_inference()}


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _alike(first: Any, second: Any) -> bool:
    pairs = list(zip(_floating(first), _floating(second), strict=False))
    return len(_floating(first)) == len(_floating(second)) and all(_close(one, other) for one, other in pairs)


def _close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    if first.numel() == 0:
        return True
    one, other = first.float(), second.float()
    largest = float(one.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(one, other, rtol=0.0, atol=STEADY * largest, equal_nan=True)


def _floating(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _floating(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _floating(item)]
    return _floating(vars(value)) if hasattr(value, "__dataclass_fields__") else []
