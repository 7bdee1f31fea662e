"""Looking at a model with other tensors in it, and leaving it exactly as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.menu.groups import Entry, state_entries


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode is restored afterwards, also after an exception.

    A module that ``Module.compile`` compiled in place runs uncompiled: it would be compiled anew for every choice.
    """
    modes = [(module, module.training, module.__dict__.get("_compiled_call_impl")) for module in model.modules()]
    try:
        for module, _, compiled in modes:
            module.training = False
            if compiled is not None:
                module.__dict__["_compiled_call_impl"] = None
        yield
    finally:
        for module, mode, compiled in modes:
            module.training = mode
            if compiled is not None:
                module.__dict__["_compiled_call_impl"] = compiled


@contextlib.contextmanager
def every_layer_runs() -> Iterator[None]:
    """Attention and encoder layers call their inner layers, instead of one kernel that does all of it.

    In eval mode ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` have a fast path that never calls them.
    Outputs differ by rounding, except those of masked positions, which the fast path sets to zero. The switch is one
    of the whole process.
    """
    former = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(former)


@contextlib.contextmanager
def substituted(
    model: nn.Module, tensors: Mapping[str, Tensor], entries: Mapping[str, Entry] | None = None
) -> Iterator[None]:
    """Other tensors in place of the named parameters and buffers, at every place that shares them.

    Args:
        model: its registered tensors are swapped out, never written to.
        tensors: first name in the state dict -> tensor to be seen instead.
        entries: of the model, where they are known; looking them up takes as long as a few examples of a deep network.
    """
    entries = state_entries(model)[0] if entries is None else entries
    places = [(module, attribute, tensors[name]) for name in tensors for module, attribute in entries[name].owners]
    with swapped(places):
        yield


@contextlib.contextmanager
def swapped(places: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Swap tensors in and, whatever happens, the former ones back."""
    saved: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
    recurrent = {id(module): module for module, _, _ in places if isinstance(module, nn.RNNBase)}
    flat = [(module, _flat_weights(module)) for module in recurrent.values()]
    try:
        for module, attribute, tensor in places:
            # Going round __setattr__ leaves the registered Parameter, its grad and its flags untouched.
            home: dict[str, Tensor | None] = (
                module._parameters if attribute in module._parameters else module._buffers  # type: ignore[assignment]
            )
            saved.append((home, attribute, home[attribute]))
            home[attribute] = tensor
        for module, _ in flat:
            # Their forward looks at this list. It is a new one, so that the former stays as it is.
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
        yield
    finally:
        for home, attribute, former in reversed(saved):
            home[attribute] = former
        for module, kept in flat:
            module.__dict__.update(kept)


def _flat_weights(module: nn.RNNBase) -> dict[str, Any]:
    """What a recurrent module remembers of its weights: their list and, in newer versions of torch, who they are."""
    return {name: module.__dict__[name] for name in ("_flat_weights", "_flat_weight_refs") if name in module.__dict__}
