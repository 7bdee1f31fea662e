"""Which layers' inputs can be rounded by a hook: those that get their input as their module's first argument.

It is tried, not assumed: on a few examples every layer runs a second time with its module's input rounded, and the
function that is given the weight must then see the rounded values of what it saw before. A convolution that pads in its
own ``forward`` passes, because zero is a level; a weight that a fused function takes does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.network.calls import WeightCall, WeightCalls
from qubo_compress.network.every_layer import every_layer_runs
from qubo_compress.network.roles import is_transposed_linear
from qubo_compress.network.rounding import InputRange
from qubo_compress.network.tensors import NetworkTensors

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

TRIED_BITS = 4
"""Few levels, so that rounding is seen."""


def why_not_rounded(tensors: NetworkTensors, names: Collection[str], run: Callable[[], Any]) -> dict[str, str]:
    """Name -> why the inputs of a weight cannot be rounded; weights without an entry can be.

    Args:
        tensors: of the network, which is unchanged afterwards.
        names: of weights.
        run: runs the network on a few examples.
    """
    reasons: dict[str, str] = {}
    trials: dict[nn.Module, _Trial] = {}
    for name in names:
        owners = [module for module, attribute in tensors.owners(name) if attribute == "weight"]
        strange = [m for m, _ in tensors.owners(name) if not (isinstance(m, LAYERS) or is_transposed_linear(m))]
        if strange or len(owners) != len(tensors.owners(name)):
            kind = type(strange[0] if strange else owners[0]).__name__
            reasons[name] = f"it belongs to a {kind}, whose inputs are not those of one product"
            continue
        trials.update({module: _Trial(name) for module in owners})
    seen: dict[str, list[Tensor]] = {}
    watched = {trial.name: tensors[trial.name] for trial in trials.values()}

    def note(name: str, call: WeightCall) -> None:
        seen.setdefault(name, []).extend(call.inputs)

    handles = [module.register_forward_hook(trial.hook_on(seen)) for module, trial in trials.items()]
    try:
        with every_layer_runs(), WeightCalls(watched, note), torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    for trial in trials.values():
        calls = sum(other.calls for other in trials.values() if other.name == trial.name)
        if trial.reason:
            reasons.setdefault(trial.name, trial.reason)
        elif not calls:
            reasons.setdefault(trial.name, "its module is not called: its weight is used by another function")
        elif calls != len(seen.get(trial.name, [])):
            reasons.setdefault(trial.name, "it is also used outside its own module")
    return reasons


@dataclass(eq=False)
class _Trial:
    """One module: how often it was called, and why its inputs cannot be rounded."""

    name: str
    calls: int = 0
    reason: str = ""

    def hook_on(self, seen: dict[str, list[Tensor]]) -> Callable[..., None]:
        """A forward hook that runs the module again; ``seen`` has the inputs of every weight's calls so far."""

        def hook(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
            self.calls += 1
            self.reason = self.reason or self._tried(module, args, seen.setdefault(self.name, []))

        return hook

    def _tried(self, module: nn.Module, args: tuple[Any, ...], calls: list[Tensor]) -> str:
        kind = type(module).__name__
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return f"this {kind} is called with keywords, or not with a real tensor"
        if not calls:
            return f"this {kind} gives its weight to no function that is known"
        before, count = calls[-1], len(calls)
        given = _coarse(before)
        module.forward(given.rounded(args[0]), *args[1:])
        again = calls[count:]
        del calls[count:]
        same = len(again) == 1 and again[0].shape == before.shape and torch.equal(again[0], given.rounded(before))
        return "" if same else f"this {kind} does not multiply with its own input"


def _coarse(inputs: Tensor) -> InputRange:
    """A range of few levels that cuts off some of the values, so that rounding shows."""
    largest = float(inputs.abs().max()) or 1.0
    return InputRange(largest / (1 << TRIED_BITS), 5, TRIED_BITS)
