"""The one door to numba: typed, cached on disk, and free of the global interpreter lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile to machine code on first call, cached on disk; runs without the interpreter lock."""
    return cast(Function, numba.njit(cache=True, nogil=True)(function))


def compiled_inline(function: Function) -> Function:
    """A small helper of compiled functions.

    Sums may be reordered and products fused, which is what lets a dot product use vector
    instructions; nothing is assumed about infinities or NaN.
    """
    return cast(Function, numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})(function))
