"""Looking at a model with other tensors in it, and leaving it exactly as it was found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from qubo_compress.menu.groups import state_entries


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode is restored afterwards, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Other tensors in place of the named parameters and buffers, at every place that shares them.

    Args:
        model: its registered tensors are swapped out, never written to.
        tensors: first name in the state dict -> tensor to be seen instead.
    """
    entries = state_entries(model)[0]
    places = [(module, attribute, tensors[name]) for name in tensors for module, attribute in entries[name].owners]
    with swapped(places):
        yield


@contextlib.contextmanager
def swapped(places: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """Swap tensors in and, whatever happens, the former ones back."""
    saved: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
    try:
        for module, attribute, tensor in places:
            # Going round __setattr__ leaves the registered Parameter, its grad and its flags untouched.
            home: dict[str, Tensor | None] = (
                module._parameters if attribute in module._parameters else module._buffers  # type: ignore[assignment]
            )
            saved.append((home, attribute, home[attribute]))
            home[attribute] = tensor
        yield
    finally:
        for home, attribute, former in reversed(saved):
            home[attribute] = former
