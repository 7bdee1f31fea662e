"""Running a network so that every layer is called: a switch of the whole process, left as it was found."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch


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
