"""The only module that calls numba's compiler: typed, cached on disk, without the global interpreter lock."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

_logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


KERNELS: list[Any] = []
"""Every compiled function imported so far, to inspect what has been compiled."""

FIRST = cast(int, np.int64(0))
NONE = cast(int, np.int64(-1))
"""For kernel variables passed to other kernels: a literal has its own type, for which they would be compiled again."""

STRUCTURES = ("separable", "pairs", "factor")
"""Structures of problems: each needs its own kernels."""

_ANNOUNCED_AFTER = 2.0
"""Compiling is announced after this many seconds: reading the cache takes less."""


def once(prepare: Callable[[str], None]) -> Callable[..., float]:
    """Turn a function that runs every kernel for a structure, on a tiny problem, into a warm-up.

    The warm-up compiles, or reads from the disk cache, on its first call for a structure in a process; if none is
    given, for every structure. It returns the seconds it took, 0.0 if nothing was left to do.

    Example:
        >>> warm_up = once(lambda structure: print(structure))
        >>> for _ in range(2):
        ...     seconds = warm_up("pairs")
        pairs
        >>> seconds
        0.0
    """
    done: set[str] = set()

    @functools.wraps(prepare)
    def warm_up(structure: str | None = None) -> float:
        missing = [name for name in STRUCTURES if structure in (None, name) and name not in done]
        if not missing:
            return 0.0
        start = time.perf_counter()
        with announced():
            for name in missing:
                prepare(name)
                done.add(name)
        return time.perf_counter() - start

    return warm_up


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """Log once that kernels are being compiled, if that takes more than a moment.

    On a machine's first use this takes up to a minute, in which nothing else would be shown.

    Example:
        >>> with announced():
        ...     kernel = compiled(lambda x: x + 1.0)
        >>> kernel(1.0)
        2.0
    """
    timer = threading.Timer(_ANNOUNCED_AFTER, _announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_ALL: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": True}
_PART: dict[str, Any] = {**_ALL, "no_cpython_wrapper": True, "_nrt": False}
_IN_PLACE: dict[str, Any] = {**_ALL, "_nrt": False}
_REORDERED: dict[str, Any] = {"fastmath": {"reassoc", "contract"}}
"""Options of numba. ``_nrt`` is its memory manager: without it, references are not counted and nothing is allocated.
The wrapper for calls from Python takes as long to compile as a small kernel."""


def compiled(function: Function) -> Function:
    """Compile to machine code on first call, cached on disk; runs without the interpreter lock."""
    return cast(Function, _cached(numba.njit(**_ALL)(function)))


def compiled_in_place(function: Function) -> Function:
    """As :func:`compiled`, for functions that change their arguments and allocate no array: quicker to compile."""
    return cast(Function, _cached(numba.njit(**_IN_PLACE)(function)))


def compiled_part(function: Function) -> Function:
    """A part of compiled functions: only they call it, and it allocates no array."""
    return cast(Function, _cached(numba.njit(**_PART)(function)))


def compiled_inline(function: Function) -> Function:
    """A small, inlined helper of compiled functions: only they call it, and it allocates no array.

    Sums may be reordered and products fused, so that a dot product can use vector instructions; infinities and NaN
    behave as usual.
    """
    return cast(Function, _cached(numba.njit(**_PART, **_REORDERED)(function)))


def compiled_view(function: Function) -> Function:
    """As :func:`compiled_inline`, for a helper that returns a view of an array and may also be called from Python."""
    return cast(Function, _cached(numba.njit(**_ALL, **_REORDERED)(function)))


def _cached(dispatcher: Any) -> Any:
    """Cache on disk, valid until any kernel of the package changes.

    Numba checks only the file that defines a function, although code from other files is compiled
    into it: after changes in those, it would silently run the old code.
    """
    KERNELS.append(dispatcher)
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # numba found no writable folder
        _say_uncached()
        return dispatcher
    with contextlib.suppress(AttributeError):  # private to numba; without it, numba's own cache rules apply
        file = dispatcher._cache._cache_file
        file._source_stamp = (file._source_stamp, _sources_digest())
    return dispatcher


@functools.cache
def _announce() -> None:
    """Log once, for all solvers."""
    _logger.warning("compiling kernels: up to a minute on the first use, then they are read from numba's cache")


@functools.cache
def _say_uncached() -> None:
    """Warn once, for all kernels."""
    _logger.warning(
        "compiled kernels cannot be kept on disk, so every process compiles them anew: neither the package's folder "
        "nor the user's can be written to; set NUMBA_CACHE_DIR to one that can"
    )


@functools.cache
def _sources_digest() -> str:
    """Digest of all files of the package that define kernels."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes()
        if b"compiling import" in text or b"NamedTuple" in text or b"KernelArguments" in text:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + text)
    return digest.hexdigest()
