"""The one door to numba: typed, cached on disk, and free of the global interpreter lock."""

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
"""Every compiled function of the package that was imported so far, for whoever wants to see what has been compiled."""

FIRST = cast(int, np.int64(0))
NONE = cast(int, np.int64(-1))
"""For variables of kernels that are passed on to kernels: a literal would have those compiled once more for itself."""

STRUCTURES = ("separable", "pairs", "factor")
"""Of problems: each needs kernels that others can do without."""

_ANNOUNCED_AFTER = 2.0
"""Seconds of compiling after which it is said: reading the cache takes less."""


def once(prepare: Callable[[str], None]) -> Callable[..., float]:
    """Make a warm-up of a function that runs every kernel which problems of a structure need, on a tiny one.

    The warm-up compiles, or reads from the disk cache, on its first call for a structure in a process; without one, for
    every structure. It returns the seconds it took, 0.0 when all was done before.

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
    """Say once, in the log, that kernels are being compiled, if that takes more than a moment.

    Compiling takes half a minute on the first use on a machine, and nothing else would be seen meanwhile.

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
"""Options of numba. ``_nrt`` is its memory manager: without it nothing counts references, and nothing can be allocated.
The wrapper that Python calls takes as long to compile as a small kernel."""


def compiled(function: Function) -> Function:
    """Compile to machine code on first call, cached on disk; runs without the interpreter lock."""
    return cast(Function, _cached(numba.njit(**_ALL)(function)))


def compiled_in_place(function: Function) -> Function:
    """As :func:`compiled`, for what changes its arguments and makes no array: quicker to compile."""
    return cast(Function, _cached(numba.njit(**_IN_PLACE)(function)))


def compiled_part(function: Function) -> Function:
    """A part of other compiled functions, which only they call, and which makes no array."""
    return cast(Function, _cached(numba.njit(**_PART)(function)))


def compiled_inline(function: Function) -> Function:
    """A small helper of compiled functions, which only they call, and which makes no array.

    Sums may be reordered and products fused, which is what lets a dot product use vector
    instructions; nothing is assumed about infinities or NaN.
    """
    return cast(Function, _cached(numba.njit(**_PART, **_REORDERED)(function)))


def compiled_view(function: Function) -> Function:
    """As :func:`compiled_inline`, for a helper that returns a part of an array, and that Python may call, too."""
    return cast(Function, _cached(numba.njit(**_ALL, **_REORDERED)(function)))


def _cached(dispatcher: Any) -> Any:
    """Cache on disk, valid for as long as no kernel of the package has changed.

    Numba looks only at the file that defines a function, although code from other files is compiled
    into it: after an update of those it would silently run the old code.
    """
    KERNELS.append(dispatcher)
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # numba finds no folder that it may write to
        _say_uncached()
        return dispatcher
    with contextlib.suppress(AttributeError):  # private to numba; without it the cache is merely numba's own
        file = dispatcher._cache._cache_file
        file._source_stamp = (file._source_stamp, _sources_digest())
    return dispatcher


@functools.cache
def _announce() -> None:
    """Once, whatever the number of solvers that compile."""
    _logger.warning("compiling kernels: half a minute on the first use, then they are read from numba's cache")


@functools.cache
def _say_uncached() -> None:
    """Once, whatever the number of kernels."""
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
