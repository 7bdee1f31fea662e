"""Looking at a private copy of a model with other tensors in it, and leaving it as it was found."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qubo_compress.network.groups import Entry, state_entries


@contextlib.contextmanager
def every_layer_runs() -> Iterator[None]:
    """Attention and encoder layers call their inner layers, instead of one kernel that does all of it.

    In eval mode ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` have a fast path that never calls them.
    Outputs differ by rounding, except those of masked positions, which the fast path sets to zero. The switch is one
    of the whole process, so the last thread to leave sets it back.
    """
    _FAST_PATH.leave()
    try:
        yield
    finally:
        _FAST_PATH.enter()


class _FastPath:
    """Who keeps the switch of the process off, and how the first of them found it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._former = True

    def leave(self) -> None:
        with self._lock:
            if self._users == 0:
                self._former = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._users += 1

    def enter(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                torch.backends.mha.set_fastpath_enabled(self._former)


_FAST_PATH = _FastPath()


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
